"""Machines by name: `v5p-64`, `2xv6e-256`, `h100:8x4` become values with compile-only devices.

What a name counts is the vendor's custom. In a TPU's name, `v5p-64`, the number is that of cores
for v4, v5p and tpu7x, of which a chip has two, and of chips for v5e and v6e; `v5p:2x4x4` gives the
chips along each direction instead. `2xv6e-256` is two slices. `h100:8x4` is 8 GPUs in each of 4
nodes, `cpu:8` are 8 simulated devices.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from jscale.errors import ConfigError, did_you_mean
from jscale.mesh import oracle
from jscale.mesh.machines import CHIPS, Chip, Gpu, Shape, Torus

SLICE = re.compile(r"(?:(\d+)x)?([a-z]\w*)(?:-(\d+)|:(\d+(?:x\d+)+))")
NODES = re.compile(r"([a-z]\w*):(\d+)(?:x(\d+))?")
FORMS = "TPUs as v5p-64, v5p:2x4x4 or 2xv6e-256, GPUs as h100:8 or h100:8x4, and cpu:8"
BY_NAME = {chip.name: chip for chip in CHIPS}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6lite": "v6e", "v7x": "tpu7x"}
LONGEST = 64  # letters of a name
MOST, MOST_SIMULATED = 2**17, 1024  # devices
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU's memory that JAX takes, 0.75 by default


@dataclass(frozen=True)
class Target:
    """A machine to compile for: `parts` slices or nodes of the same chips.

    `shape` is the chips of one part along each direction. `memory` is the bytes that programs may
    take on one device, None where nobody says.
    """

    name: str
    chip: Chip | None  # None: the processor, simulating devices
    shape: Shape
    parts: int = 1
    memory: int | None = None

    @property
    def chips(self) -> int:
        return self.parts * math.prod(self.shape)

    @property
    def count(self) -> int:
        """How many devices JAX sees."""
        return self.chips * (self.chip.devices if self.chip else 1)

    def __str__(self) -> str:
        if self.chip is None:
            return f"{self.name}: {self.count} simulated device(s)"
        form = "x".join(map(str, self.shape))
        if isinstance(self.chip.build, Gpu):
            where = f"{self.parts} node(s) of {form}"
        else:
            where = form if self.parts == 1 else f"{self.parts} slices of {form}"
        devices = f", {self.count} devices" if self.count != self.chips else ""
        return f"{self.name}: {self.chips} {self.chip.name} chip(s), {where}{devices}"

    def devices(self) -> list[Any]:
        """Devices that programs can be compiled for, present or not.

        Raises:
            ConfigError: the compiler for them is not installed, or is not the one that JAX wants.
        """
        if self.chip is None:
            return oracle.cpu_devices(self.count)
        if isinstance(self.chip.build, Torus):
            return oracle.tpu_devices(self.chip, self.chip.build, self.shape, self.parts)
        return oracle.gpu_devices(self.chip, self.chip.build, self.shape[0], self.parts)


def target(name: str, environment: Mapping[str, str] = os.environ) -> Target:
    """The machine of a name.

    >>> target("v5p-64").shape, target("2xv6e-256").count, target("h100:8x4").parts
    ((2, 4, 4), 512, 4)

    Raises:
        ConfigError: there is no such machine, or it does not come in this size.
    """
    text = name.strip().lower()
    if len(text) > LONGEST:
        raise ConfigError(f"no machine has a name of {len(text)} letters; write {FORMS}")
    if found := SLICE.fullmatch(text):
        machine = _slices(text, found)
    elif found := NODES.fullmatch(text):
        machine = _nodes(text, found, environment)
    else:
        _unknown(text)
    most = MOST if machine.chip else MOST_SIMULATED
    if machine.count > most:
        kind = "" if machine.chip else "simulated "
        raise ConfigError(f"{text!r} has more than {most:,} {kind}devices, the most of a machine")
    return machine


def _chip(word: str, text: str) -> Chip:
    chip = BY_NAME.get(ALIASES.get(word, word))
    if chip is None:
        _unknown(text, word)
    return chip


def _unknown(text: str, word: str | None = None) -> NoReturn:
    word = word or re.sub(r"^\d+x|[-:].*", "", text)
    if ALIASES.get(word, word) in BY_NAME or word == "cpu":
        raise ConfigError(f"{text!r} does not say how large the machine is; write {FORMS}")
    hint = did_you_mean(word, [*BY_NAME, "cpu"])
    raise ConfigError(f"there is no machine {text!r}; {hint}; write {FORMS}")


def _slices(text: str, found: re.Match[str]) -> Target:
    """`v5p-64`, `v5p:2x4x4`, and several of them."""
    several, word, number, form = found.groups()
    if form and word in ("cpu", *(c.name for c in CHIPS if isinstance(c.build, Gpu))):
        return _nodes(text, NODES.fullmatch(text), os.environ)
    chip = _chip(word, text)
    if isinstance(chip.build, Gpu):
        raise ConfigError(f"GPUs are written with a colon: {chip.name}:{number}, not {text!r}")
    shape = _named(chip, chip.build, text, int(number)) if number else _drawn(chip, text, form)
    if (parts := int(several or 1)) < 1:
        raise ConfigError(f"{text!r} has no slice")
    return Target(text, chip, shape, parts, chip.usable)


def _named(chip: Chip, build: Torus, text: str, number: int) -> Shape:
    """The shape of the slice whose name has this number."""
    shape = build.shape(number // build.cores) if number % build.cores == 0 else None
    if shape is None:
        sizes = sorted({math.prod(s) * build.cores for s in build.shapes()})
        near = [max((s for s in sizes if s < number), default=0)]
        near += [min((s for s in sizes if s > number), default=0)]
        names = " and ".join(f"{chip.name}-{size}" for size in near if size)
        what = "cores" if build.cores > 1 else "chips"
        raise ConfigError(
            f"there is no {text!r} (the number is that of {what}): the nearest sizes are {names}"
        )
    return shape


def _drawn(chip: Chip, text: str, form: str) -> Shape:
    """The shape that is written out."""
    assert isinstance(chip.build, Torus)
    wanted = tuple(map(int, form.split("x")))
    for shape in chip.build.shapes():
        if sorted(shape) == sorted(wanted):
            return shape
    near = sorted(chip.build.shapes(), key=lambda s: abs(math.prod(s) - math.prod(wanted)))[:3]
    names = ", ".join(f"{chip.name}:{'x'.join(map(str, s))}" for s in near)
    raise ConfigError(f"a slice cannot have the shape of {text!r}; the nearest are {names}")


def _nodes(text: str, found: re.Match[str] | None, environment: Mapping[str, str]) -> Target:
    """`h100:8`, `h100:8x4`, `cpu:8`."""
    if found is None:
        raise ConfigError(f"{text!r}: GPUs are written as h100:8, or h100:8x4 for 4 nodes of 8")
    word, each, several = found[1], int(found[2]), int(found[3] or 1)
    if each < 1 or several < 1:
        raise ConfigError(f"{text!r} has no device")
    if word == "cpu":
        return Target(text, None, (each * several,))
    chip = _chip(word, text)
    if isinstance(chip.build, Torus):
        hint = f"{chip.name}-{each}" if several == 1 else f"{several}x{chip.name}-{each}"
        raise ConfigError(f"TPUs are written as {hint}, or as {chip.name}:2x2, not {text!r}")
    if each > chip.build.node:
        nodes = math.ceil(each * several / chip.build.node)
        raise ConfigError(
            f"{text!r}: a node has at most {chip.build.node} GPUs of this kind;"
            f" {chip.name}:{chip.build.node}x{nodes} is {nodes} node(s)"
        )
    return Target(text, chip, (each,), several, int(chip.usable * _fraction(environment)))


def _fraction(environment: Mapping[str, str]) -> float:
    """The part of a GPU's memory that JAX allots to programs."""
    text = environment.get(FRACTION, "0.75")
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction <= 1:
        raise ConfigError(f"{FRACTION}={text!r} must be a number above 0 and up to 1")
    return fraction
