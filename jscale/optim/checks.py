"""What a number in an optimizer or a schedule may be, said once.

Every function looks at named fields of a frozen dataclass and raises a `ConfigError` that names the
class, the field, what was found and what would be right.
"""

import math

from jscale.errors import ConfigError


def _require(owner: object, name: str, holds: bool, right: str) -> None:
    if not holds:
        found = getattr(owner, name)
        raise ConfigError(f"{type(owner).__name__}.{name} is {found!r}; it must be {right}")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def positive(owner: object, *names: str) -> None:
    """The fields are finite numbers above zero."""
    for name in names:
        number = _number(getattr(owner, name))
        _require(owner, name, number is not None and number > 0, "a number above 0")


def not_negative(owner: object, *names: str) -> None:
    """The fields are finite numbers, zero or more."""
    for name in names:
        number = _number(getattr(owner, name))
        _require(owner, name, number is not None and number >= 0, "a number, 0 or more")


def fraction(owner: object, *names: str) -> None:
    """The fields are numbers from 0 to 1, both allowed."""
    for name in names:
        number = _number(getattr(owner, name))
        _require(owner, name, number is not None and 0 <= number <= 1, "a number from 0 to 1")


def rate_of_decay(owner: object, *names: str) -> None:
    """The fields are numbers from 0 up to, and without, 1: the memory of a running average."""
    for name in names:
        number = _number(getattr(owner, name))
        right = "a number from 0 up to (and without) 1"
        _require(owner, name, number is not None and 0 <= number < 1, right)


def count(owner: object, *names: str, least: int = 0) -> None:
    """The fields are whole numbers, `least` or more."""
    for name in names:
        value = getattr(owner, name)
        holds = isinstance(value, int) and not isinstance(value, bool) and value >= least
        _require(owner, name, holds, f"a whole number, {least} or more")


def span(owner: object, *names: str, least: int = 0) -> None:
    """The fields are whole numbers, `least` or more, or shares above 0 and below 1."""
    for name in names:
        value = getattr(owner, name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        share = isinstance(value, float) and 0 < value < 1
        right = f"a whole number, {least} or more, or a share of the run below 1"
        _require(owner, name, whole or share, right)


def one_of(owner: object, name: str, choices: tuple[str, ...]) -> None:
    """The field is one of the choices."""
    value = getattr(owner, name)
    _require(owner, name, value in choices, f"one of {', '.join(map(repr, choices))}")


def kind(owner: object, name: str, wanted: type) -> None:
    """The field is an instance of `wanted` (a class or a runtime-checkable protocol)."""
    value = getattr(owner, name)
    _require(owner, name, isinstance(value, wanted), f"a {wanted.__name__}")
