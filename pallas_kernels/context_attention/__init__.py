"""Attention over a sequence that is split over devices: what they exchange is a value."""

from jscale.pallas_kernels.context_attention.all_to_all import AllToAll as AllToAll
from jscale.pallas_kernels.context_attention.gather import Gather as Gather
from jscale.pallas_kernels.context_attention.reference import reference as reference
from jscale.pallas_kernels.context_attention.ring import Ring as Ring
from jscale.pallas_kernels.context_attention.signature import Exchange as Exchange
from jscale.pallas_kernels.context_attention.signature import (
    context_attention as context_attention,
)
from jscale.pallas_kernels.context_attention.signature import (
    context_attention_with_lse as context_attention_with_lse,
)
from jscale.pallas_kernels.context_attention.zigzag import from_zigzag as from_zigzag
from jscale.pallas_kernels.context_attention.zigzag import to_zigzag as to_zigzag
from jscale.pallas_kernels.context_attention.zigzag import unzigzag as unzigzag
from jscale.pallas_kernels.context_attention.zigzag import zigzag as zigzag
from jscale.pallas_kernels.context_attention.zigzag import zigzag_places as zigzag_places
