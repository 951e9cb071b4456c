"""GPT-2: the Transformer with norms before its branches and learned positions.

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners; larger, with the
same parts, Brown et al. 2020, arXiv 2005.14165.
"""

from dataclasses import dataclass

from flax import nnx
from jax.typing import DTypeLike

from jscale.errors import ConfigError
from jscale.models.feed import MLP, Drop
from jscale.models.norms import Layer
from jscale.models.positions import Learned
from jscale.models.residual import PreNorm
from jscale.models.transformer import TransformerDecoder
from jscale.models.transformer.head import Plain
from jscale.models.transformer.network import DecoderNetwork


@dataclass(frozen=True)
class GPT2:
    """The sizes of a GPT-2.

    Raises:
        ConfigError: a size below 1, heads that do not divide, an unknown name.
    """

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # of attention; each of size dim / heads
    hidden: int | None = None  # size inside the feed-forward; None: 4 · dim
    longest: int = 1024  # positions that are learned: rows can be no longer
    activation: str = "gelu_tanh"  # of the feed-forward, by name: models/activations.py
    eps: float = 1e-5  # of the norms
    tied: bool = True  # whether embedding and head share one matrix
    drop: Drop = Drop(units=0.1, attention=0.1)  # what training drops
    remat: str = "full"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self) -> None:
        if self.drop.activation or self.drop.path:
            raise ConfigError("a GPT2 drops units and attention's probabilities, nothing else")
        _ = self.decoder

    @property
    def decoder(self) -> TransformerDecoder:
        """What it is made of: x + f(norm x), biases everywhere, a norm at the end."""
        return TransformerDecoder(
            vocab=self.vocab,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            feed=MLP(4 * self.dim if self.hidden is None else self.hidden, self.activation),
            residual=PreNorm(),
            positions=(Learned(self.longest, first=0),),
            norm=Layer(self.eps),
            drop=self.drop,
            head=Plain(self.tied),
            init="bert",
            remat=self.remat,
        )

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> DecoderNetwork:
        return DecoderNetwork(self.decoder, rngs, compute)
