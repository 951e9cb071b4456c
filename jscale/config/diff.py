"""Where two values differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jscale.config.tree import below, is_leaf, is_part, join


class Absent:
    """What stands at a path that one of two values does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


@dataclass(frozen=True)
class Difference:
    """A path and what stands there on either side; a part is shown by its type."""

    path: str
    left: Any
    right: Any


def diff(a: Any, b: Any) -> list[Difference]:
    """Every path at which `a` and `b` differ, in the order of `a`.

    Where a part has another type on either side, that is one difference, and each field that only
    one side has is another.

    >>> diff({"steps": 1, "seed": 0}, {"steps": 2, "seed": 0})
    [Difference(path='steps', left=1, right=2)]
    """
    return list(_diff(a, b, ""))


def _diff(a: Any, b: Any, path: str) -> Iterator[Difference]:
    if is_leaf(a) and is_leaf(b):
        if not same(a, b):
            yield Difference(path, face(a), face(b))
        return
    if type(face(a)) is not type(face(b)) or (is_part(a) and type(a) is not type(b)):
        yield Difference(path, face(a), face(b))
    left = {} if is_leaf(a) else dict(below(a))
    right = {} if is_leaf(b) else dict(below(b))
    for name in [*left, *(name for name in right if name not in left)]:
        yield from _diff(left.get(name, ABSENT), right.get(name, ABSENT), join(path, name))


def face(value: Any) -> Any:
    """What to show for `value`: the type of a part, anything else as it is."""
    return type(value) if is_part(value) else value


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are the same setting: 1 is 1.0 but not True, and nan is nan."""
    if isinstance(a, bool) is not isinstance(b, bool):
        return False
    return bool(a == b) or bool(a != a and b != b)
