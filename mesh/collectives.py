"""The collectives of a compiled program: which, how often, how many bytes, over which mesh axes.

Bytes are counted for one device and one execution. With n devices in a group and V the bytes of
the whole (gathered or not yet reduced) array, a device sends V (n - 1) / n in an all-gather or a
reduce-scatter, twice that in an all-reduce, its own bytes (n - 1) / n in an all-to-all, and all its
bytes in a permute: what rings do, and nobody can do with less
(Chan et al. 2007, "Collective communication: theory, practice, and experience").
"""

import math
import re
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jscale.errors import ConfigError
from jscale.mesh.hlo import Computation, Instruction, Program, read
from jscale.mesh.scopes import Scope, scope_of

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
Groups = tuple[tuple[int, ...], ...]


class Collective(NamedTuple):
    """One collective instruction of a program, as one device sees it.

    `times` is how often a run of the program executes it, None where a loop's length is unknown;
    `operand_bytes` go in and `result_bytes` come out each time. `axes` are the mesh axes that its
    groups span, `ways` how many devices a group has.
    """

    kind: str
    times: int | None
    operand_bytes: int
    result_bytes: int
    axes: tuple[str, ...]
    ways: int
    scope: Scope
    name: str  # of the instruction

    @property
    def sent(self) -> int:
        """Bytes that a device sends in one execution, by the formulas above."""
        mine, others = self.operand_bytes, self.ways - 1
        match self.kind:
            case "all-reduce":
                return 2 * mine * others // self.ways
            case "all-gather":
                return mine * others
            case "collective-permute" | "collective-broadcast":
                return mine
        return mine * others // self.ways

    @property
    def sent_in_all(self) -> int | None:
        """Bytes that a device sends in a run of the program; None where `times` is unknown."""
        return None if self.times is None else self.times * self.sent


def kind_of(instruction: Instruction) -> str | None:
    """The kind of collective that an instruction is or starts; None for any other."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def collectives(program: Program | str | Any, mesh: Mesh | AbstractMesh) -> tuple[Collective, ...]:
    """Every collective of a program (read, as text, or compiled by JAX), in the order of its text.

    The mesh must be the one whose devices, in its order, the program was compiled for. Those that
    are never executed are left out, and so are those over groups of one device.

    Raises:
        ConfigError: the program is not for as many devices as the mesh has.
    """
    if not isinstance(program, Program):
        program = read(program if isinstance(program, str) else program.as_text())
    count = math.prod(mesh.shape.values())
    if program.devices != count:
        raise ConfigError(
            f"the program was compiled for {program.devices} device(s) and the mesh has {count}"
        )
    out = []
    for name, times in program.times.items():
        computation = program.computations[name]
        for instruction in computation.instructions.values() if times != 0 else ():
            kind = kind_of(instruction)
            if kind and chained(computation, instruction) in (None, "start"):
                scattered = name.startswith("all-reduce-scatter") and kind == "all-reduce"
                found = _collective(computation, instruction, kind, mesh)
                found = found._replace(times=times)
                out.append(_as_reduce_scatter(found) if scattered else found)
    return tuple(found for found in out if found.ways > 1)


def chained(computation: Computation, instruction: Instruction) -> str | None:
    """The part of a collective that a TPU spreads over several fusions: start, middle or done.

    Each of them repeats the whole instruction; None for one that is not spread.
    """
    if 'chain_id="' not in instruction.attributes:
        return None
    others = " ".join(i.attributes for i in computation.instructions.values())
    ends = {"AsyncCollectiveStart": "start", "AsyncCollectiveDone": "done"}
    return next((part for mark, part in ends.items() if f'"{mark}"' in others), "middle")


def _as_reduce_scatter(found: Collective) -> Collective:
    """A TPU fusion that reduces and keeps a slice says all-reduce inside and moves half of it."""
    return found._replace(kind="reduce-scatter", result_bytes=found.operand_bytes // found.ways)


def _collective(
    computation: Computation, instruction: Instruction, kind: str, mesh: Mesh | AbstractMesh
) -> Collective:
    count = math.prod(mesh.shape.values())
    together = groups_of(instruction, count)
    ways = max(map(len, together))
    operand = computation.operand_bytes(instruction)
    results = {"all-gather": operand * ways, "reduce-scatter": operand // ways}
    return Collective(
        kind=kind,
        times=1,
        operand_bytes=operand,
        result_bytes=results.get(kind, operand),
        axes=spanned(together, mesh),
        ways=ways,
        scope=scope_of(instruction.op_name),
        name=instruction.name,
    )


def spanned(groups: Groups, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The mesh axes along which the members of some group differ.

    Members are positions in the mesh, counted along its last axis first.
    """
    sizes = tuple(mesh.shape.values())
    differ = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.array(group), sizes), -1)
        differ |= (places != places[0]).any(0)
    return tuple(str(axis) for axis, differs in zip(mesh.shape, differ, strict=True) if differs)


