"""Attention of new tokens to the contexts of many sequences, which lie in pages of a cache."""

from jscale.pallas_kernels.decode_attention.choice import decode_attention as decode_attention
from jscale.pallas_kernels.decode_attention.pages import Pages as Pages
from jscale.pallas_kernels.decode_attention.pages import quantise as quantise
from jscale.pallas_kernels.decode_attention.pages import write as write
from jscale.pallas_kernels.decode_attention.sequences import Sequences as Sequences
