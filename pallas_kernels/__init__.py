"""Fused operations. Each has one signature, one reference, and one choice of implementation."""

from jscale.pallas_kernels.attention import CAUSAL as CAUSAL
from jscale.pallas_kernels.attention import Mask as Mask
from jscale.pallas_kernels.attention import attention as attention
