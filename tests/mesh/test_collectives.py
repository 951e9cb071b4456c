"""What a compiled program sends, against programs of which it is known."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jscale import train
from jscale.errors import ConfigError
from jscale.losses import NextToken
from jscale.mesh import Layout, make_mesh
from jscale.mesh.collectives import Collective, collectives, groups_of, parse_groups, spanned
from jscale.mesh.hlo import read
from jscale.mesh.scopes import Scope
from jscale.models import Llama, Model

AXES = ("data", "fsdp", "tensor")
SETS = [c for n in (1, 2, 3) for c in itertools.combinations(AXES, n)]
ROWS, FLOAT = 64, 4


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(data=2, fsdp=2, tensor=2)


def compiled(mesh: Mesh, function: Callable[[Any], Any]) -> Any:
    """The program of a function that every device applies to its own 64 floats."""
    whole = P(AXES)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    x = jax.ShapeDtypeStruct((8 * ROWS,), jnp.float32, sharding=NamedSharding(mesh, whole))
    return jax.jit(mapped).lower(x).compile()


def one(program: Any, mesh: Mesh) -> Collective:
    found = collectives(program, mesh)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("axes", SETS, ids="-".join)
@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all"])
def test_each_collective_over_each_set_of_axes(
    mesh: Mesh, kind: str, axes: tuple[str, ...]
) -> None:
    n = 2 ** len(axes)
    functions = {
        "all-reduce": lambda x: jax.lax.psum(x, axes),
        "all-gather": lambda x: jax.lax.all_gather(x, axes, tiled=True).reshape(n, -1).sum(0),
        "reduce-scatter": lambda x: jnp.tile(jax.lax.psum_scatter(x, axes, tiled=True), n),
        "all-to-all": lambda x: jax.lax.all_to_all(x, axes, 0, 0, tiled=True),
    }
    mine = ROWS * FLOAT
    result = {"all-gather": mine * n, "reduce-scatter": mine // n}.get(kind, mine)
    sent = {"all-reduce": 2 * mine * (n - 1) // n, "all-gather": mine * (n - 1)}
    found = one(compiled(mesh, functions[kind]), mesh)
    assert (found.kind, found.times) == (kind, 1)
    assert (found.axes, found.ways) == (axes, n)
    assert (found.operand_bytes, found.result_bytes) == (mine, result)
    assert found.sent == found.sent_in_all == sent.get(kind, mine * (n - 1) // n)


@pytest.mark.parametrize("axis", AXES)
def test_a_permute_is_over_the_axis_that_its_pairs_connect(mesh: Mesh, axis: str) -> None:
    program = compiled(mesh, lambda x: jax.lax.ppermute(x, axis, [(0, 1), (1, 0)]))
    found = one(program, mesh)
    assert (found.kind, found.axes, found.ways) == ("collective-permute", (axis,), 2)
    assert found.sent == ROWS * FLOAT


def repeated(times: int, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jax.lax.scan(lambda c, _: (function(c), None), x, None, length=times)[0]


def gathered_mean(x: Any) -> Any:
    return jax.lax.all_gather(x, "fsdp", tiled=True).reshape(2, -1).mean(0)


def test_loops_multiply(mesh: Mesh) -> None:
    inner = repeated(5, gathered_mean)
    found = one(compiled(mesh, repeated(3, lambda x: inner(x * 2))), mesh)
    assert (found.kind, found.times) == ("all-gather", 15)
    assert found.sent_in_all == 15 * ROWS * FLOAT


def forgetful(program: Any) -> str:
    """The text of a program from which the compiler's note of how long loops are is taken."""
    text = program.as_text()
    assert '"known_trip_count"' in text
    return text.replace('"known_trip_count"', '"forgotten"')


