"""The named scope of an instruction: where in the model it comes from, and whether going back.

JAX writes the path of an operation as `jit(step)/transpose(jvp(layers))/while/body/attend/mul`:
scopes of the model between the marks of its own transformations, and the primitive at the end.
"""

import re
from typing import NamedTuple

MARK = re.compile(  # what stands in a path and is no scope: JAX's own calls, and einsum's equation
    r"while|body|cond|closed_call|eval_jaxpr|core_call|checkpoint|remat2?|rematted_computation|scan"
    r"|pjit|shard_map|custom_[jv][jv]p_call(_jaxpr)?|branch_\d+_fun|p?jit\(.*\)|.*->.*",
    re.DOTALL,
)
WRAPPER = re.compile(r"(\w+)\((.*)\)$", re.DOTALL)


class Scope(NamedTuple):
    """A path of named scopes, "layers/attend", "" outside all; and whether of the backward pass."""

    path: str
    backward: bool = False

    def __str__(self) -> str:
        return (self.path or "(no scope)") + (" backward" if self.backward else "")


def scope_of(op_name: str) -> Scope:
    """The scope in the metadata of an instruction; for one made of several, what they share.

    >>> scope_of("jit(step)/transpose(jvp(layers))/while/body/closed_call/attend/mul")
    Scope(path='layers/attend', backward=True)
    """
    pieces = split(op_name.partition(";")[0], "/")
    if WRAPPER.match(pieces[-1]) is None and not pieces[-1].startswith("("):
        pieces.pop()  # the primitive
    scopes, backward = _scopes(pieces)
    return Scope("/".join(filter(None, scopes)), backward)


def _scopes(pieces: list[str]) -> tuple[list[str], bool]:
    """The model's own scopes among the pieces of a path, and whether it is of a backward pass."""
    out: list[str] = []
    backward = False
    for piece in pieces:
        found = WRAPPER.match(piece)
        if piece.startswith("("):  # several operations that became one: (a/x:b/y)
            each = [scope_of(alternative) for alternative in split(piece[1:-1], ":")]
            each = [scope for scope in each if scope.path] or each
            out += _shared([scope.path.split("/") for scope in each])
            backward = backward or all(scope.backward for scope in each)
        elif found and found[1] in ("jvp", "vmap", "transpose"):
            inner, back = _scopes(split(found[2], "/"))
            out += inner
            backward = backward or back or found[1] == "transpose"
        elif piece and not MARK.fullmatch(piece):
            out.append(piece)
    return out, backward


def split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks that stand outside all parentheses."""
    out, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == mark and not depth:
            out.append(text[start:place])
            start = place + 1
    return [*out, text[start:]]


def _shared(paths: list[list[str]]) -> list[str]:
    """The beginning that all paths have; where there is none, what they begin with."""
    out: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        out.append(parts[0])
    return out or [" + ".join(dict.fromkeys(path[0] for path in paths))]
