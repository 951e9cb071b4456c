"""A function that runs on each device's own part of its arrays, under the current layout.

The partitioner splits a network's plain mathematics by itself. What loops over a dimension, or is a
kernel, it cannot split: it would gather the arrays first, or sum over devices in every turn of the
loop. Such a function is written for one device's part, and `per_shard` runs it there.
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
from jaxtyping import PyTree

from jscale.mesh.exchange import Chosen, Shared, choose_exchange
from jscale.mesh.layout import Axes, current
from jscale.mesh.rules import as_tuple


def alone() -> bool:
    """Whether one device computes all: there is no layout, or its mesh has one device."""
    layout = current()
    return layout is None or layout.mesh.size == 1


def split_over(*axes: str | None) -> tuple[str, ...]:
    """The mesh axes over which the current layout splits the last of an activation's dimensions.

    They depend on the dimensions before it, which may have taken them. Without a layout, and where
    every such mesh axis has size 1, there are none.
    """
    layout = current()
    if layout is None:
        return ()
    found = layout.activation_spec(Axes(*axes))[len(axes) - 1]
    return tuple(name for name in as_tuple(found) if layout.mesh.shape[name] > 1)


def sharing(length: int, heads: int, kv_heads: int) -> Chosen | None:
    """What attention exchanges under the current layout; None where each device has whole rows.

    `length` is the whole sequence's, `heads` and `kv_heads` those of one device. What was chosen,
    and why, is logged once.
    """
    layout, axes = current(), split_over("batch", "length")
    if layout is None or not axes:
        return None
    ways = tuple(layout.mesh.shape[name] for name in axes)
    shared = Shared(axes, ways, length // math.prod(ways), heads, kv_heads)
    chosen = choose_exchange(shared, layout.rules.exchange)
    _tell(str(chosen))
    return chosen


@lru_cache(maxsize=1024)  # so that each choice is logged once
def _tell(sentence: str) -> None:
    logging.getLogger("jscale.mesh").info("%s", sentence)


def per_shard(
    function: Callable[..., Any],
    *arguments: Any,
    inputs: Sequence[PyTree[Axes]],
    outputs: PyTree[Axes],
) -> Any:
    """`function(*arguments)`, each device computing on its part of the arguments.

    `inputs` name the logical axes of each argument and `outputs` those of the results, in the
    structure of these. Both are laid out as activations are. An argument that is None stays it.
    Without a layout, or on one device, the function is simply called.
    """
    layout = current()
    if layout is None or alone():
        return function(*arguments)
    named = lambda axes: isinstance(axes, Axes)
    specs = lambda tree: jax.tree.map(layout.activation_spec, tree, is_leaf=named)
    given = [None if a is None else specs(i) for a, i in zip(arguments, inputs, strict=True)]
    return jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=tuple(given),
        out_specs=specs(outputs),
        check_vma=False,  # loops and custom rules start from plain zeros, which it would refuse
    )(*arguments)
