"""Attention over a split sequence equals attention on one device, whatever devices exchange."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jscale.errors import ConfigError
from jscale.pallas_kernels.attention import (
    CAUSAL,
    FULL,
    PLAIN,
    Mask,
    Places,
    Scores,
    attention_with_lse,
)
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.context_attention import (
    AllToAll,
    Gather,
    Ring,
    context_attention,
    context_attention_with_lse,
    from_zigzag,
    reference,
    to_zigzag,
    unzigzag,
    zigzag,
    zigzag_places,
)
from jscale.pallas_kernels.context_attention.signature import Exchange
from jscale.pallas_kernels.context_attention.zigzag import order

FLOAT32 = 1e-5  # relative Frobenius error
B, H = 2, 4
RING = Ring("context")
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@cache
def mesh(*sizes):
    names = ("context",) if len(sizes) == 1 else ("outer", "context")
    return jax.make_mesh(
        sizes,
        names,
        devices=jax.devices()[: np.prod(sizes)],
        axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
    )


def on(mesh, exchange, function) -> Callable[..., Any]:
    """`function(q, k, v, sinks, places)` with everything but the sinks split by the sequence."""
    split, every = PartitionSpec(None, exchange.axes), PartitionSpec()
    specs = split, split, split, every, split
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)


def draw(T, heads=(4, 4), value=H) -> list[jax.Array]:
    N, K = heads
    keys = jax.random.split(jax.random.key(T), 3)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, value)
    return [jax.random.normal(key, s) for key, s in zip(keys, shapes, strict=True)]


def everything(run: Callable[..., Any], *inputs):
    """The results of `run` and the gradients of all it was given, through both results."""
    q, k, v, sinks = inputs if len(inputs) == 4 else (*inputs, None)
    shapes = (*q.shape[:3], v.shape[3]), q.shape[:3]
    slopes = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]

    def loss(q, k, v, sinks):
        out, lse = run(q, k, v, sinks)
        lost = (out * slopes[0]).sum() + jnp.where(lse > LEAST / 2, lse * slopes[1], 0).sum()
        return lost, (out, lse)

    differ = (0, 1, 2) if sinks is None else (0, 1, 2, 3)
    pulled = jax.jit(jax.value_and_grad(loss, differ, has_aux=True), compiler_options=QUICK)
    (_, found), grads = pulled(q, k, v, sinks)
    return *found, *grads


def same(found, wanted, limit=FLOAT32):
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - b) <= limit * max(np.linalg.norm(b), 0.1 * np.sqrt(b.size))


@dataclass(frozen=True)
class Case:
    mask: Mask = CAUSAL
    heads: tuple[int, int] = (4, 4)
    value: int = H
    packed: bool = False
    ways: int = 0  # of a zig-zag order
    extras: bool = False  # scale, cap, slopes and sinks

    def scores(self, sinks):
        if not self.extras:
            return PLAIN
        return Scores(0.7, 3.0, None, 2.0 ** -jnp.arange(1, self.heads[0] + 1.0), sinks)

    def inputs(self, T) -> tuple[Any, ...]:
        sinks = jnp.linspace(-1.0, 2.0, self.heads[0]) if self.extras else None
        return *draw(T, self.heads, self.value), sinks


def packed(T):
    """Documents of which some lie across borders of parts, and one in several parts."""
    cuts = [T // 8 + 1, T // 8 + 3, T - T // 4 - 1], [T // 2 + 1]
    return jnp.asarray([np.searchsorted(c, np.arange(T), "right") + 1 for c in cuts])


@cache
def wanted(case, T):
    """What one device makes of it, whatever the order."""
    marks = packed(T) if case.packed else None
    places = Places(None, None if marks is None else (marks, marks))

    def whole(q, k, v, sinks):
        scores = case.scores(sinks)
        return attention_with_lse(q, k, v, case.mask, scores, places, "reference")

    return everything(whole, *case.inputs(T))


def check(exchange, mesh, case, T=48, implementation=None):
    """Compares an exchange on a mesh with one device, in values and all gradients."""
    reorder = lambda x: zigzag(x, case.ways) if case.ways else x
    restore = lambda x: unzigzag(x, case.ways) if case.ways else x
    order = jnp.broadcast_to(jnp.arange(T), (B, T))
    given = reorder(order) if case.ways else None, reorder(packed(T)) if case.packed else None

    def one(q, k, v, sinks, given):
        places = Places(*(None if x is None else (x, x) for x in given))
        return context_attention_with_lse(
            *(q, k, v, case.mask, exchange),
            scores=case.scores(sinks),
            places=places,
            implementation=implementation,
        )

    def split(q, k, v, sinks):
        found = on(mesh, exchange, one)(*map(reorder, (q, k, v)), sinks, given)
        return tuple(map(restore, found))

    same(everything(split, *case.inputs(T)), wanted(case, T))


CASES = {
    "causal": Case(),
    "full": Case(FULL),
    "window": Case(Mask(window=7)),
    "both sides of a window": Case(Mask(causal=False, window=5)),
    "packed": Case(packed=True),
    "packed, seen both ways": Case(FULL, packed=True),
    "grouped": Case(heads=(8, 2)),
    "one key head": Case(heads=(8, 1), value=6),
    "heads that group unevenly": Case(heads=(24, 6)),
    "chunks and a prefix": Case(Mask(chunk=9, prefix=3)),
    "zig-zag": Case(ways=4),
    "zig-zag, packed, window": Case(Mask(window=20), (4, 2), packed=True, ways=4),
    "scale, cap, slopes, sinks": Case(extras=True),
    "slopes both ways, zig-zag": Case(FULL, (4, 2), ways=4, extras=True),
}
FLAT = {"gather": Gather("context"), "ring": RING, "all-to-all": AllToAll("context")}
NESTED = {
    "all-to-all in a ring": AllToAll("context", Ring("outer")),
    "all-to-all in a gather": AllToAll("context", Gather("outer")),
}


# What each way of exchange does on its own account; all of it is in the slow test below.
OWN = {
    "ring": [
        "causal",
        "full",
        "window",
        "packed",
        "grouped",
        "chunks and a prefix",
        "scale, cap, slopes, sinks",
        "zig-zag, packed, window",
    ],
    "gather": ["causal", "full", "packed", "slopes both ways, zig-zag"],
    "all-to-all": [
        "packed",
        "one key head",
        "heads that group unevenly",
        "scale, cap, slopes, sinks",
        "zig-zag, packed, window",
    ],
}


@pytest.mark.parametrize("name, case", [(name, case) for name in OWN for case in OWN[name]])
def test_four_devices_equal_one(name, case):
    check(FLAT[name], mesh(4), CASES[case])


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("case", ["packed", "slopes both ways, zig-zag"])
def test_two_by_two_devices_equal_one(name, case):
    check(NESTED[name], mesh(2, 2), CASES[case])


GRID = [(sizes, name) for sizes in [(2,), (4,), (8,)] for name in FLAT]
GRID += [(sizes, name) for sizes in [(2, 2), (2, 4), (4, 2)] for name in NESTED]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes, name", GRID)
def test_every_mesh_equals_one_device(sizes, name, case):
    N, K = CASES[case].heads
    case = replace(CASES[case], heads=(2 * N, 2 * K) if N % sizes[-1] else (N, K))
    check((FLAT | NESTED)[name], mesh(*sizes), case)


@pytest.mark.parametrize("name", [*FLAT, *NESTED])
def test_eight_devices_equal_one(name):
    case = Case(Mask(window=20), (8, 2), packed=True, ways=8)
    check((FLAT | NESTED)[name], mesh(8) if name in FLAT else mesh(2, 4), case)


@pytest.mark.parametrize("ways", [0, 4])
def test_tiles_within_a_ring(ways):
    check(RING, mesh(4), Case(heads=(2, 1), ways=ways, packed=True), 160, "xla")


def test_the_reference_is_attention_to_the_whole():
    exchange, case = AllToAll("context", Ring("outer")), Case()

    def one(q, k, v, sinks, given):
        return reference(q, k, v, case.mask, exchange.axes)

    split = lambda q, k, v, sinks: on(mesh(2, 2), exchange, one)(q, k, v, sinks, (None, None))
    same(everything(split, *case.inputs(48)), wanted(case, 48))


@pytest.mark.parametrize("name", [*FLAT, *NESTED])
def test_what_each_query_sees_is_its_own(name):
    """Each query sees one key, its own, and the values say whose they are: any misorder shows."""
    exchange = (FLAT | NESTED)[name]
    q, k, _ = draw(16)
    codes = jnp.arange(B * 16 * 4 * 2, dtype=jnp.float32).reshape(B, 16, 4, 2)
    run = lambda q, k, v, sinks, given: context_attention(q, k, v, Mask(window=1), exchange)
    run = on(mesh(4) if name in FLAT else mesh(2, 2), exchange, run)
    assert (jax.jit(run)(q, k, codes, None, None) == codes).all()


@pytest.mark.parametrize("name", FLAT)
def test_bfloat16_is_near_float32(name):
    exchange, sinks = FLAT[name], jnp.linspace(-1.0, 2.0, 4)
    q, k, v = (x.astype(jnp.bfloat16) for x in draw(48, (4, 2)))

    def run(q, k, v, sinks, given):
        return context_attention_with_lse(q, k, v, CAUSAL, exchange, scores=Scores(sinks=sinks))

    split = lambda q, k, v, sinks: on(mesh(4), exchange, run)(q, k, v, sinks, None)
    whole = lambda q, k, v, sinks: attention_with_lse(q, k, v, CAUSAL, Scores(sinks=sinks))
    exact = everything(whole, *[x.astype(jnp.float32) for x in (q, k, v)], sinks)
    found = everything(split, q, k, v, sinks)
    dtypes = jnp.bfloat16, jnp.float32, *[jnp.bfloat16] * 3, jnp.float32
    assert tuple(x.dtype for x in found) == dtypes
    same(found, exact, 1e-2)


@pytest.mark.parametrize("around", ["vmap", "remat", "scan"])
def test_a_ring_under_transformations(around):
    run = lambda q, k, v, sinks, given: context_attention_with_lse(q, k, v, CAUSAL, RING)
    split = lambda q, k, v, sinks: on(mesh(4), RING, run)(q, k, v, sinks, None)
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)

    def several(q, k, v, sinks):
        pairs = [jnp.stack([x, 2 * x]) for x in (q, k, v)]
        if around == "vmap":
            return first(jax.vmap(lambda q, k, v: split(q, k, v, sinks))(*pairs))
        return first(jax.lax.map(lambda x: split(x[0], x[1], x[2], sinks), pairs))

    around_it = jax.checkpoint(split) if around == "remat" else several
    same(everything(around_it, *Case().inputs(48)), wanted(Case(), 48))


def test_a_ring_skips_what_no_query_sees():
    q, k, v = draw(16)
    v = v.at[:, 12:].set(jnp.nan)  # of the last device; 0 · NaN would be NaN
    run = lambda q, k, v, sinks, given: context_attention(q, k, v, CAUSAL, RING)
    split = lambda q, k, v: on(mesh(4), RING, run)(q, k, v, None, None)
    out, pull = jax.vjp(jax.jit(split), q, k, v)
    grads = pull(jnp.ones_like(out).at[:, 12:].set(0))
    assert jnp.isfinite(out[:, :12]).all() and jnp.isnan(out[:, 12:]).all()
    assert jnp.isfinite(grads[0][:, :12]).all()


def compiled(exchange, T):
    """The program of values and gradients of one sequence, too long for one device's tiles."""
    run = lambda q, k, v, sinks, given: context_attention(q, k, v, CAUSAL, exchange)
    split = lambda q, k, v: on(mesh(8), exchange, run)(q, k, v, None, None).sum()
    where = NamedSharding(mesh(8), PartitionSpec(None, "context"))
    x = jax.ShapeDtypeStruct((1, T, 1, 64), jnp.float32, sharding=where)
    return jax.jit(jax.value_and_grad(split, (0, 1, 2))).lower(x, x, x).compile()


