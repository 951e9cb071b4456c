"""An architecture of your own in one file: attention and feed-forward side by side.

    jscale train examples/parallel_block.py
    jscale generate runs/parallel-block --import examples/parallel_block.py --prompt "def "

The block is x + attend(norm x) + feed(norm x), as in GPT-J and PaLM (arXiv 2204.02311).
"""

from dataclasses import dataclass

from flax import nnx

from jscale.data import Bytes, StandardLibrary, TextData
from jscale.mesh import constrain
from jscale.models.attention import Heads, SelfAttention
from jscale.models.decoder import KeysValues, Output, context_of
from jscale.models.layers import Embed, RMSNorm, Stack, SwiGLU, check_remat
from jscale.optim import AdamW, Cosine
from jscale.recipe import Recipe


@dataclass(frozen=True)
class Parallel:
    """The sizes of a parallel-block transformer."""

    vocab: int
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # query heads, each with a key/value head
    remat: str = "none"  # rematerialisation: none, full, dots, all_dots

    def __post_init__(self):
        check_remat(self.remat)

    def build(self, rngs, compute):
        return Network(self, rngs, compute)


class Block(nnx.Module):
    def __init__(self, c, rngs):
        self.norm = RMSNorm(c.dim)
        self.attend = SelfAttention(Heads(c.dim, c.heads, c.heads, c.dim // c.heads), 1e4, rngs)
        self.feed = SwiGLU(c.dim, 4 * c.dim, rngs)

    def __call__(self, x, context, cache):
        y = self.norm(x)
        attended, cache = self.attend(y, context, cache)
        return constrain(x + attended + self.feed(y), "batch", "length", "embed"), ({}, cache)


class Network(nnx.Module):
    def __init__(self, c, rngs, compute):
        self.c, self.norm = c, RMSNorm(c.dim)
        self.embed = Embed(c.vocab, c.dim, rngs, compute)
        self.blocks = Stack(lambda rngs: Block(c, rngs), c.layers, rngs, c.remat)

    def __call__(self, tokens, positions=None, segments=None, cache=None):
        context = context_of(tokens, positions, segments)
        x, (reports, cache) = self.blocks(self.embed(tokens), context, cache)
        return Output(self.norm(x), reports, cache)

    def unembed(self, hidden):
        return self.embed.unembed(hidden)

    def cache(self, batch, length):
        c = self.c
        shape = (batch, length, c.heads, c.dim // c.heads)
        return KeysValues.empty(c.layers, shape, self.embed.compute)


def recipe() -> Recipe:
    return Recipe(
        name="parallel-block",
        model=Parallel(vocab=512, dim=128, layers=4, heads=4),
        data=TextData(StandardLibrary(), Bytes(), length=128, batch=8, heldout=0.05),
        optimizer=AdamW(peak=3e-3, schedule=Cosine(warmup=20)),
        steps=300,
    )
