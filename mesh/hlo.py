"""A reader of optimised HLO: the text that `compiled.as_text()` gives, as values.

Only what the accounting needs is read: which instructions there are, how many bytes they take and
give, what they call, and how often loops turn. The grammar is that of XLA's printer
(openxla.org/xla/operation_semantics and the text it writes).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jscale.errors import ConfigError

ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=?]*)\]")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][\w\-]*)\(")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+)\b.*\{\s*$")
OPERAND = re.compile(r"%([\w.\-]+)(?:#(\d+))?")
CALLED = re.compile(r"\b(calls|body|condition|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
SMALL = {"pred": 8, "token": 0, "opaque": 0}  # bits of the types whose name does not say them


def size_of(shape: str) -> int:
    """Bytes of a shape as HLO writes it, of all its parts if it is a tuple.

    >>> size_of("(f32[2,3]{1,0}, bf16[4]{0}, s32[])")
    36
    """
    return sum(map(_array_bytes, ARRAY.findall(shape)))


def _array_bytes(array: tuple[str, str]) -> int:
    dtype, dims = array
    number = re.search(r"\d+", dtype)
    bits = SMALL[dtype] if dtype in SMALL else int(number[0]) if number else 0
    return math.ceil(math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d) * bits / 8)


class Operand(NamedTuple):
    """The name of an instruction, and which element of it if it is a tuple and not all is meant."""

    name: str
    element: int | None


@dataclass(frozen=True)
class Instruction:
    """One line of a computation. `attributes` is what stands after the operands, as written."""

    name: str
    opcode: str
    shape: str
    operands: tuple[Operand, ...]
    literal: str  # what stands in the parentheses, for constants and parameters
    attributes: str

    @property
    def bytes(self) -> int:
        """Bytes of the result on one device."""
        return size_of(self.shape)

    @cached_property
    def op_name(self) -> str:
        """Where it comes from in the program that was traced: `jit(step)/jvp(embed)/gather`."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    @cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """The computations that it calls, by role: calls, body, condition, to_apply, …"""
        attributes = self.attributes.partition("metadata={")[0]
        pairs = CALLED.findall(attributes)
        return {role: tuple(re.findall(r"[\w.\-]+", names)) for role, names in pairs}

    def attribute(self, name: str) -> str | None:
        """The text of an attribute, up to the comma or the end of its braces; None if absent."""
        start = self.attributes.find(f" {name}=")
        return None if start < 0 else _value(self.attributes[start + len(name) + 2 :])


def _value(text: str) -> str:
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and not depth and not text.startswith(", device_ids", i):
            return text[:i]
    return text


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text; `root` is the one whose value it returns."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def operand_bytes(self, instruction: Instruction) -> int:
        """Bytes on one device of all that an instruction is given."""
        total = 0
        for name, element in instruction.operands:
            shape = self.instructions[name].shape if name in self.instructions else ""
            parts = ARRAY.findall(shape)
            total += size_of(shape) if element is None else _array_bytes(parts[element])
        return total


@dataclass(frozen=True)
class Program:
    """A compiled module: its computations, the one that runs, and the devices it was made for."""

    name: str
    computations: Mapping[str, Computation]
    entry: str
    devices: int

    @cached_property
    def instructions(self) -> dict[str, Instruction]:
        """Every instruction by its name, which is unique in a module."""
        return {n: i for c in self.computations.values() for n, i in c.instructions.items()}

    @cached_property
    def times(self) -> dict[str, int | None]:
        """How often a run executes each computation; None where a loop's length is not known.

        A branch of a conditional counts as executed whenever the conditional is.
        """
        times: dict[str, int | None] = dict.fromkeys(self.computations, 0)
        times[self.entry] = 1
        for name in self._callers_first():
            for instruction in self.computations[name].instructions.values():
                for role, called in instruction.called.items():
                    more = multiply(times[name], self._turns(name, instruction, role))
                    for target in called:
                        times[target] = add(times[target], more)
        return times

    def _turns(self, computation: str, instruction: Instruction, role: str) -> int | None:
        if instruction.opcode.endswith(("-done", "-update")):  # names again what -start called
            return 0
        if instruction.opcode != "while":
            return 1
        turns = trip_count(self, self.computations[computation], instruction)
        return add(turns, 1) if role == "condition" else turns

    def _callers_first(self) -> list[str]:
        """The computations that run, each after all that call it."""
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            seen.add(name)
            for instruction in self.computations[name].instructions.values():
                for names in instruction.called.values():
                    for target in names:
                        if target not in seen:
                            visit(target)
            order.append(name)

        visit(self.entry)
        return order[::-1]


def multiply(a: int | None, b: int | None) -> int | None:
    """a · b, where None is a number that is not known; nothing, however often, is nothing."""
    if a == 0 or b == 0:
        return 0
    return None if a is None or b is None else a * b


def add(a: int | None, b: int | None) -> int | None:
    """a + b, where None is a number that is not known."""
    return None if a is None or b is None else a + b


def read(text: str) -> Program:
    """The program that a text of optimised HLO describes.

    Raises:
        ConfigError: it is no such text.
    """
    computations: dict[str, Computation] = {}
    entry, name, root, lines = "", "", "", {}
    for line in text.splitlines():
        if line.startswith("}") and name:
            computations[name] = Computation(name, lines, root)
            name = ""
        elif line[:1].isspace():
            found = INSTRUCTION.match(line) if name else None
            if found:
                lines[found[2]] = _instruction(line, found)
                root = found[2] if found[1] else root
        elif found := COMPUTATION.match(line):
            name, root, lines = found[2], "", {}
            entry = name if found[1] else entry
    if not text.startswith("HloModule") or entry not in computations:
        raise ConfigError(
            "this is no text of a compiled program: it must begin with HloModule and have an ENTRY"
            " computation, as compiled.as_text() gives it"
        )
    head = text.partition("\n")[0]
    copies = [re.search(rf"\b{n}=(\d+)", head) for n in ("num_partitions", "replica_count")]
    devices = math.prod(int(count[1]) for count in copies if count)
    return Program(re.split(r"[ ,]", head)[1], computations, entry, devices)


def _instruction(line: str, found: re.Match[str]) -> Instruction:
    depth, end = 1, found.end()
    while depth and end < len(line):
        depth += (line[end] == "(") - (line[end] == ")")
        end += 1
    inside = line[found.end() : end - 1]
    pairs = OPERAND.findall(inside)
    operands = tuple(Operand(name, int(index) if index else None) for name, index in pairs)
    return Instruction(found[2], found[4], found[3], operands, inside, line[end:])


# Loops whose length the compiler did not write down: the counter is followed through the program.

SAME = ("copy", "bitcast", "convert", "reshape")  # of a scalar: the same number


class Counter(NamedTuple):
    """Element `element` of a loop's state, plus `step`; a constant where there is no element."""

    element: int | None
    step: int


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often a while loop turns, as the compiler notes it or as its counter shows; else None."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted[1])
    condition, body = (program.computations[loop.called[r][0]] for r in ("condition", "body"))
    compared = _compared(program, condition)
    if compared is None:
        return None
    counter, limit = compared
    if counter.element is None or limit.element is not None:
        return None
    start = _follow(program, computation, _element(computation, loop.operands[0], counter.element))
    after = _follow(program, body, _element(body, Operand(body.root, None), counter.element))
    if start is None or start.element is not None or after is None:
        return None
    if after.element != counter.element or after.step < 1:
        return None
    return max(0, math.ceil((limit.step - start.step - counter.step) / after.step))