def groups_of(instruction: Instruction, devices: int) -> Groups:
    """The groups of devices, by their position in the program, that a collective joins.

    Those of a permute are the devices that its pairs connect.

    Raises:
        ConfigError: the groups are written in a way that is not known.
    """
    pairs = instruction.attribute("source_target_pairs")
    if pairs is not None:
        return _connected(_lists(pairs))
    text = instruction.attribute("replica_groups") or "{}"
    # Without global ids, the groups of these are of copies of the program, with all its partitions.
    reducing = kind_of(instruction) in ("all-reduce", "all-gather", "reduce-scatter")
    whole = instruction.attribute("channel_id") and not instruction.attribute(
        "use_global_device_ids"
    )
    if text == "{}" or (reducing and whole):
        return (tuple(range(devices)),)
    return parse_groups(text)


def parse_groups(text: str) -> Groups:
    """Replica groups from any of the three ways in which XLA writes them.

    >>> parse_groups("{{0,1},{2,3}}")
    ((0, 1), (2, 3))
    >>> parse_groups("[2,2]<=[2,2]T(1,0)")
    ((0, 2), (1, 3))
    >>> parse_groups("mesh['x'=2,'y'=2] {'y'}")
    ((0, 1), (2, 3))

    Raises:
        ConfigError: the text is none of them.
    """
    if text.startswith("{"):
        return _lists(text)
    if text.startswith("["):
        return _rows(_iota(text))
    if text.startswith("mesh["):
        return _mesh_groups(text)
    raise ConfigError(f"replica groups written as {text!r} are not known to this reader")


def _lists(text: str) -> Groups:
    return tuple(tuple(map(int, _numbers(g))) for g in re.findall(r"\{([\d, ]+)\}", text))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _rows(array: np.ndarray) -> Groups:
    return tuple(tuple(int(i) for i in row) for row in array)


def _iota(text: str) -> np.ndarray:
    """`[2,4]<=[4,2]T(1,0)`: counted in the second shape, transposed, and cut into the first."""
    found = re.match(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?", text)
    if not found:
        raise ConfigError(f"replica groups written as {text!r} are not known to this reader")
    shape, counted, order = (_numbers(part or "") for part in found.groups())
    counted = counted or shape
    ids = np.arange(math.prod(counted)).reshape(counted)
    return (ids.transpose(order) if order else ids).reshape(shape)


def _mesh_groups(text: str) -> Groups:
    """`mesh['x'=4,'y'=2] {'x':(2)2}`: the devices that differ along these axes, or parts of axes.

    `'x':(2)2` is the second factor of x when it is split into 2 (what comes before) and 2.
    """
    head, _, tail = text.partition("]")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", head)}
    listed = re.search(r"device_ids=\((.*?\)?)\) ?\{", tail)
    ids = np.arange(math.prod(sizes.values()))
    if listed and listed[1].startswith("["):
        ids = _iota(listed[1]).ravel()
    elif listed:
        ids = np.array(_numbers(listed[1]))
    places = dict(
        zip(sizes, np.indices(tuple(sizes.values())).reshape(len(sizes), -1), strict=True)
    )
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", tail[tail.rfind("{") :]):
        ways = int(part or sizes[name])
        stride = sizes[name] // (int(before or 1) * ways)
        places[name] = places[name] - places[name] // stride % ways * stride
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, place in zip(ids, zip(*places.values(), strict=True), strict=True):
        groups.setdefault(tuple(map(int, place)), []).append(int(i))
    return tuple(map(tuple, groups.values()))


def _connected(pairs: Groups) -> Groups:
    """The devices that pairs of (source, target) connect, directly or not."""
    group = {i: {i} for pair in pairs for i in pair}
    for source, target in pairs:
        group[source] |= group[target]
        for i in group[source]:
            group[i] = group[source]
    return tuple({id(members): tuple(sorted(members)) for members in group.values()}.values())