def test_the_length_of_a_loop_is_inferred_from_its_counter(mesh: Mesh) -> None:
    inner = repeated(5, gathered_mean)
    text = forgetful(compiled(mesh, repeated(3, lambda x: inner(x * 2))))
    assert one(text, mesh).times == 15


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 7, 1), (2, 9, 3), (4, 4, 1), (-3, 5, 2)])
def test_a_counter_may_start_anywhere_and_step_wide(
    mesh: Mesh, start: int, stop: int, step: int
) -> None:
    def loop(x: Any) -> Any:
        state = (jnp.int32(start), x)
        body = lambda s: (s[0] + step, gathered_mean(s[1]))
        return jax.lax.while_loop(lambda s: s[0] < stop, body, state)[1]

    text = compiled(mesh, loop).as_text().replace('"known_trip_count"', '"forgotten"')
    found = collectives(text, mesh)
    assert [c.times for c in found if c.times != 0] == [len(range(start, stop, step))][: len(found)]


def test_a_loop_of_unknown_length_is_said_to_be_unknown(mesh: Mesh) -> None:
    def until_small(x: Any) -> Any:
        return jax.lax.while_loop(lambda c: c.max() > 1.0, lambda c: gathered_mean(c) / 2, x)

    found = collectives(compiled(mesh, until_small), mesh)
    assert {c.times for c in found if c.kind == "all-gather"} == {None}
    assert all(c.sent_in_all is None for c in found if c.times is None)


def test_collectives_carry_their_scope_and_direction(mesh: Mesh) -> None:
    def loss(x: Any) -> Any:
        with jax.named_scope("layers"), jax.named_scope("mix"):
            return jnp.sin(jax.lax.all_gather(x, "fsdp", tiled=True)).sum()

    found = collectives(compiled(mesh, jax.grad(loss)), mesh)
    scopes = {c.kind: c.scope for c in found}
    assert scopes["all-gather"] == Scope("layers/mix")
    assert scopes["reduce-scatter"] == Scope("layers/mix", backward=True)


def test_a_program_for_other_devices_is_refused(mesh: Mesh) -> None:
    program = compiled(mesh, gathered_mean)
    with pytest.raises(ConfigError, match=r"compiled for 8 device\(s\) and the mesh has 4"):
        collectives(program, make_mesh(fsdp=4))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[2,4]<=[4,2]T(1,0)", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("[4,2]<=[2,2,2]T(2,1,0)", ((0, 4), (2, 6), (1, 5), (3, 7))),
        ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4]{'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=8] {'a':(4)2}", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ((0, 2, 4, 6), (1, 3, 5, 7))),
    ],
)
def test_groups_in_all_three_ways_of_writing_them(text: str, groups: Any) -> None:
    assert parse_groups(text) == groups


@pytest.mark.parametrize("text", ["all of them", "", "[2,", "<=[8]"])
def test_groups_written_otherwise_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not known to this reader"):
        parse_groups(text)


@pytest.mark.parametrize("axes", SETS, ids="-".join)
def test_groups_are_found_again_as_axes(mesh: Mesh, axes: tuple[str, ...]) -> None:
    names = "".join(f"'{axis}'=2," for axis in AXES).rstrip(",")
    wanted = ",".join(f"'{axis}'" for axis in axes)
    assert spanned(parse_groups(f"mesh[{names}] {{{wanted}}}"), mesh) == axes


TPU = (Path(__file__).parent / "wrapped.hlo").read_text()  # in the manner of a TPU's compiler


def test_started_and_ended_wrapped_and_fused_are_counted_once(mesh: Mesh) -> None:
    found = {c.kind + "/" + "-".join(c.axes): c for c in collectives(TPU, mesh)}
    assert {name: (c.times, c.operand_bytes, c.result_bytes) for name, c in found.items()} == {
        "reduce-scatter/tensor": (1, 64 * 128 * 4, 32 * 128 * 4),
        "all-gather/data-fsdp-tensor": (1, 32, 256),
        "all-gather/data": (1, 32, 64),
        "collective-permute/fsdp": (1, 32, 32),
    }
    assert found["all-gather/data-fsdp-tensor"].scope == Scope("embed")


