"""Who computes a call: by name, by preference, under a mesh, and for chips that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jscale.errors import ConfigError
from jscale.mesh import Layout, make_mesh
from jscale.mesh.shape import MeshShape, abstract_mesh
from jscale.mesh.target import target
from jscale.pallas_kernels.device import Device, device
from jscale.pallas_kernels.implementation import Implementation, Operation
from jscale.pallas_kernels.interpret import interpreted

CPU = Device("cpu", "cpu")
plain = lambda x: x + 1
OPERATION = Operation(
    "addition",
    {
        "plain": Implementation(plain),
        "even": Implementation(plain, lambda call: "needs even numbers" if call % 2 else None),
        "chip": Implementation(plain, platforms=("tpu", "gpu"), kernel=True),
        "kernel": Implementation(plain, kernel=True),
        "new": Implementation(plain, proven=False),
    },
    lambda call, where: [
        (name, "is preferred") for name in ("new", "chip", "even", "kernel", "plain")
    ],
)


def chosen(call, named=None):
    found = OPERATION.pick(call, named)
    return next(name for name, each in OPERATION.implementations.items() if each is found)


def whole_mesh(run):
    """What `run` gives inside a traced function whose arrays a mesh of 8 devices splits."""
    found = []

    def traced(x):
        with Layout(make_mesh(fsdp=8)).active():
            found.append(run())
        return x

    jax.eval_shape(traced, jnp.zeros(8))
    return found[0]


@pytest.mark.parametrize(
    "named, message",
    [
        ("plane", "no implementation 'plane' of addition; did you mean 'plain'"),
        ("even", "addition: implementation 'even' needs even numbers"),
        ("chip", "addition: implementation 'chip' runs on tpu and gpu only, not on cpu"),
    ],
)
def test_a_named_implementation_that_cannot_is_refused(named, message):
    with pytest.raises(ConfigError, match=message):
        OPERATION.pick(3, named)


def test_the_first_preferred_that_can_is_chosen_and_the_log_says_why_not_the_others(caplog):
    with caplog.at_level("INFO", "jscale.pallas_kernels"):
        assert [chosen(call) for call in (1001, 1002, 1001)] == ["kernel", "even", "kernel"]
    first, second = [record.getMessage() for record in caplog.records]  # told once each
    for told in ("addition of 1001 on cpu by 'kernel': is preferred", "'new' is not proven"):
        assert told in first
    assert "'even' needs even numbers" in first and "by 'even'" in second


def test_what_is_not_proven_is_taken_by_name_only():
    assert chosen(4, "new") == "new" and chosen(4) != "new"


def test_interpreted_a_kernel_runs_anywhere():
    with interpreted():
        assert chosen(5, "chip") == "chip"
    with pytest.raises(ConfigError, match="runs on tpu and gpu only"):
        OPERATION.pick(5, "chip")


def test_a_kernel_is_refused_where_a_partitioner_would_have_to_split_it():
    with pytest.raises(ConfigError, match="'kernel' runs inside shard_map only"):
        whole_mesh(lambda: OPERATION.pick(7, "kernel"))
    assert whole_mesh(lambda: chosen(7)) == "plain"
    with pytest.raises(ConfigError, match="'chip' runs inside shard_map only"), interpreted():
        whole_mesh(lambda: OPERATION.pick(7, "chip"))


def test_inside_shard_map_a_kernel_may_run():
    found = []

    def local(x):
        found.append((device().whole, chosen(9)))
        return x

    traced_inside(local, check_vma=False)
    assert found and set(found) == {(False, "kernel")}


def traced_inside(local, **options):
    """Trace a function in a shard_map over eight devices."""
    mesh = make_mesh(fsdp=8)
    each = dict(in_specs=P("fsdp"), out_specs=P("fsdp"))

    def traced(x):
        with Layout(mesh).active():
            return jax.shard_map(local, mesh=mesh, **each, **options)(x)

    jax.eval_shape(traced, jnp.zeros(8))


def test_a_shard_map_that_checks_what_varies_takes_no_kernel():
    found = []

    def local(x):
        found.append((device().checked, chosen(9)))
        with pytest.raises(ConfigError, match="'kernel' runs in a shard_map with check_vma=False"):
            OPERATION.pick(9, "kernel")
        only = Operation("none", OPERATION.implementations, lambda *_: [("kernel", "first")])
        with pytest.raises(ConfigError, match="none: 'kernel' runs in a shard_map with check_vma"):
            only.pick(9)
        return x

    traced_inside(local)
    assert found and set(found) == {(True, "plain")}


def test_a_mesh_without_devices_says_what_is_split_as_well():
    seen = []
    traced = lambda x: (seen.append(device()), x)[1]
    with jax.sharding.use_abstract_mesh(abstract_mesh(MeshShape(fsdp=2))):
        jax.eval_shape(traced, jnp.zeros(8))
    assert seen == [CPU._replace(whole=True)]


def test_nothing_that_computes_is_a_fault_of_the_operation():
    only = Operation("none", OPERATION.implementations, lambda call, where: [("new", "first")])
    with pytest.raises(AssertionError, match="none: nothing computes 3"):
        only.pick(3)


def test_without_a_mesh_the_device_is_the_default_one():
    assert device() == CPU


def seen_through(layout):
    """The device of what is traced under a layout."""
    seen = []

    def traced(x):
        with layout.active():
            seen.append(device())
        return x

    jax.eval_shape(traced, jnp.zeros(8))
    return seen[0]


@pytest.mark.parametrize("size, whole", [(1, False), (8, True)])
def test_a_mesh_of_devices_says_whether_it_splits(size, whole):
    assert seen_through(Layout(make_mesh(fsdp=size))) == Device("cpu", "cpu", whole)


@pytest.mark.parametrize(
    "machine, platform, word", [("v5p-8", "tpu", "v5"), ("h100:1", "gpu", "H100")]
)
@pytest.mark.parametrize("described", ["real", "abstract"])
def test_a_chip_that_is_not_here_is_seen_through_the_layout(machine, platform, word, described):
    devices = target(machine).devices()
    mesh = make_mesh(devices=devices, fsdp=len(devices))
    seen = seen_through(Layout(mesh if described == "real" else mesh.abstract_mesh))
    assert seen.platform == platform and word in seen.kind
    assert seen.whole == (len(devices) > 1)


def test_a_mesh_of_no_devices_is_for_the_default_one():
    assert seen_through(Layout(abstract_mesh(MeshShape(fsdp=8)))).platform == "cpu"
