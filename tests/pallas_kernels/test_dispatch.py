"""Dispatch: all ways agree with every expert on every token, in values and all gradients."""

from functools import partial

import absent
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.errors import ConfigError
from jscale.pallas_kernels.dispatch import (
    AllToAll,
    Gather,
    Local,
    OneHot,
    Ragged,
    combine,
    dispatch,
)
from jscale.pallas_kernels.dispatch.order import by_expert, collect, weigh
from jscale.pallas_kernels.dispatch.reference import reference
from jscale.pallas_kernels.grouped_matmul import grouped_matmul
from jscale.pallas_kernels.grouped_matmul.rows import taken

FLOAT32 = 1e-5  # relative Frobenius error
SLOW = pytest.mark.slow
P = jax.P


def near(found, wanted, limit=FLOAT32):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= limit * max(np.linalg.norm(b), 1e-6)


# Two experts of eight take nearly all, one takes all, some have none, some tokens are padding.
LOADS = {
    "even": lambda key, shape, E: jax.random.randint(key, shape, 0, E),
    "skewed": lambda key, shape, E: jnp.minimum(jax.random.geometric(key, 0.6, shape) - 1, E - 1),
    "one": lambda key, shape, E: jnp.full(shape, E - 1),
    "padding": lambda key, shape, E: jax.random.randint(key, shape, -E // 2, E + 3),
    "nobody": lambda key, shape, E: jnp.full(shape, E),
}


def draw(load="even", tokens=32, choices=2, experts=8, D=6, F=4, seed=0):
    keys = jax.random.split(jax.random.key(seed), 5)
    x = jax.random.normal(keys[0], (tokens, D))
    w = jax.random.normal(keys[1], (experts, D, F))
    weights = jax.random.uniform(keys[2], (tokens, choices))
    back = jax.random.normal(keys[3], (tokens, F))
    return x, w, weights, LOADS[load](keys[4], (tokens, choices), experts), back


def layer(by, experts, x, w, weights, choices):
    """One grouped product between dispatch and combine; and how many choices were dropped."""
    received, ticket = dispatch(x, choices, experts, by)
    y = grouped_matmul(received.x, w, received.sizes, rows=received.rows)
    return combine(y, weights, ticket, by), received.dropped


def everything(run, x, w, weights, choices, back):
    """Results, gradients of tokens, matrices and weights, and what `run` says beside."""

    def both(x, w, weights):
        out, pull, more = jax.vjp(lambda *a: run(*a, choices), x, w, weights, has_aux=True)
        return (out, *pull(back)), more

    return jax.jit(both)(x, w, weights)


def wanted(x, w, weights, choices, back):
    run = lambda x, w, weights, choices: (
        reference(x, choices, weights, w.shape[0], lambda e, x: x @ w[e]),
        (),
    )
    return everything(run, x, w, weights, choices, back)[0]


def split(by, axes, x, w, weights, choices):
    """The layer on a mesh: tokens over `fsdp` and `expert`, matrices over `expert`, `tensor`."""
    mesh = jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * len(axes)
    )
    rows, E = P(("fsdp", "expert")), w.shape[0]

    def each(x, w, weights, choices):
        out, dropped = layer(by, E, x, w, weights, choices)
        return out, dropped[None]

    return jax.shard_map(
        each,
        mesh=mesh,
        in_specs=(rows, P("expert", None, "tensor"), rows, rows),
        out_specs=(P(("fsdp", "expert"), "tensor"), rows),
        check_vma=False,
    )(x, w, weights, choices)


@pytest.mark.parametrize("by", [Local(), OneHot()], ids=["local", "one-hot"])
@pytest.mark.parametrize("load", LOADS)
def test_without_an_exchange(load, by):
    problem = draw(load)
    found, dropped = everything(partial(layer, by, 8), *problem)
    near(found, wanted(*problem))
    assert dropped == 0


