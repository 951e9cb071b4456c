"""The attention kernels for TPU: interpreted, with poisoned memory, and compiled for each chip."""

from dataclasses import replace
from functools import partial
from typing import Any

import absent
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_grid import agree, cases, watched
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import CAUSAL, PLAIN, Mask, Places, Scores, attention
from jscale.pallas_kernels.attention.reference import LEAST, reference
from jscale.pallas_kernels.attention.tpu import flash
from jscale.pallas_kernels.attention.tpu_tiles import Tiles, needs, tiles
from jscale.pallas_kernels.interpret import interpreted

T, S, N = 12, 20, 2
NOWHERE = Places()
SLOW = pytest.mark.slow
RNG = np.random.default_rng(0)
BIAS = jnp.asarray(RNG.normal(size=(1, N, T, S)), jnp.float32)
SLOPES = jnp.asarray([0.5, 0.25])
POSITIONS = jnp.asarray(RNG.integers(0, S, (2, T))), jnp.asarray(RNG.integers(0, S, (2, S)))
# The first queries of the second row are of a segment that no key has: they see nothing.
SEGMENTS = (
    jnp.asarray([[1] * 6 + [2] * 6, [0] * 5 + [1] * 7]),
    jnp.asarray([[1] * 9 + [2] * 11, [1] * 16 + [3] * 4]),
)


def draw(dtype=jnp.float32, rows=2, kv_heads=1) -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (rows, T, N, 8), (rows, S, kv_heads, 8), (rows, S, kv_heads, 4)
    return [jax.random.normal(key, s).astype(dtype) for key, s in zip(keys, shapes, strict=True)]


def everything(run, q, k, v, mask, scores, places):
    """The result, the log Σ exp, and the gradients of q, k, v and the bias by both."""

    def loss(q, k, v, bias):
        out, lse = run(q, k, v, mask, replace(scores, bias=bias), places)
        slopes = (jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate((out, lse)))
        total = sum((x * slope).sum() for x, slope in zip((out, lse), slopes, strict=True))
        return total, (out, lse)

    both = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
    (_, (out, lse)), grads = jax.jit(both)(q, k, v, scores.bias)
    return [out, jnp.where(lse == LEAST, 0.0, lse), *jax.tree.leaves(grads)]


def in_tiles(q, k, v, mask, scores, places):
    return flash(q, k, v, mask, scores, places, Tiles(8, 16))


def check(limit, q, k, v, mask=CAUSAL, scores=PLAIN, places=NOWHERE):
    with interpreted():
        found = everything(in_tiles, q, k, v, mask, scores, places)
    exact = [x.astype(jnp.float32) for x in (q, k, v)]
    wanted = everything(reference, *exact, mask=mask, scores=scores, places=places)
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - b) <= limit * max(np.linalg.norm(b), 0.1 * np.sqrt(b.size))


def test_float32_equals_the_reference_where_neither_length_fills_its_tiles():
    check(1e-5, *draw(rows=1))


@SLOW
def test_bfloat16_is_near_the_float32_reference():
    check(1e-2, *draw(jnp.bfloat16, rows=1))


def small(queries, keys):
    return partial(flash, size=Tiles(queries, keys))


@settings(deadline=None, max_examples=2)
@given(cases(queries=st.integers(1, 20), more=st.integers(-9, 9)))
def test_the_grid(case):
    with watched():
        agree(case, small(8, 16))


@SLOW
@settings(deadline=None, max_examples=60)
@given(cases(queries=st.integers(1, 60), dtype=st.sampled_from(["float32", "bfloat16"])))
def test_the_large_grid(case):
    with watched():
        agree(case, small(16, 32))


@SLOW
@pytest.mark.parametrize(
    "mask, scores, places",
    [
        (Mask(window=5, prefix=3), Scores(), Places()),
        (Mask(causal=False, chunk=6), Scores(cap=2.0, bias=BIAS, slopes=SLOPES), Places()),
        (Mask(causal=False), Scores(bias=BIAS[:, :1]), Places(None, SEGMENTS)),
        (CAUSAL, Scores(slopes=SLOPES), Places(POSITIONS, SEGMENTS)),
    ],
    ids=["window", "scores", "segments", "positions"],
)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_masks_scores_and_places_equal_the_reference(mask, scores, places, kv_heads):
    check(1e-5, *draw(kv_heads=kv_heads), mask=mask, scores=scores, places=places)


