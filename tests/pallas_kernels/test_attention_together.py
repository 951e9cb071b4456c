"""Attention's options together: what each backend makes of those that meet in real models."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from attention_grid import Case, agree, same, value_and_grads

from jscale.pallas_kernels.attention import (
    CAUSAL,
    FULL,
    Mask,
    Places,
    Scores,
    attention,
    tpu_tiles,
    triton_tiles,
)
from jscale.pallas_kernels.attention.sinks import afterwards
from jscale.pallas_kernels.attention.tpu import flash
from jscale.pallas_kernels.attention.triton import triton
from jscale.pallas_kernels.attention.tuned import Sizes
from jscale.pallas_kernels.attention.visits import Tiles, look
from jscale.pallas_kernels.attention.xla import blockwise
from jscale.pallas_kernels.interpret import interpreted

SIXTEEN = triton_tiles.Tiles(16, 16)
WAYS: dict[str, Any] = {
    "dense": "dense",
    "xla": afterwards(partial(blockwise, size=Tiles(8, 16))),
    "tpu": partial(flash, size=tpu_tiles.Tiles(8, 16)),
    "triton": partial(triton, size=Sizes(SIXTEEN, SIXTEEN, SIXTEEN)),
}
KERNELS = "tpu", "triton"  # interpreted, they take their time
SLOWLY = [pytest.param(n, marks=pytest.mark.slow) if n in KERNELS else n for n in WAYS]
# A window and ALiBi, a bias in bfloat16 with its gradient, sinks and the log Σ exp with its own,
# keys wider than values, and packed rows.
REAL = Case(
    *(3, 2, 21, 6, (2, 1), 12, 5, Mask(window=7)),
    bias=(False, True),
    slopes=True,
    sinks=True,
    segments=True,
    dtype="bfloat16",
)


@pytest.mark.parametrize("name", WAYS)
def test_all_of_a_models_options_at_once(name):
    with interpreted(memory=False):
        agree(REAL, WAYS[name])


def attend(name: str, q: Any, k: Any, v: Any, mask: Mask, places: Places) -> Any:
    way = WAYS[name]
    if isinstance(way, str):
        where, marks = places
        return attention(q, k, v, mask, positions=where, segments=marks, implementation=way)
    return way(q, k, v, mask, Scores(), places)[0]


def draw(length: int) -> list[Any]:
    rng = np.random.default_rng(length)
    shapes = (1, length, 2, 8), (1, length, 1, 8), (1, length, 1, 4)
    return [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


def alone(cuts: list[slice], masks: list[Mask]) -> Any:
    """Each part of a row by itself, by the reference, and 0 between them."""

    def run(q: Any, k: Any, v: Any) -> Any:
        out = jnp.zeros((*q.shape[:3], v.shape[-1]))
        for cut, mask in zip(cuts, masks, strict=True):
            part = attention(q[:, cut], k[:, cut], v[:, cut], mask, implementation="reference")
            out = out.at[:, cut].set(part)
        return out

    return run


@pytest.mark.parametrize("name", SLOWLY)
def test_padding_on_the_left_is_a_segment_of_its_own(name):
    length, pad = 19, 6
    inputs, there = draw(length), jnp.arange(length) >= pad
    inputs = [x.at[:, :pad].set(1e3) for x in inputs]  # that no token may see
    marks = (
        jnp.where(there, 1, 0)[None],
        jnp.where(there, 1, -1)[None],
    )  # nor do they see each other
    with interpreted(memory=False):
        run = lambda q, k, v: attend(name, q, k, v, CAUSAL, Places(None, marks))
        found = value_and_grads(run, *inputs)
    same(found, value_and_grads(alone([slice(pad, None)], [CAUSAL]), *inputs))


@pytest.mark.parametrize("name", SLOWLY)
def test_packed_rows_have_prefixes_of_their_own(name):
    """Tokens of a prefix that stand at one position see each other, as `Mask.prefix` says."""
    ends, prefixes = [0, 9, 20], [4, 3]
    cuts = [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]
    places = [
        np.maximum(np.arange(c.stop - c.start), p - 1) for c, p in zip(cuts, prefixes, strict=True)
    ]
    positions = jnp.asarray(np.concatenate(places))[None]
    marks = jnp.asarray(np.repeat([1, 2], np.diff(ends)))[None]
    packed, inputs = Places((positions, positions), (marks, marks)), draw(ends[-1])
    with interpreted(memory=False):
        run = lambda q, k, v: attend(name, q, k, v, CAUSAL, packed)
        found = value_and_grads(run, *inputs)
    masks = [Mask(prefix=p) for p in prefixes]
    same(found, value_and_grads(alone(cuts, masks), *inputs))


T, STEP = 1024, 64


def by_xla(mask: Mask, places: Places) -> int:
    return int(look(mask, Tiles(STEP, STEP), (T, T), places).count.sum())


def by_triton(mask: Mask, places: Places, by_keys: bool = False) -> int:
    problem = triton_tiles.Problem(1, T, T, 1, 1, 64, 64, mask, 1.0, None, False)
    found = triton_tiles.visits(problem, triton_tiles.Tiles(STEP, STEP), places, by_keys)
    return int((found[..., 3] - found[..., 0]).sum())


def by_tpu(mask: Mask, places: Places, of_keys: bool = False) -> int:
    problem = tpu_tiles.Problem(mask, 1.0, None, tpu_tiles.Tiles(STEP, STEP), T, T)
    known, _ = tpu_tiles.tables(problem, places, None, of_keys)
    return int((known.last - known.first + 1).sum())


DOCUMENTS = jnp.repeat(jnp.arange(8), T // 8)[None]
VISITS = {
    "xla": by_xla,
    "triton": by_triton,
    "triton, backward": partial(by_triton, by_keys=True),
    "tpu": by_tpu,
    "tpu, backward": partial(by_tpu, of_keys=True),
}


@pytest.mark.parametrize("name", VISITS)
@pytest.mark.parametrize(
    "mask, packed, tiles",
    [
        (FULL, False, 16 * 16),
        (CAUSAL, False, 16 * 17 // 2),
        (Mask(window=STEP + 1), False, 16 + 15),  # a query's own tile, and the one before it
        (Mask(window=1), False, 16),
        (Mask(False, window=2), False, 16 + 2 * 15),
        (Mask(chunk=128), False, 8 * 3),
        (Mask(prefix=128), False, 16 * 17 // 2 + 1),  # the second tile, for queries of the first
        (CAUSAL, True, 8 * 3),
        (FULL, True, 8 * 4),
    ],
    ids=str,
)
def test_cost_follows_the_mask(name, mask, packed, tiles):
    places = Places(None, (DOCUMENTS, DOCUMENTS)) if packed else Places()
    assert VISITS[name](mask, places) == tiles
