"""Retention against its recurrence and its parallel form, in values and all gradients."""

from contextlib import nullcontext
from functools import partial

import absent
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_resources import plain, resources

from jscale.errors import ConfigError
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.interpret import interpreted
from jscale.pallas_kernels.retention import retention
from jscale.pallas_kernels.retention.choice import LEAST, OPERATION, Call, count, preferred
from jscale.pallas_kernels.retention.reference import parallel, reference
from jscale.pallas_kernels.retention.tpu import kernel
from jscale.pallas_kernels.retention.triton import Sizes, triton
from jscale.pallas_kernels.retention.xla import chunked

OTHERS = [name for name in OPERATION.implementations if name != "reference"]
FLOAT32, BFLOAT16 = 1e-5, 1e-2  # relative Frobenius error
# Of RetNet's first heads; next to none, and none; so strong that γ² is 0, and γ = 0.
DECAYS = np.log1p([-(2.0**-5), -(2.0**-6), -(2.0**-30), -0.0]).tolist() + [-60.0, LEAST]


def draw(seed, B, T, N, H, V, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = (B, T, N, H), (B, T, N, H), (B, T, N, V)
    q, k, v = (
        jax.random.normal(key, shape).astype(dtype)
        for key, shape in zip(keys[:3], shapes, strict=True)
    )
    return q, k, v, jax.random.normal(keys[3], (B, N, H, V))


def decays(heads, seed=0):
    return jnp.asarray(np.random.default_rng(seed).choice(DECAYS, heads), jnp.float32)


def everything(run, q, k, v, state):
    """Both results, and the gradients of q, k, v and the state from both."""
    slope = jax.random.normal(jax.random.key(9), v.shape)
    more = jax.random.normal(jax.random.key(8), state.shape)

    def loss(*inputs):
        out, last = run(*inputs)
        return (out.astype(jnp.float32) * slope).sum() + (last * more).sum(), (out, last)

    rule = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
    (_, results), grads = jax.jit(rule)(q, k, v, state)
    return *results, *grads


def same(found, wanted, limit=FLOAT32):
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all() and a.shape == b.shape
        # A gradient may be exactly 0: numbers are of size 1, and so is what they are compared with.
        assert np.linalg.norm(a - b) <= limit * max(np.linalg.norm(b), 0.1 * np.sqrt(b.size))


def around(name):
    return interpreted() if name in ("tpu", "triton") else nullcontext()


def test_the_recurrence_equals_a_loop_in_float64():
    q, k, v, state = draw(0, 2, 9, 3, 4, 5)
    gamma = 1 - 2.0 ** (-5 - np.arange(3))
    runs = np.sort(np.random.default_rng(0).integers(0, 3, (2, 9)), -1)
    out, last = retention(
        q,
        k,
        v,
        jnp.log(jnp.asarray(gamma)),
        state=state,
        segments=jnp.asarray(runs),
        implementation="reference",
    )
    Q, K, V, S = (np.asarray(x, np.float64) for x in (q, k, v, state))
    wanted = np.zeros(V.shape)
    for b, n in np.ndindex(2, 3):
        carried = S[b, n]
        for t in range(9):
            if t and runs[b, t] != runs[b, t - 1]:
                carried = np.zeros_like(carried)
            carried = gamma[n] * carried + np.outer(K[b, t, n], V[b, t, n])
            wanted[b, t, n] = Q[b, t, n] @ carried
        same([last[b, n]], [carried], 1e-6)
    same([out], [wanted], 1e-6)


@settings(deadline=None, max_examples=5)
@given(
    st.integers(0, 99),
    st.integers(1, 40),
    st.sampled_from([(1, 1, 1), (3, 4, 6), (2, 5, 3)]),
    st.sampled_from([1, 7, 8, 16]),
    st.booleans(),
)
def test_chunks_and_the_recurrence_equal_the_parallel_form(seed, T, sizes, places, packed):
    given = draw(seed, 2, T, *sizes)
    decay = decays(sizes[0], seed)
    marks = np.sort(np.random.default_rng(seed).integers(0, 4, (2, T)), -1)
    runs = count(jnp.asarray(marks)) if packed else None
    wanted = everything(lambda q, k, v, s: parallel(q, k, v, decay, s, runs), *given)
    same(everything(lambda q, k, v, s: reference(q, k, v, decay, s, runs), *given), wanted)
    same(everything(lambda q, k, v, s: chunked(q, k, v, decay, s, runs, places), *given), wanted)


@settings(deadline=None, max_examples=3)
@given(
    st.integers(0, 99),
    st.integers(1, 50),
    st.sampled_from([(1, 1, 1), (2, 8, 24), (2, 5, 3)]),
    st.sampled_from([8, 16]),
)
def test_the_kernel_equals_the_parallel_form(seed, T, sizes, places):
    given, decay = draw(seed, 2, T, *sizes), decays(sizes[0], seed)
    with interpreted():
        found = everything(lambda q, k, v, s: kernel(q, k, v, decay, s, size=places), *given)
    same(found, everything(lambda q, k, v, s: parallel(q, k, v, decay, s), *given))


@settings(deadline=None, max_examples=2)
@given(
    st.integers(0, 99),
    st.integers(1, 50),
    st.sampled_from([(1, 1, 1), (2, 8, 24), (2, 5, 40), (1, 24, 3)]),
    st.sampled_from([Sizes(16, 16), Sizes(16, 32)]),
)
def test_the_gpu_kernels_equal_the_parallel_form(seed, T, sizes, size):
    given, decay = draw(seed, 2, T, *sizes), decays(sizes[0], seed)
    with interpreted():
        found = everything(lambda q, k, v, s: triton(q, k, v, decay, s, size=size), *given)
    same(found, everything(lambda q, k, v, s: parallel(q, k, v, decay, s), *given))


@pytest.mark.parametrize("name", OTHERS)
def test_bfloat16_is_near_the_float32_reference(name):
    q, k, v, state = draw(0, 2, 300, 2, 16, 32, jnp.bfloat16)
    decay = jnp.asarray(DECAYS[:2], jnp.float32)
    run = lambda name: lambda q, k, v, s: retention(q, k, v, decay, state=s, implementation=name)
    with around(name):
        found = everything(run(name), q, k, v, state)
    assert all(found[i].dtype == jnp.bfloat16 for i in (0, 2, 3, 4))
    assert found[1].dtype == found[5].dtype == jnp.float32
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    same(found, everything(run("reference"), q, k, v, state), BFLOAT16)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("pieces", [(33, 7), (0, 39, 1)])
def test_a_sequence_may_come_in_pieces(name, pieces):
    given, decay = draw(1, 2, 40, 3, 4, 6), decays(3)

    def run(q, k, v, state):
        outs, at = [], 0
        for length in pieces:
            part = [x[:, at : at + length] for x in (q, k, v)]
            fits = length >= 16 or name == "xla"
            take = name if fits else None
            out, state = retention(
                part[0], part[1], part[2], decay, state=state, implementation=take
            )
            outs, at = [*outs, out], at + length
        return jnp.concatenate(outs, 1), state

    with around(name):
        found = everything(run, *given)
    same(found, everything(lambda q, k, v, s: parallel(q, k, v, decay, s), *given))


def test_token_by_token_equals_the_whole():
    (q, k, v, state), decay = draw(2, 1, 12, 2, 4, 4), decays(2)
    step = jax.jit(lambda q, k, v, s: retention(q, k, v, decay, state=s))
    outs, carried = [], state
    for t in range(12):
        here = slice(t, t + 1)
        out, carried = step(q[:, here], k[:, here], v[:, here], carried)
        outs.append(out)
    same([jnp.concatenate(outs, 1), carried], retention(q, k, v, decay, state=state))


def test_nothing_in_gives_nothing_out_and_keeps_the_state():
    q, k, v, state = draw(0, 2, 0, 3, 4, 6)
    out, last = retention(q, k, v, decays(3), state=state)
    assert out.shape == (2, 0, 3, 6) and (last == state).all()


def test_segments_equal_sequences_of_their_own():
    (q, k, v, state), decay = draw(3, 1, 30, 2, 4, 4), decays(2)
    marks = jnp.where(jnp.arange(30) < 11, 5, -3)[None]
    out, last = retention(q, k, v, decay, state=state, segments=marks)
    first, _ = retention(q[:, :11], k[:, :11], v[:, :11], decay, state=state)
    second, end = retention(q[:, 11:], k[:, 11:], v[:, 11:], decay)
    same([out, last], [jnp.concatenate([first, second], 1), end])


@pytest.mark.parametrize("decay", [DECAYS[2], -200.0, -np.inf])
def test_long_sequences_neither_overflow_nor_vanish(decay):
    given, log = draw(4, 1, 3000, 1, 4, 4), jnp.full(1, decay, jnp.float32)
    run = lambda name: lambda q, k, v, s: retention(q, k, v, log, state=s, implementation=name)
    same(everything(run("xla"), *given), everything(run("reference"), *given))


def test_no_gradient_flows_to_the_decay():
    given, decay = draw(0, 1, 20, 2, 4, 4), jnp.asarray(DECAYS[:2], jnp.float32)
    for name in ("reference", "xla"):
        loss = lambda d, name=name: retention(*given[:3], d, implementation=name)[0].sum()
        assert (jax.grad(loss)(decay) == 0).all()


def memory(run, length, H=8):
    x = jax.ShapeDtypeStruct((1, length, 1, H), jnp.float32)
    state = jax.ShapeDtypeStruct((1, 1, H, H), jnp.float32)
    stats = jax.jit(partial(everything, run)).lower(x, x, x, state).compile().memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


def test_memory_grows_with_the_length_and_not_its_square():
    decay = jnp.zeros(1)
    chunks = lambda q, k, v, s: chunked(q, k, v, decay, s)
    whole = lambda q, k, v, s: parallel(q, k, v, decay, s)
    short, long = memory(chunks, 2048), memory(chunks, 8192)
    assert long < 5 * short and short < 2048 * 2048 * 4 < memory(whole, 2048)


# The interpreter has effects, which remat refuses; kernels have none, as compiling shows.
INSIDE = [("xla", inside) for inside in ("vmap", "remat", "scan", "shard_map")]
INSIDE += [("tpu", inside) for inside in ("vmap", "scan")]
INSIDE += [("triton", inside) for inside in ("vmap", "remat")]


@pytest.mark.parametrize("name, inside", INSIDE)
def test_under_transformations(name, inside):
    given, decay = draw(4, 2, 20, 2, 4, 4), decays(2)
    one = lambda q, k, v, s: retention(q, k, v, decay, state=s, implementation=name)
    if inside == "vmap":
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)
        run = lambda *x: first(jax.vmap(one)(*(jnp.stack([a, 2 * a]) for a in x)))
    elif inside == "remat":
        run = jax.checkpoint(one)
    elif inside == "scan":
        step = lambda c, a: (c, one(*a))
        run = lambda *x: jax.tree.map(
            lambda y: y[0], jax.lax.scan(step, 0, [a[None] for a in x])[1]
        )
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
        rows = jax.sharding.PartitionSpec("data")
        run = jax.shard_map(one, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    with around(name):
        found = everything(run, *given)
    same(found, everything(lambda q, k, v, s: parallel(q, k, v, decay, s), *given))


def call(**options):
    return Call(1, 64, 1, 8, 8, "float32")._replace(**options)


def test_the_kernel_is_the_choice_for_a_tpu():
    chip = Device("tpu", "TPU v5")
    names = [name for name, _ in preferred(call(), chip)]
    assert names == ["tpu", "xla"]
    obstacle = OPERATION.implementations["tpu"].obstacle
    assert obstacle(call(), chip) is None
    assert "split over devices" in (obstacle(call(), chip._replace(whole=True)) or "")
    for wrong in (dict(segments=True), dict(length=3), dict(value=1024), dict(dtype="float16")):
        assert obstacle(call(**wrong), chip)


def test_the_kernels_are_the_choice_for_a_gpu():
    chip = Device("gpu", "NVIDIA H100")
    assert [name for name, _ in preferred(call(), chip)] == ["triton", "xla"]
    obstacle = OPERATION.implementations["triton"].obstacle
    assert obstacle(call(), chip) is None and obstacle(call(dtype="float16"), chip) is None
    for wrong in (
        dict(segments=True),
        dict(length=3),
        dict(head=512),
        dict(head=256, dtype="float32"),
        dict(dtype="float64"),
        dict(length=2**21),
    ):
        assert obstacle(call(**wrong), chip)


def retain(change):
    q, k, v, state = draw(0, 1, 20, 2, 4, 6)
    given = dict(q=q, k=k, v=v, decay=decays(2), state=state, segments=None, implementation=None)
    return retention(**(given | change))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(v=jnp.zeros((1, 20, 2, 6), jnp.bfloat16)), "must be of one dtype"),
        (dict(implementation="xlaa"), "did you mean 'xla'"),
        (dict(implementation="tpu"), "runs on tpu only"),
    ],
)
def test_wrong_calls_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        retain(wrong)