CHIPS = {"v4": "v4-8", "v5e": "v5e-1", "v5p": "v5p-8", "v6e": "v6e-1", "tpu7x": "tpu7x-8"}
# Rows, queries, keys, heads, key/value heads, head size, value size, and what else.
BASIC = ((1, 1024, 1024, 4, 2, 128, 128), jnp.bfloat16, CAUSAL, ())
ALL = ("bias", "slopes", "sinks", "positions", "segments")
SHAPES = {
    "plain": BASIC,
    "scores": ((1, 1024, 1024, 4, 2, 64, 64), jnp.bfloat16, Mask(window=300, prefix=5), ALL),
    "ragged": ((2, 1000, 1200, 2, 1, 192, 128), jnp.bfloat16, Mask(chunk=128), ALL[3:]),
    "float32": ((2, 200, 333, 2, 2, 80, 40), jnp.float32, CAUSAL, ALL[:2]),
    "large": ((1, 1024, 1024, 2, 1, 256, 256), jnp.float32, CAUSAL, ()),
}


def compiled(chip, sizes, dtype, mask, given, around=lambda one: one):
    """The program of the result and its gradients for one chip that need not be there."""
    B, T, S, N, K, H, V = sizes
    of = lambda d, *shape: jax.ShapeDtypeStruct(shape, d)
    pair = of(jnp.int32, B, T), of(jnp.int32, B, S)
    more = dict(
        bias=of(jnp.float32, 1, N, T, S),
        **dict.fromkeys(("slopes", "sinks"), of(jnp.float32, N)),
        **dict.fromkeys(("positions", "segments"), pair),
    )
    x = of(dtype, B, T, N, H), of(dtype, B, S, K, H), of(dtype, B, S, K, V)

    def run(x, inputs):
        get = inputs.get
        scores = Scores(None, 20.0, get("bias"), get("slopes"), get("sinks"))
        places = dict(positions=get("positions"), segments=get("segments"))
        one = around(lambda *x: attention(*x, mask=mask, scores=scores, **places))
        return jax.value_and_grad(lambda x: one(*x).astype(jnp.float32).sum())(x)

    return absent.compiled(CHIPS[chip], run, x, {key: more[key] for key in given})


CORE = [("v5e", "plain"), ("v6e", "plain")]
GRID = [(chip, shape) for chip in CHIPS for shape in SHAPES]


@pytest.mark.parametrize(
    "chip, shape", [pytest.param(*c, marks=() if c in CORE else SLOW) for c in GRID]
)
def test_compiles_for_the_chip_where_it_is_chosen(chip, shape, record_property):
    program = compiled(chip, *SHAPES[shape])
    text, memory = program.as_text() or "", program.memory_analysis()
    assert all(f"attention_{kernel}" in text for kernel in ("forward", "backward_keys"))
    if memory is not None:
        record_property("temporary bytes", memory.temp_size_in_bytes)


def stacked(one):
    """Of each row alone, over a loop of one step, and computed again in the backward pass."""
    each = jax.vmap(lambda *x: one(*(a[None] for a in x))[0])
    step = jax.checkpoint(lambda carry, x: (carry, each(*x)))
    return lambda *x: jax.lax.scan(step, 0, [a[None] for a in x])[1]


def test_compiles_under_vmap_scan_and_remat():
    sizes = (2, *BASIC[0][1:])
    text = compiled("v6e", sizes, *BASIC[1:], around=stacked).as_text() or ""
    assert "attention_backward_queries" in text


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
@pytest.mark.parametrize("head", [40, 64, 128, 192, 256])
@pytest.mark.parametrize("width", [2, 4])
def test_tiles_fit_the_vector_memory(kind, head, width):
    size = tiles(kind, head, head, 8192, 8192, width)
    assert min(size) >= 128 and needs(size, head, head, width) < 12 * 2**20


def test_short_sequences_get_short_tiles():
    assert tiles("TPU v6 lite", 128, 128, 130, 20, 2) == Tiles(256, 128)


def test_what_cannot_run_says_why():
    q, k, v = draw(jnp.float16)
    with interpreted(), pytest.raises(ConfigError, match="not in float16"):
        attention(q, k, v, implementation="tpu")
    with pytest.raises(ConfigError, match="runs on tpu only"):
        attention(*draw(), implementation="tpu")
