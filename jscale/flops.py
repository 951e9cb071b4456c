"""How much arithmetic a model needs, by the usual convention, so that MFU can be compared."""

import jax
from jax.sharding import PartitionSpec

from jscale.models.model import Model


def flops_per_token(model: Model, length: int) -> float:
    """Model FLOPs to train on one token of a sequence of `length`.

    Weights of two or more dimensions multiply, but for an embedding that is only looked up;
    attention is as wide as the weights that carry the axes "heads" and "head" say.
    """
    spec = lambda x: isinstance(x, PartitionSpec)
    pairs = list(
        zip(jax.tree.leaves(model.shapes), jax.tree.leaves(model.axes, is_leaf=spec), strict=True)
    )
    untied = any(tuple(axes) == ("embed", "vocab") for _, axes in pairs)
    lookup = ("vocab", "embed") if untied else None
    matrices = [
        shape.size
        for shape, axes in pairs
        if len([a for a in axes if a != "layers"]) > 1 and tuple(axes) != lookup
    ]
    queries = [
        s.size // s.shape[-3] for s, a in pairs if tuple(a)[-3:] == ("embed", "heads", "head")
    ]
    return train_flops_per_token(sum(matrices), layers=1, length=length, width=sum(queries))


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
