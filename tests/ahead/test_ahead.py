"""The real step compiled for machines that are not here."""

import jax
import pytest
from ahead.machines import need, recipe

from jscale.ahead import Report, check_whole, compile_for
from jscale.compiled import Memory
from jscale.errors import ConfigError
from jscale.explain import compile_step
from jscale.mesh import MeshShape
from jscale.mesh.target import Target, target

# Small on purpose: a compilation for each kind of chip, in several slices and in several nodes.
MACHINES = {
    "v5e-8": "TPU v5 lite",
    "v5p-16": "TPU v5",
    "v6e-8": "TPU v6 lite",
    "tpu7x-8": "TPU7x",
    "2xv5e-4": "TPU v5 lite",
    "h100:8": "NVIDIA H100",
    "h100:4x2": "NVIDIA H100",
    "b200:8": "NVIDIA B200",
}
MORE = {
    "v4-16": "TPU v4",
    "2xtpu7x-8": "TPU7x",
    "a100:8": "NVIDIA A100",
    "h200:8": "NVIDIA H200",
    "gb200:4x4": "NVIDIA GB200",
}


@pytest.mark.parametrize(
    "machine", [*MACHINES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_the_step_compiles_and_its_memory_is_told(machine):
    need(machine)
    found = compile_for(recipe("data.batch=16"), machine)
    assert found.fits and found.refusal is None and found.memory and found.seconds > 0
    assert found.mesh.devices == found.target.count
    assert found.memory.arguments >= sum(found.state.values())  # the batch, and padding
    assert found.needed == sum(found.memory) == found.memory.total > found.memory.arguments
    (first, *_) = jax.tree.leaves(found.program.input_shardings)
    devices = first.mesh.devices.flatten()
    assert {device.device_kind for device in devices} == {(MACHINES | MORE)[machine]}
    assert len({device.id for device in devices}) == found.target.count


def test_what_is_split_takes_less_on_each_device():
    need("v5e-8")
    whole, split = (compile_for(recipe(), machine) for machine in ("v5e-1", "v5e-8"))
    assert whole.mesh.devices == 1 and split.mesh == MeshShape(fsdp=8)
    assert split.state["parameters"] < whole.state["parameters"] / 7
    assert split.memory and whole.memory and split.memory.arguments < whole.memory.arguments / 3


def test_too_much_for_a_tpu_is_a_report_with_the_compilers_own_numbers():
    need("v5e-4")
    found = compile_for(recipe("model.vocab=4194304", "model.dim=1024"), "v5e-4")
    assert found.fits is False and found.memory is None and found.program is None
    assert "Ran out of memory" in (found.refusal or "") and "15.75G" in (found.refusal or "")
    assert found.target.memory is not None and (found.needed or 0) > found.target.memory


def test_too_much_for_a_gpu_is_found_though_its_compiler_never_refuses():
    need("h100:8")
    wide = recipe("model.vocab=4194304", "model.dim=4096", "data.length=8")
    found = compile_for(wide, "h100:8")
    assert found.fits is False and found.refusal is None and found.memory and found.program
    assert found.target.memory is not None and (found.needed or 0) > found.target.memory


@pytest.mark.parametrize(
    ("said", "gib"),
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (16.90G)", 16.9),
        ("Ran out of memory in memory space hbm. Used 103.49G of 94.75G hbm.", 103.49),
        ("Ran out of memory in memory space hbm. Used 800.5M of 94.75G hbm.", 800.5 / 1024),
        ("something else", None),
    ],
)
def test_what_the_tpu_compiler_would_need_is_read_from_its_words(said, gib):
    machine = target("v5e-4")
    found = Report("r", machine, MeshShape(), "", {}, 1.0, refusal=f"RESOURCE_EXHAUSTED: {said}")
    assert found.fits is False
    assert found.needed == (None if gib is None else int(gib * 2**30))


def test_the_processor_gives_what_training_on_it_takes():
    found = compile_for(recipe(), "cpu:8")
    assert found.fits is None and found.memory
    expected = compile_step(recipe()).memory
    assert found.memory.total - found.memory.program == expected


def test_without_a_machine_it_is_the_devices_at_hand():
    found = compile_for(recipe("mesh=MeshShape(data=2, fsdp=4)"))
    assert found.target.count == 8 and found.target.chip is None
    assert found.mesh == MeshShape(data=2, fsdp=4) and found.reason == "named by the recipe"


def test_fitting_is_by_the_byte():
    memory = Memory(arguments=10, outputs=1, temporaries=5, program=4)
    for room, fits in ((20, True), (19, False), (None, None)):
        machine = Target("m", None, (1,), 1, room)
        report = Report("r", machine, MeshShape(), "", {}, 1.0, memory)
        assert report.fits is fits


def test_a_mesh_of_another_size_is_refused_before_anything_is_compiled():
    with pytest.raises(
        ConfigError, match=r"\(fsdp=4\) has 4 device\(s\), and cpu:8 has 8; set mesh"
    ):
        compile_for(recipe("mesh=MeshShape(fsdp=4)"), "cpu:8")
    with pytest.raises(ConfigError, match=r"fewer than the 64 to compile for"):
        compile_for(recipe(), "cpu:64")


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["v5p-64", "h100:8x4"])
def test_eight_billion_weights_on_32_chips(machine):
    need(machine)
    found = compile_for(recipe("accumulate=2", name="llama_8b"), machine)
    assert found.mesh == MeshShape(fsdp=32) and found.fits
    assert found.state["parameters"] == pytest.approx(8.03e9 * 4 / 32, rel=0.01)


def test_a_batch_that_leaves_tpus_idle_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="work for 1 of the 8 devices of v5e-8"):
        check_whole(MeshShape(), target("v5e-8"))
    check_whole(MeshShape(), target("h100:8", {}))  # a GPU's program may leave some