def compile_for(name, shape, dtype, around=lambda run: run):
    """The program of the kernels' gradients for a chip that is not here."""
    B, T, N, H, V = shape
    struct = lambda *s, d=dtype: jax.ShapeDtypeStruct(s, d)

    def loss(q, k, v, decay, state):
        run = lambda q, k, v, s: retention(q, k, v, decay, state=s)
        out, last = around(run)(q, k, v, state)
        return (out.astype(jnp.float32) ** 2).sum() + (last**2).sum()

    qk, other = struct(B, T, N, H), struct(B, T, N, V)
    given = qk, qk, other, struct(N, d=jnp.float32), struct(B, N, H, V, d=jnp.float32)
    return absent.compiled(name, jax.grad(loss, (0, 1, 2, 4)), *given)


def kernels(program, target="tpu_custom_call"):
    return (program.as_text() or "").count(f'custom_call_target="{target}"')


SHAPES = [(1, 1000, 2, 256, 432), (2, 333, 1, 64, 72), (1, 17, 1, 24, 40), (1, 600, 1, 512, 512)]


def test_the_kernel_compiles_for_a_chip_and_is_chosen_there(record_property):
    program = compile_for("v5p-8", SHAPES[0], jnp.bfloat16)
    assert kernels(program) == 2
    needs = plain(resources(program))
    record_property("resources", needs)
    assert len(needs) == 2 and all(0 < n < 2**27 for n in needs.values())


