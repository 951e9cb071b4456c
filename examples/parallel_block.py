"""An architecture of your own in one file: attention and feed-forward side by side.

    jscale train examples/parallel_block.py
    jscale generate runs/parallel-block --import examples/parallel_block.py --prompt "def "

The block is x + attend(norm x) + feed(norm x), as in GPT-J and PaLM (arXiv 2204.02311).
docs/your_own_model.md goes through it.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from jscale.data import Bytes, StandardLibrary, TextData
from jscale.formats.table import Pair, Table
from jscale.mesh import constrain
from jscale.models.attention import Heads, SelfAttention
from jscale.models.causal import Causal, check_sizes, share
from jscale.models.layers import RMSNorm, project, weight
from jscale.optim import AdamW, Cosine
from jscale.recipe import Recipe


@dataclass(frozen=True)
class Parallel:
    """The sizes of a parallel-block transformer."""

    vocab: int  # tokens that can be told apart
    dim: int  # size of the residual stream
    layers: int  # blocks
    heads: int  # query heads, each with a key/value head
    tied: bool = True  # whether embedding and head share one matrix
    remat: str = "none"  # rematerialisation: none, full, dots, all_dots
    eps = 1e-6  # of the norms: no option

    def __post_init__(self):
        check_sizes(self)

    @property
    def kv_heads(self):
        return self.heads

    @property
    def head_size(self):
        return share(self.dim, self.heads, None)

    def build(self, rngs, compute):
        return Causal(self, lambda rngs: Block(self, rngs), rngs, compute)


class Block(nnx.Module):
    """x + attend(norm x) + feed(norm x)."""

    def __init__(self, c, rngs):
        D, F = c.dim, 4 * c.dim
        self.norm = RMSNorm(D, c.eps)
        self.attend = SelfAttention(Heads(D, c.heads, c.heads, c.head_size), 1e4, rngs)
        self.up = weight(rngs, D, embed=D, mlp=F)  # what an output sums over, then name=size
        self.down = weight(rngs, F, mlp=F, embed=D)

    def __call__(self, x, context, cache):
        y = self.norm(x)
        attended, cache = self.attend(y, context, cache)
        hidden = jax.nn.gelu(project("btd,df->btf", y, self.up[...]))
        fed = project("btf,fd->btd", constrain(hidden, "batch", "length", "mlp"), self.down[...])
        return constrain(x + attended + fed, "batch", "length", "embed"), ({}, cache)


def recipe() -> Recipe:
    return Recipe(
        name="parallel-block",
        model=Parallel(vocab=512, dim=128, layers=4, heads=4),
        data=TextData(StandardLibrary(), Bytes(), length=128, batch=8, heldout=0.05),
        optimizer=AdamW(peak=3e-3, schedule=Cosine(warmup=20)),
        steps=300,
    )


def table(c: Parallel) -> Table:
    """Its weights as a release of PyTorch's would name and turn them, layer by layer."""

    def each(ours, theirs, pattern=None, **sizes):
        names = f"blocks/block/{ours}", f"layers.{{layer}}.{theirs}.weight"
        return Pair(*names, pattern, sizes, over={"layer": range(c.layers)})

    attend = [each(f"attend/{x}", x, "(n h) d -> d n h", n=c.heads) for x in "qkv"]
    attend.append(each("attend/o", "o", "d (n h) -> n h d", n=c.heads))
    feed = [each("up", "up", "f d -> d f"), each("down", "down", "d f -> f d")]
    ends = [Pair("embed/table", "embed.weight"), Pair("norm/scale", "norm.weight")]
    head = [] if c.tied else [Pair("head/kernel", "head.weight", "v d -> d v")]
    return Table((*ends, *head, each("norm/scale", "norm"), *attend, *feed))
