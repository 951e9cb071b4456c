"""Dilated attention: every r-th token within segments of w, for several w and r, and their mix."""

from jscale.pallas_kernels.dilated_attention.choice import Pattern as Pattern
from jscale.pallas_kernels.dilated_attention.choice import dilated_attention as dilated_attention
from jscale.pallas_kernels.dilated_attention.choice import (
    dilated_attention_across as dilated_attention_across,
)
from jscale.pallas_kernels.dilated_attention.choice import unshared as unshared
from jscale.pallas_kernels.dilated_attention.share import Share as Share
