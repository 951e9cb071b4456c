"""Machines by name, their sizes and mistakes, and the descriptions that compilers are given."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from jscale.errors import ConfigError
from jscale.mesh import oracle
from jscale.mesh.machines import CHIPS, Gpu, Torus, chip_of, speed_of
from jscale.mesh.target import BY_NAME, target

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "shape", "parts", "chips", "devices"),
    [
        ("v4-8", (2, 2, 1), 1, 4, 4),  # cores are counted
        ("v4-4096", (8, 16, 16), 1, 2048, 2048),
        ("v5p-64", (2, 4, 4), 1, 32, 32),
        ("v5p-1024", (8, 8, 8), 1, 512, 512),
        ("v5p-1536", (8, 8, 12), 1, 768, 768),
        ("v5p-6912", (12, 12, 24), 1, 3456, 3456),
        ("v5p-12288", (16, 16, 24), 1, 6144, 6144),
        ("v5p:4x4x8", (4, 4, 8), 1, 128, 128),
        ("v5p:8x4x4", (4, 4, 8), 1, 128, 128),
        ("v5e-1", (1, 1), 1, 1, 1),  # chips are counted
        ("v5litepod-16", (4, 4), 1, 16, 16),
        ("v6e-256", (16, 16), 1, 256, 256),
        ("2xv6e-256", (16, 16), 2, 512, 512),
        ("3xv5p:2x2x1", (2, 2, 1), 3, 12, 12),
        ("tpu7x-2", (1, 1, 1), 1, 1, 2),  # cores, each a device
        ("tpu7x-64", (2, 4, 4), 1, 32, 64),
        ("tpu7x-18432", (16, 24, 24), 1, 9216, 18432),
        ("h100:8", (8,), 1, 8, 8),
        ("h100:8x4", (8,), 4, 32, 32),
        ("gb200:4x18", (4,), 18, 72, 72),
        (" H200:1 ", (1,), 1, 1, 1),
        ("cpu:8", (8,), 1, 8, 8),
    ],
)
def test_a_name_is_a_machine(name, shape, parts, chips, devices):
    found = target(name, {})
    assert (found.shape, found.parts) == (shape, parts)
    assert (found.chips, found.count) == (chips, devices)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9-8", r"no machine 'v9-8'; .*v5p.*; write TPUs as v5p-64"),
        ("h1000:8", r"did you mean 'h100'"),
        ("", r"no machine ''"),
        ("v5p", r"'v5p' does not say how large"),
        ("h100", r"'h100' does not say how large"),
        ("h100:8x", r"does not say how large"),
        ("v5p-63", r"number is that of cores\): the nearest sizes are v5p-32 and v5p-64"),
        ("v5p-6", r"the nearest sizes are v5p-8$"),
        ("v5p-99999", r"the nearest sizes are v5p-12288$"),
        ("v6e-24", r"number is that of chips\): the nearest sizes are v6e-16 and v6e-32"),
        ("v5p:3x4x5", r"shape of 'v5p:3x4x5'; the nearest are v5p:4x4x4"),
        ("v5e:4x4x4", r"the nearest are v5e:8x8"),
        ("v5p:64", r"written as v5p-64"),
        ("v6e:8x4x", r"does not say how large"),
        ("0xv5e-8", r"no slice"),
        ("h100-8", r"with a colon: h100:8"),
        ("h100:16", r"at most 8 GPUs of this kind; h100:8x2 is 2 node"),
        ("gb200:8", r"gb200:4x2 is 2 node"),
        ("h100:0", r"no device"),
        ("h100:2x2x2", r"h100:8x4 for 4 nodes of 8"),
        ("cpu:0", r"no device"),
        ("cpu", r"does not say how large"),
        ("cpu:1025", r"more than 1,024 simulated devices"),
        ("h100:8x999999999999", r"more than 131,072 devices"),
        ("100000xv5e-256", r"more than 131,072 devices"),
        ("v5e-" + 5000 * "9", r"no machine has a name of 5004 letters"),
    ],
)
def test_a_wrong_name_is_answered_with_what_would_be_right(name, said):
    with pytest.raises(ConfigError, match=said):
        target(name, {})


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_every_size_of_a_slice_has_a_name_that_leads_back(chip):
    if isinstance(chip.build, Gpu):
        assert target(f"{chip.name}:{chip.build.node}x2", {}).count == 2 * chip.build.node
        return
    sizes = {math.prod(shape) for shape in chip.build.shapes()}
    for chips in sizes:
        found = target(f"{chip.name}-{chips * chip.build.cores}")
        assert found.chips == chips and found.memory == chip.usable
    assert len(sizes) >= 8


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_figures_are_of_the_right_size(chip):
    assert 1e14 < chip.speed.sixteen <= (chip.speed.eight or 0) < 1e16
    assert chip.usable <= chip.memory and 15 * GIB < chip.usable < 300 * GIB
    assert 8e11 < chip.bandwidth < 1e13
    assert chip.network < chip.link * chip.links < chip.bandwidth
    assert all(chip_of(kind) is chip for kind in chip.kinds)


@pytest.mark.parametrize(
    ("name", "shape", "closed"),
    [
        ("v5p", (2, 4, 4), (False, False, False)),  # less than a cube
        ("v5p", (4, 4, 8), (True, True, True)),
        ("v5e", (8, 8), (False, False)),
        ("v6e", (8, 16), (False, True)),
        ("v6e", (16, 16), (True, True)),
    ],
)
def test_rings_are_closed_where_the_wires_are(name, shape, closed):
    build = BY_NAME[name].build
    assert isinstance(build, Torus) and build.wrap(shape) == closed


def test_what_jax_takes_of_a_gpu_is_what_its_setting_says():
    whole = BY_NAME["h100"].memory
    assert target("h100:8", {}).memory == int(0.75 * whole)
    assert target("h100:8", {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}).memory == int(0.9 * whole)
    for wrong in ("1.5", "0", "much"):
        with pytest.raises(ConfigError, match=r"XLA_PYTHON_CLIENT_MEM_FRACTION='.*' must be"):
            target("h100:8", {"XLA_PYTHON_CLIENT_MEM_FRACTION": wrong})


def test_the_speed_of_a_device_is_that_of_its_part_of_a_chip():
    half, whole = speed_of("TPU7x"), BY_NAME["tpu7x"].speed
    assert half and half.sixteen == whole.sixteen / 2 and half.eight == (whole.eight or 0) / 2
    assert chip_of("NVIDIA GB200") is BY_NAME["gb200"] and chip_of("NVIDIA B200") is BY_NAME["b200"]
    assert chip_of("NVIDIA H100 PCIe") is None and speed_of("NVIDIA H100 PCIe") is not None


def test_a_machine_that_a_user_adds_is_told_to_the_compiler():
    chip = replace(BY_NAME["h100"], name="h20", kinds=("H20",), memory=96 * GIB)
    assert isinstance(chip.build, Gpu)
    text = oracle.description(chip, replace(chip.build, processors=78, capability=(9, 0)))
    assert "core_count: 78" in text and f"device_memory_size: {96 * GIB}" in text
    assert 'device_description_str: "NVIDIA H20"' in text and text.count("{") == text.count("}")


NOTHING = {"jaxlib": "0.10.2"}


@pytest.mark.parametrize(
    ("check", "versions", "said"),
    [
        (oracle.check_libtpu, NOTHING, r"needs libtpu: pip install 'jscale\[oracle\]'"),
        (oracle.check_plugin, NOTHING, r"CUDA plugin: pip install 'jscale\[oracle\]'"),
        (oracle.check_libtpu, {"libtpu": "0.0.1"}, r"libtpu \S+, and 0.0.1 is .*: pip install"),
        (
            oracle.check_plugin,
            {"jaxlib": "0.12.0", "jax-cuda13-plugin": "0.10.2"},
            r"0.10.2 is installed: pip install 'jax-cuda13-plugin==0.12.0'",
        ),
    ],
)
def test_a_missing_compiler_and_one_of_another_version_are_told(check, versions, said):
    with pytest.raises(ConfigError, match=said):
        check(versions.get)


def test_the_right_compilers_are_taken():
    wanted = oracle.pinned("libtpu") or ""
    assert wanted.startswith("0.0.") and oracle.pinned("no-such-package") is None
    oracle.check_libtpu({"libtpu": f"{wanted}.7"}.get)
    assert oracle.check_plugin({**NOTHING, "jax-cuda12-plugin": "0.10.2"}.get) == "cuda12"


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_the_documents_give_the_figures_of_this_table(chip):
    torus = chip.build if isinstance(chip.build, Torus) else None
    counts = "GPUs" if torus is None else "chips" if torus.cores == 1 else "cores, 2 a chip"
    memory = chip.usable * (0.75 if torus is None else 1)
    links = f"{chip.links} x {chip.link / 1e9:.0f}"
    row = (
        f"| `{chip.name}` | {counts} | {chip.devices} | {chip.speed.sixteen / 1e12:,.0f} |"
        f" {memory / GIB:.2f} | {chip.bandwidth / 1e9:,.0f} | {links} | {chip.network / 1e9:.2f} |"
    )
    page = Path(__file__).parents[2] / "docs" / "ahead_of_time.md"
    assert row in page.read_text(encoding="utf-8"), f"the page should have {row}"