WAYS = {"gather": Gather, "all-to-all": AllToAll, "ragged": Ragged, "one-hot": OneHot}
MESHES = [
    dict(fsdp=1, expert=8, tensor=1),
    dict(fsdp=2, expert=2, tensor=2),
    dict(fsdp=1, expert=4, tensor=2),
    dict(fsdp=4, expert=2, tensor=1),
    dict(fsdp=8, expert=1, tensor=1),
]
CORE = [("skewed", MESHES[1]), ("padding", MESHES[0]), ("one", MESHES[2])]
GRID = [
    pytest.param(load, axes, marks=() if (load, axes) in CORE else pytest.mark.slow)
    for load in LOADS
    for axes in MESHES
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("load, axes", GRID, ids=str)
def test_every_exchange_equals_one_device(way, load, axes):
    problem = draw(load)
    found, dropped = everything(partial(split, WAYS[way]("expert"), axes), *problem)
    near(found, wanted(*problem))
    assert dropped.sum() == 0


@settings(deadline=None, max_examples=5)
@given(
    st.integers(0, 99),
    st.integers(1, 8),
    st.sampled_from([1, 2, 5, 64, 256]),
    st.sampled_from([None, 1, 9]),
)
def test_there_and_back_is_the_identity(seed, choices, experts, rows):
    """What is permuted and unpermuted comes back, in values and gradients, unless dropped."""
    x, _, _, chosen, _ = draw("padding", 7, choices, experts, seed=seed)
    order = by_expert(chosen, experts, rows)
    count = order.origin.shape[0]
    kept = np.asarray(order.place < count)

    def there_and_back(x, weights):
        y = collect(x, order.token, order.place)
        return weigh(y, weights, order.origin, order.place)

    weights = jnp.ones(chosen.shape)
    out, pull = jax.vjp(jax.jit(there_and_back), x, weights)
    near(out, x * kept.sum(1)[:, None])
    near(pull(out), (out * kept.sum(1)[:, None], (x * out).sum(1)[:, None] * kept))
    there = np.asarray((chosen >= 0) & (chosen < experts))
    assert (kept <= there).all() and kept.sum() == min(count, there.sum()) == order.sizes.sum()
    assert sorted(np.asarray(order.place)[kept]) == list(range(kept.sum()))
    owner = np.repeat(np.arange(experts), np.asarray(order.sizes))
    origin = np.asarray(order.origin)[: owner.size]
    assert (np.asarray(chosen).reshape(-1)[origin] == owner).all()


@pytest.mark.parametrize("way", WAYS)
def test_over_devices_and_back_is_the_identity(way):
    """Rows that no expert changes come back as they were, and so do gradients."""
    x, _, _, choices, back = draw("padding", choices=3, F=6)
    mesh = jax.make_mesh((4,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))

    def there_and_back(x, weights, choices):
        received, ticket = dispatch(x, choices, 8, by := WAYS[way]("expert"))
        return combine(taken(received.x, received.rows), weights, ticket, by)

    run = jax.shard_map(
        there_and_back, mesh=mesh, in_specs=P("expert"), out_specs=P("expert"), check_vma=False
    )
    there = np.asarray((choices >= 0) & (choices < 8))
    given = x, None, jnp.ones(choices.shape), choices, back
    with_none = lambda x, w, weights, choices: (run(x, weights, choices), ())
    (out, by_tokens, _, by_weights), _ = everything(with_none, *given)
    near(out, x * there.sum(1)[:, None])
    near(by_tokens, back * there.sum(1)[:, None])
    near(by_weights, (x * back).sum(1)[:, None] * there)


@pytest.mark.parametrize("way", WAYS)
def test_what_finds_no_room_is_counted_and_gives_nothing(way):
    """With bounded buffers results are those of the choices that were kept, and no other."""
    x, w, weights, choices, back = draw("skewed", seed=3)
    axes = dict(fsdp=1, expert=4, tensor=1)
    by = WAYS[way]("expert", 5)
    (out, *grads), dropped = everything(partial(split, by, axes), x, w, weights, choices, back)
    lost = int(dropped.sum())
    # Which choices were kept is read off the gradients of their weights.
    kept = np.asarray(grads[2]) != 0
    assert kept.sum() == choices.size - lost and 0 < lost < choices.size
    near((out, *grads), wanted(x, w, weights, jnp.where(kept, choices, -1), back))


@pytest.mark.parametrize("way", [Local, OneHot])
def test_a_device_alone_has_a_bound_as_well(way):
    """The choices of the last experts are dropped, and the last tokens of the one that is cut."""
    x, w, weights, choices, back = draw("padding", seed=4)
    run = partial(layer, way(rows=20), 8)
    (out, *grads), dropped = everything(run, x, w, weights, choices, back)
    flat = np.asarray(choices).reshape(-1)
    valid = (flat >= 0) & (flat < 8)
    ranked = np.argsort(np.where(valid, flat, 8), kind="stable")
    kept = np.isin(np.arange(64), ranked[: min(20, valid.sum())]).reshape(choices.shape)
    assert dropped == valid.sum() - 20 > 0
    near((out, *grads), wanted(x, w, weights, jnp.where(kept, choices, -1), back))


def test_a_buffer_for_all_experts_of_a_device_drops_less():
    """Room for so many rows in all, and the same room divided among senders."""
    problem = draw("skewed", tokens=128, seed=1)
    axes = dict(fsdp=1, expert=4, tensor=1)
    lost = lambda by: int(everything(partial(split, by, axes), *problem)[1].sum())
    assert 0 < lost(Ragged("expert", 128)) < lost(AllToAll("expert", 16))


def test_a_bounded_buffer_is_what_the_program_holds():
    """The memory of a ragged exchange follows its bound, not the worst case."""

    def held(rows):
        x, w, weights, choices, back = draw(tokens=2048, D=64, F=8)
        run = partial(everything, partial(split, Ragged("expert", rows), MESHES[0]))
        stats = jax.jit(run).lower(x, w, weights, choices, back).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    assert held(640) < held(None) / 2


SENDS = {Gather: "all-gather", AllToAll: "all-to-all", Ragged: "ragged-all-to-all"}


# The grouped product that is chosen there goes through Triton, which JAX 0.12 means to leave.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize("way", SENDS)
@pytest.mark.parametrize("machine", ["h100:4", pytest.param("v5p-8", marks=pytest.mark.slow)])
def test_exchanges_compile_for_machines_that_are_not_here(machine, way):
    """Forward and backward; where the chip has a ragged exchange, it is used."""
    mesh, each = absent.mesh_of(machine, expert=4), P("expert")

    def loss(x, w, weights, choices):
        run = lambda *given: layer(way("expert", 64), 8, *given)[0]
        out = jax.shard_map(run, mesh=mesh, in_specs=(each,) * 4, out_specs=each, check_vma=False)
        return out(x, w, weights, choices).sum()

    shaped = lambda a: jax.ShapeDtypeStruct(
        a.shape, a.dtype, sharding=jax.NamedSharding(mesh, each)
    )
    given = [shaped(a) for a in draw(tokens=128, D=32, F=16)[:4]]
    text = absent.compiled_on(mesh, jax.grad(loss, (0, 1, 2)), *given).as_text()
    assert SENDS[way] in text


@pytest.mark.parametrize("around", ["remat", "scan"])
def test_under_transformations(around):
    x, w, weights, choices, back = draw("skewed")

    def wrapped(x, w, weights, choices):
        one = lambda x: layer(Ragged("expert"), 8, x, w, weights, choices)
        if around == "remat":
            return jax.checkpoint(one)(x)
        return jax.tree.map(lambda a: a[0], jax.lax.scan(lambda c, x: (c, one(x)), 0, x[None])[1])

    mesh = jax.make_mesh((2,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    each = P("expert")

    def run(*given):
        inner = lambda *a: (lambda out, lost: (out, lost[None]))(*wrapped(*a))
        return jax.shard_map(
            inner, mesh=mesh, in_specs=(each,) * 4, out_specs=(each, each), check_vma=False
        )(*given)

    found, _ = everything(run, x, w, weights, choices, back)
    near(found, wanted(x, w, weights, choices, back))


def test_each_of_a_batch_by_itself():
    """vmap over problems, each with choices of its own."""
    problems = [draw("skewed", tokens=9, seed=seed) for seed in (0, 1)]
    x, w, weights, choices, back = (jnp.stack(a) for a in zip(*problems, strict=True))
    run = lambda *given: layer(Local(), 8, *given)[0]

    def both(x, w, weights, choices, back):
        out, pull = jax.vjp(lambda *a: run(*a, choices), x, w, weights)
        return out, *pull(back)

    found = jax.jit(jax.vmap(both))(x, w, weights, choices, back)
    for n, problem in enumerate(problems):
        near([a[n] for a in found], wanted(*problem))


@pytest.mark.parametrize(
    "tokens, choices, experts",
    [(0, 2, 4), (1, 1, 1)]
    + [pytest.param(*p, marks=SLOW) for p in [(13, 3, 5), (40, 8, 64), (33, 5, 256), (129, 8, 8)]],
)
def test_any_choices_without_an_exchange(tokens, choices, experts):
    problem = draw("padding", tokens, choices, experts, seed=5)
    near(everything(partial(layer, Local(), experts), *problem)[0], wanted(*problem))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "tokens, choices, experts",
    [(0, 2, 8)]
    + [pytest.param(*p, marks=SLOW) for p in [(8, 1, 8), (24, 3, 8), (40, 8, 16), (16, 7, 256)]],
)
def test_any_choices_equal_one_device(way, tokens, choices, experts):
    """None, and one to eight choices, up to 256 experts."""
    problem = draw("padding", tokens, choices, experts, seed=6)
    found, dropped = everything(partial(split, WAYS[way]("expert"), MESHES[1]), *problem)
    near(found, wanted(*problem))
    assert dropped.sum() == 0


FLAWED = [
    (dict(choices=jnp.zeros((3, 2), jnp.int32)), r"must be \[T, C\] with the T=32"),
    (dict(choices=jnp.zeros((32, 2))), "choices must be integers, not float32"),
    (dict(x=jnp.zeros((32, 2, 2))), r"x must be real numbers \[T, D\], not float32 \(32, 2, 2\)"),
    (dict(x=jnp.zeros((32, 2), jnp.int32)), "x must be real numbers .* not int32"),
    (dict(experts=0), "experts must be a whole number of at least 1, not 0"),
    (dict(by=Local), "by must be a way to dispatch"),
    (dict(by=Gather("expert")), "axis 'expert' is no mesh axis"),
    (dict(by=AllToAll("expert")), "axis 'expert' is no mesh axis"),
    (dict(by=Ragged("expert")), "axis 'expert' is no mesh axis"),
    (dict(by=OneHot("expert")), "axis 'expert' is no mesh axis"),
    (dict(by=OneHot(), y=jnp.zeros((3, 4))), r"must have a result for each of the 64 rows"),
    (dict(by=OneHot(), weights=jnp.zeros((32, 3))), r"weights \(32, 3\) must be those of choices"),
    (dict(y=jnp.zeros((3, 4))), r"y \(3, 4\) must have a result for each of the 64 rows"),
    (dict(y=jnp.zeros(64)), r"y must be real numbers \[M, F\]"),
    (dict(weights=jnp.zeros((32, 3))), r"weights \(32, 3\) must be those of choices \(32, 2\)"),
    (
        dict(weights=jnp.zeros((32, 2), jnp.int32)),
        r"weights must be real numbers \[T, C\], not int",
    ),
]


@pytest.mark.parametrize("flaw, message", FLAWED)
def test_wrong_calls_are_named(flaw, message):
    x, _, weights, choices, _ = draw()
    given = dict(x=x, weights=weights, choices=choices, experts=8, by=Local(), y=jnp.zeros((64, 4)))
    given |= flaw
    unchecked = lambda f: getattr(f, "__wrapped__", f)  # without the types that tests check
    with pytest.raises(ConfigError, match=message):
        _, ticket = unchecked(dispatch)(given["x"], given["choices"], given["experts"], given["by"])
        unchecked(combine)(given["y"], given["weights"], ticket, given["by"])


@pytest.mark.parametrize("way", WAYS.values())
def test_experts_that_do_not_divide_are_named(way):
    x, _, _, choices, _ = draw()
    mesh = jax.make_mesh((4,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
    run = lambda x, choices: dispatch(x, choices, 6, way("expert"))[0].x
    each = P("expert")
    with pytest.raises(ConfigError, match="6 experts do not divide over 4 devices"):
        jax.shard_map(run, mesh=mesh, in_specs=(each, each), out_specs=each)(x, choices)


@pytest.mark.parametrize("way", WAYS.values())
def test_no_room_at_all_is_named(way):
    with pytest.raises(ConfigError, match="must be a whole number of at least 1 or None, not 0"):
        way("expert", 0)
    with pytest.raises(ConfigError, match="Local.rows must be"):
        Local(0)
