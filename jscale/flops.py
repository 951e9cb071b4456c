"""How much arithmetic a model needs, read off its weights and their axes."""

import jax
from jax.sharding import PartitionSpec

from jscale.metrics.flops import train_flops_per_token
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