def test_the_kernel_compiles_within_remat_and_vmap():
    def around(run):  # over an axis of 1
        many = jax.checkpoint(jax.vmap(run))
        return lambda *x: jax.tree.map(lambda y: y[0], many(*(a[None] for a in x)))

    assert kernels(compile_for("v5p-8", SHAPES[2], jnp.bfloat16, around)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5p-8", "v6e-4", "tpu7x-8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_compiles_for_every_chip(name, shape, dtype):
    assert kernels(compile_for(name, shape, dtype)) == 2


# JAX 0.12 means to leave Triton for Mosaic-GPU; until it has, these kernels must compile.
LEAVING = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
PARTS = "forward", "later", "backward"


@LEAVING
def test_the_gpu_kernels_compile_and_are_chosen_there(record_property):
    program = compile_for("h100:1", SHAPES[0], jnp.bfloat16)
    assert kernels(program, "__gpu$xla.gpu.triton") == len(PARTS)
    needs = {part: resources(program)[f"retention_{part}"] for part in PARTS}
    record_property("resources", plain(needs))
    assert all(0 < each["registers"] <= 255 for each in needs.values())
    assert all(each["stack"] <= 64 for each in needs.values())  # next to nothing is spilled
    assert all(0 < each["shared"] <= 227 * 1024 for each in needs.values())


@LEAVING
@pytest.mark.slow
@pytest.mark.parametrize("name", ["h100:1", "b200:1"])
@pytest.mark.parametrize("shape", [(2, 333, 1, 64, 72), (1, 17, 1, 24, 40)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_gpu_kernels_compile_for_every_chip(name, shape, dtype):
    assert kernels(compile_for(name, shape, dtype), "__gpu$xla.gpu.triton") == len(PARTS)
