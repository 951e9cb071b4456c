"""The Transformer: encoder, decoder, and both, as TorchScale has them."""

from jscale.models.transformer.encoder_decoder import EncoderDecoder as EncoderDecoder
from jscale.models.transformer.network import TransformerDecoder as TransformerDecoder
from jscale.models.transformer.network import TransformerEncoder as TransformerEncoder
from jscale.models.transformer.pattern import Dense as Dense
from jscale.models.transformer.pattern import Dilated as Dilated
