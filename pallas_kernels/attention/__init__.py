"""Attention: softmax(q kᵀ / √H) v over grouped heads, under a mask that is a value."""

from jscale.pallas_kernels.attention.choice import attention as attention
from jscale.pallas_kernels.attention.choice import attention_with_lse as attention_with_lse
from jscale.pallas_kernels.attention.choice import merge as merge
from jscale.pallas_kernels.attention.mask import CAUSAL as CAUSAL
from jscale.pallas_kernels.attention.mask import FULL as FULL
from jscale.pallas_kernels.attention.mask import Mask as Mask
from jscale.pallas_kernels.attention.places import Places as Places
from jscale.pallas_kernels.attention.scores import PLAIN as PLAIN
from jscale.pallas_kernels.attention.scores import Scores as Scores