def held(program):
    stats = program.memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


def test_a_ring_sends_and_gathers_nothing_and_never_holds_all_keys():
    T = 8 * 1024
    ring, gather = (compiled(exchange, T) for exchange in (RING, Gather("context")))
    texts = [program.as_text() or "" for program in (ring, gather)]
    assert "collective-permute" in texts[0] and "all-gather" not in texts[0]
    assert "all-gather" in texts[1] and "reduce-scatter" in texts[1]
    keys = T * 64 * 4
    assert held(ring) < 2 * keys < held(gather)


@pytest.mark.parametrize("ways", [1, 3, 4])
@pytest.mark.parametrize("array", [np, jnp])
def test_zigzag_gives_each_device_an_early_and_a_late_chunk(array, ways):
    T = 4 * ways
    codes = 100 * array.arange(B)[:, None, None] + array.arange(T)[None, :, None]
    parts = np.asarray(zigzag(codes, ways)).reshape(B, ways, 4)
    for d in range(ways):
        late = T - 2 * d - 2
        assert (parts[0, d] == [2 * d, 2 * d + 1, late, late + 1]).all()
        assert (parts[1, d] == 100 + parts[0, d]).all()
    assert isinstance(zigzag(codes, ways), np.ndarray if array is np else jax.Array)
    assert (unzigzag(zigzag(codes, ways), ways) == codes).all()