def _compared(program: Program, condition: Computation) -> tuple[Counter, Counter] | None:
    """The two sides of a loop's condition `a < b`."""
    where, root, given = condition, condition.instructions[condition.root], {}
    if root.opcode == "fusion":
        given = {i: _follow(program, condition, o) for i, o in enumerate(root.operands)}
        where = program.computations[root.called["calls"][0]]
        root = where.instructions[where.root]
    if root.opcode != "compare" or root.attribute("direction") != "LT":
        return None
    left, right = (_follow(program, where, operand, given) for operand in root.operands)
    return None if left is None or right is None else (left, right)


def _element(computation: Computation, operand: Operand | None, index: int) -> Operand | None:
    """The operand that became element `index` of a tuple."""
    made = computation.instructions.get(operand.name) if operand else None
    if made is None or made.opcode != "tuple" or index >= len(made.operands):
        return None
    return made.operands[index]


def _follow(
    program: Program,
    computation: Computation,
    operand: Operand | None,
    given: Mapping[int, Counter | None] | None = None,
) -> Counter | None:
    """What a scalar is, in terms of the loop's state; `given` are the values of the parameters."""
    made = computation.instructions.get(operand.name) if operand else None
    if made is None or operand is None:
        return None
    if made.opcode == "parameter":
        whole = operand.element is None
        return (given or {}).get(int(made.literal)) if whole else Counter(operand.element, 0)
    if made.shape.split("{")[0] not in ("s32[]", "u32[]", "s64[]", "u64[]"):
        return None
    if made.opcode == "constant":
        return Counter(None, int(made.literal))
    if made.opcode == "get-tuple-element":
        source = computation.instructions[made.operands[0].name]
        index = int(made.attribute("index") or 0)
        return Counter(index, 0) if source.opcode == "parameter" else None
    inner = lambda: [_follow(program, computation, o, given) for o in made.operands]
    if made.opcode in SAME:
        return inner()[0]
    if made.opcode == "add":
        return _sum(*inner())
    if made.opcode in ("fusion", "call"):
        target = program.computations[next(iter(made.called.values()))[0]]
        return _follow(program, target, Operand(target.root, None), dict(enumerate(inner())))
    return None


def _sum(a: Counter | None, b: Counter | None) -> Counter | None:
    if a is None or b is None or (a.element is not None and b.element is not None):
        return None
    return Counter(a.element if b.element is None else b.element, a.step + b.step)
