"""How much arithmetic a model needs, by the usual convention, so that MFU can be compared."""

from itertools import takewhile

import jax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from jscale.checkpoint.names import named_leaves
from jscale.models.model import Model


def flops_per_token(model: Model, length: int) -> float:
    """Model FLOPs to train on one token of a sequence of `length`.

    Weights of two or more dimensions multiply, but for an embedding that is only looked up and what
    is added to heads; of experts only as many as a token has. Attention is as wide as the weights
    that make its queries and gather its values say.
    """
    multiplied = sum(jax.tree.leaves(products(model)))
    return train_flops_per_token(round(multiplied), layers=1, length=length, width=width(model))


def products(model: Model) -> PyTree[float]:
    """How many numbers of each weight multiply a token, as `flops_per_token` counts them."""
    shapes, axes = jax.tree.leaves(model.shapes), _axes(model)
    lookup = ("vocab", "embed") if ("embed", "vocab") in axes else None
    found = [
        s.size * share if _multiplies(_single(a)) and a != lookup else 0.0
        for s, a, share in zip(shapes, axes, jax.tree.leaves(model.shares), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(model.shapes), found)


def width(model: Model) -> int:
    """Heads x head size of all layers' attention, as `flops_per_token` counts them.

    Where queries and values are of unequal size, it is their mean: queries are made by the weights
    "q" (or "q_up") with the axes "embed", "heads", "head", and values gathered by those with the
    axes "heads", "head", "embed".
    """
    named = zip(named_leaves(model.shapes).items(), _axes(model), strict=True)
    rows = [(set(name.split("/")), shape, axes[-3:]) for (name, shape), axes in named]
    values = [s.size // s.shape[-1] for _, s, a in rows if a == ("heads", "head", "embed")]
    queries = [
        s.size // s.shape[-3]
        for path, s, a in rows
        if a == ("embed", "heads", "head") and path & {"q", "q_up"}
    ]
    found = [sum(sizes) for sizes in (queries, values) if sizes]
    return sum(found) // max(1, len(found))


def _axes(model: Model) -> list[tuple[str | None, ...]]:
    """The logical axes of every weight, in the order of the weights."""
    spec = lambda x: isinstance(x, PartitionSpec)
    return [tuple(a) for a in jax.tree.leaves(model.axes, is_leaf=spec)]


def _multiplies(axes: tuple[str | None, ...]) -> bool:
    """Whether it is a matrix, and no bias of heads or table of what is added to their scores."""
    return len(axes) > 1 and not set(axes) <= {None, "heads", "kv_heads", "head"}


def _single(axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The axes of one layer's weight, and of one expert's."""
    stacked = len(list(takewhile(lambda axis: axis in ("layers", "experts"), axes)))
    return axes[stacked:]


def train_flops_per_token(
    parameters: int, layers: int, length: int, width: int, window: int | None = None
) -> float:
    """Model FLOPs to train on one token: 6 x parameters + 12 x layers x width x keys.

    `parameters` counts weights that multiply (no embedding table that is only looked up; of experts
    only those a token visits), `width` is heads x head size (for unequal sizes of key and value,
    heads x their mean), `length` the sequence length in tokens. Forward is 2 FLOPs a weight, and
    backward twice that (Kaplan et al., 2001.08361, section 2.1); scores and their sums over values
    take 2 x 2 x width FLOPs a key, times three (PaLM, 2204.02311, appendix B, which counts all
    keys). Recomputed activations do not count.

    >>> train_flops_per_token(1_000_000, layers=2, length=512, width=256)
    7572864.0
    """
    return 6.0 * parameters + 12.0 * layers * width * attention_span(length, window)


def attention_span(length: int, window: int | None = None) -> float:
    """Keys that a query sees on average under a causal mask, by the convention length / 2.

    With a sliding window the first queries see fewer keys than the window and all others exactly
    that many.

    >>> attention_span(4096), attention_span(4096, window=1024), attention_span(4096, window=9999)
    (2048.0, 896.0, 2048.0)
    """
    if window is None or window >= length:
        return length / 2
    return window - window * window / (2 * length)