@pytest.mark.parametrize("ways", [2, 3, 4, 8])
def test_devices_send_their_halves_into_zigzag_order_and_back(ways):
    T = 4 * ways
    codes = jnp.arange(B * T).reshape(B, T)
    split = PartitionSpec(None, "context")

    def there_and_back(x):
        there = to_zigzag(x, "context")
        return there, from_zigzag(there, "context")

    both = jax.shard_map(
        there_and_back, mesh=mesh(ways), in_specs=split, out_specs=split, check_vma=False
    )
    there, back = jax.jit(both)(codes)
    np.testing.assert_array_equal(there, zigzag(codes, ways))
    np.testing.assert_array_equal(back, codes)
    np.testing.assert_array_equal(zigzag_places(T, ways), zigzag(np.arange(T)[None], ways)[0])


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_zigzag_makes_work_equal(ways):
    """Pairs of chunks that a causal mask shows, in each step of the ring, on each device."""
    in_order = np.arange(2 * ways).reshape(ways, 2)
    work = lambda chunks: np.asarray(
        [
            [(chunks[d][:, None] >= chunks[(d - j) % ways]).sum() for d in range(ways)]
            for j in range(ways)
        ]
    )
    balanced = work(order(ways).reshape(ways, 2))
    assert (balanced == balanced[:, :1]).all() and balanced[1:].max() == 2
    assert work(in_order).sum(0).min() < work(in_order).sum(0).max()


def call(exchange: Exchange = RING, heads=(4, 4), keys=16, **options):
    q, k, v = draw(16, heads)
    run = lambda q, k, v, sinks, given: context_attention(q, k, v, CAUSAL, exchange, **options)
    return on(mesh(4), exchange, run)(q, k[:, :keys], v[:, :keys], None, None)


def outside():
    q, k, v = draw(4)
    return context_attention(q, k, v, CAUSAL, RING)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: call(AllToAll("context"), (6, 6)), "6 query heads do not divide into the 4"),
        (lambda: call(scores=Scores(bias=jnp.zeros((1, 1, 4, 4)))), "scores.bias"),
        (lambda: call(keys=8), "4 queries and 2 keys"),
        (lambda: call(implementation="refrence"), "did you mean 'reference'"),
        (lambda: AllToAll("context", RING), "axes of their own"),
        (lambda: zigzag(jnp.zeros((1, 12)), 4), "12 does not divide into 8 chunks"),
        (lambda: outside(), "'context' is not a mesh axis"),
    ],
)
def test_wrong_calls_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()
