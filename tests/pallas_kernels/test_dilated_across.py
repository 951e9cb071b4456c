"""Dilated attention of rows and heads that devices share equals that of one device."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from dilated import draw, everything, same
from jax.sharding import PartitionSpec as P

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask, Scores
from jscale.pallas_kernels.dilated_attention import (
    Share,
    dilated_attention,
    dilated_attention_across,
    unshared,
)

T = 32
NESTED = ((4, 1), (8, 2), (16, 4), (32, 8))  # within a part of 8, of two parts, of all


def mesh(**sizes):
    devices = jax.devices()[: math.prod(sizes.values())]
    kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices, axis_types=kinds)


def across(shared, mask=CAUSAL, patterns=NESTED, scores=None, segments=None):
    """Dilated attention with rows split over some axes, and heads over `tensor`."""
    mesh, rows = shared
    heads = "tensor" if "tensor" in mesh.shape else None

    def part(q, k, v, segments, scores):
        first = jax.lax.axis_index(heads) * q.shape[2] if heads else 0
        return dilated_attention_across(
            *(q, k, v, mask, Share(rows, first)),
            patterns=patterns,
            scores=scores,
            segments=segments,
        )

    split = P(None, rows, heads)
    specs = split, split, split, P(None, rows), P(heads)
    run = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    return lambda q, k, v: run(q, k, v, segments, scores or Scores())


MESHES = {
    "context": (mesh(context=4), ("context",)),
    "context-tensor": (mesh(context=4, tensor=2), ("context",)),
    "two axes": (mesh(data=2, context=2), ("data", "context")),
}


SLOW = pytest.mark.slow
MASKED = [
    ("context-tensor", CAUSAL),
    ("two axes", FULL),
    pytest.param("context", CAUSAL, marks=SLOW),
    pytest.param("context-tensor", Mask(window=5), marks=SLOW),
    pytest.param("context-tensor", FULL, marks=SLOW),
    pytest.param("two axes", CAUSAL, marks=SLOW),
]


@pytest.mark.parametrize("shared, mask", MASKED)
def test_parts_are_the_whole(shared, mask):
    given = draw(0, 2, T, (4, 2) if "tensor" not in shared else (4, 4))
    whole = lambda q, k, v: dilated_attention(q, k, v, mask, patterns=NESTED)
    same(everything(across(MESHES[shared], mask), *given), everything(whole, *given))


@pytest.mark.parametrize(
    "shared, mask",
    [
        ("context", CAUSAL),
        pytest.param("context-tensor", FULL, marks=SLOW),
        pytest.param("two axes", CAUSAL, marks=SLOW),
    ],
)
def test_packed_parts_are_the_whole(shared, mask):
    given = draw(1, 2, T, (4, 4))
    segments = jnp.sort(jax.random.randint(jax.random.key(2), (2, T), 0, 4), 1)
    whole = lambda q, k, v: dilated_attention(q, k, v, mask, patterns=NESTED, segments=segments)
    parts = across(MESHES[shared], mask, segments=segments)
    same(everything(parts, *given), everything(whole, *given))


def test_parts_have_slopes():
    given, scores = draw(3, 1, T, (4, 4)), Scores(slopes=jnp.array([0.5, 0.2, 0.1, 0.0]))
    whole = lambda q, k, v: dilated_attention(q, k, v, patterns=NESTED, scores=scores)
    parts = across(MESHES["context-tensor"], scores=scores)
    same(everything(parts, *given), everything(whole, *given))


def test_heads_alone_may_be_shared():
    given, odd = draw(4, 2, 21, (4, 4)), ((5, 3), (13, 7))
    whole = lambda q, k, v: dilated_attention(q, k, v, patterns=odd)
    parts = across((mesh(tensor=4), ()), patterns=odd)
    same(everything(parts, *given), everything(whole, *given))


def test_only_what_dilation_leaves_is_exchanged():
    shapes = [jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)] * 3
    text = lambda *patterns: (
        jax.jit(across(MESHES["context"], patterns=patterns)).lower(*shapes).compile().as_text()
    )
    sizes = lambda text: [
        math.prod(map(int, shape.split(",")))
        for shape in re.findall(r"= f32\[([\d,]+)\]\S* all-gather", text)
    ]
    assert sizes(text((4, 1), (8, 3))) == []
    (k, v) = sizes(text((8, 1), (32, 4)))
    assert k == v == 2 * 8 * T // 4
    (k, v) = sizes(text((16, 2)))
    assert k == v == 2 * 8 * 16 // 2


@pytest.mark.parametrize("pattern", [(12, 1), (16, 3), (24, 1), (6, 2)])
def test_what_does_not_nest_is_named(pattern):
    assert unshared([pattern], 8, 1, CAUSAL, Scores(), packed=False) is None
    with pytest.raises(ConfigError, match="do not nest with parts of 8 tokens on 4 devices"):
        across(MESHES["context"], patterns=(pattern,))(*draw(0, 1, T, (2, 2)))


@pytest.mark.parametrize("mask", [Mask(chunk=6), Mask(prefix=20)], ids=str)
def test_masks_of_places_are_not_of_parts(mask):
    with pytest.raises(ConfigError, match="is of places in whole rows, of which 4 devices have"):
        across(MESHES["context"], mask)(*draw(0, 1, T, (2, 2)))


def test_slopes_of_packed_rows_are_not_of_parts():
    scores, segments = Scores(slopes=jnp.ones(2)), jnp.ones((1, T), jnp.int32)
    with pytest.raises(ConfigError, match="cannot have slopes with the pattern"):
        across(MESHES["context"], scores=scores, segments=segments)(*draw(0, 1, T, (2, 2)))