def test_a_collective_spread_over_fusions_is_counted_where_it_starts(mesh: Mesh) -> None:
    parts = ["AsyncCollectiveStart", "nothing", "AsyncCollectiveDone"]
    computations = "".join(
        f"""%part.{i} (v.{i}: f32[8]) -> f32[16] {{
  %v.{i} = f32[8]{{0}} parameter(0)
  %spread.{i} = f32[16]{{0}} all-gather(%v.{i}), channel_id=9, replica_groups={{{{0,1}},{{2,3}},"""
        f"""{{4,5}},{{6,7}}}}, dimensions={{0}}, frontend_attributes={{chain_id="1"}}
  ROOT %end.{i} = f32[16]{{0}} custom-call(%spread.{i}), custom_call_target="{part}"
}}

"""
        for i, part in enumerate(parts)
    )
    calls = "".join(
        f"  %f.{i} = f32[16]{{0}} fusion(%c), kind=kCustom, calls=%part.{i}\n" for i in range(3)
    )
    text = TPU.replace("ENTRY", computations + "ENTRY").replace(
        "  ROOT %out", calls + "  ROOT %out"
    )
    spread = [c for c in collectives(text, mesh) if c.name.startswith("spread")]
    assert [(c.name, c.times, c.operand_bytes) for c in spread] == [("spread.0", 1, 32)]


def test_groups_left_empty_or_of_copies_are_everybody() -> None:
    text = TPU.replace("replica_groups=[1,8]<=[8]", "replica_groups={}")
    program = read(text)
    assert groups_of(program.instructions["all-gather.9"], 8) == (tuple(range(8)),)
    text = TPU.replace("replica_groups=[1,8]<=[8]", "replica_groups={{0}}")
    text = text.replace("dimensions={0}, use_global_device_ids=true, meta", "dimensions={0}, meta")
    assert groups_of(read(text).instructions["all-gather.9"], 8) == (tuple(range(8)),)


@pytest.mark.parametrize("text", ["", "HloModule x", "ENTRY %m {\n}\n", "func.func @main() {\n}"])
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no text of a compiled program"):
        read(text)


def step_program(model: Llama, mesh: Mesh) -> Any:
    """The compiled train step of a Llama with 8 rows of 16 tokens."""
    task = train.Task(Model(model), optax.sgd(0.1), NextToken(), Layout(mesh))
    where = train.sharding_of(task.layout)
    dtypes = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    batch = {
        name: jax.ShapeDtypeStruct((8, 16), dtype, sharding=where(name, (8, 16)))
        for name, dtype in dtypes.items()
    }
    return train.make_step(task).lower(train.shapes(task), batch).compile()


def test_the_train_step_gathers_each_layer_once_forward_and_once_backward(mesh: Mesh) -> None:
    model = Llama(vocab=64, dim=32, layers=3, heads=4, kv_heads=2, hidden=64, remat="none")
    found = collectives(step_program(model, make_mesh(fsdp=8)), make_mesh(fsdp=8))
    assert {c.axes for c in found} == {("fsdp",)} and {c.ways for c in found} == {8}
    attend = 32 * (4 + 2 + 2 + 4) * 8 * FLOAT
    feed = 3 * 32 * 64 * FLOAT
    for backward in (False, True):
        # The newest JAX names the loop that picks the layer, older ones what the weights are for.
        gathered = [
            c.result_bytes
            for c in found
            if c.kind == "all-gather" and c.times == 3 and c.scope.backward == backward
            if c.scope.path in ("layers", "layers/attend", "layers/feed")
        ]
        assert sum(gathered) == attend + feed and len(gathered) == 7


def test_the_train_step_reduces_activations_over_tensor_and_gradients_over_data(
    mesh: Mesh,
) -> None:
    model = Llama(vocab=64, dim=32, layers=3, heads=4, kv_heads=2, hidden=64, remat="none")
    found = collectives(step_program(model, mesh), mesh)
    assert {axis for c in found for axis in c.axes} == set(AXES)
    activations = 8 // 4 * 16 * 32 * FLOAT  # of the rows of one device
    forward = [c for c in found if c.times == 3 and not c.scope.backward and c.axes == ("tensor",)]
    assert {(c.kind, c.scope.path, c.operand_bytes) for c in forward} == {
        ("all-reduce", "layers/attend", activations),
        ("all-reduce", "layers/feed", activations),
    }
    gathers = [c for c in found if c.kind == "all-gather" and c.times == 3]
    assert gathers and {c.axes for c in gathers} == {("fsdp",)}
