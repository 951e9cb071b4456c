"""Numbers on their way from the devices to the host."""

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array


@runtime_checkable
class Arriving(Protocol):
    """A device array, which knows whether it has been computed."""

    def is_ready(self) -> bool:
        """Whether reading it returns at once."""
        ...


Numbers = Mapping[str, Array | Arriving | float]
Fetched = tuple[int, dict[str, Any]]


class Pending:
    """A short queue of metrics that the devices may still be computing.

    Reading a number of the step just dispatched would make the host wait for it, and then the
    devices for the host. Here the host reads what is ready, and waits only for a step that is more
    than `depth` pushes old, which also keeps it from running ahead without bound.

    `early` off, nothing is read before it is that old: processes that must decide alike by what
    they read then read the same at the same step.
    """

    def __init__(self, depth: int = 2, early: bool = True) -> None:
        assert depth >= 0, depth
        self._depth = depth
        self._early = early
        self._waiting: deque[tuple[int, Numbers]] = deque()

    def __len__(self) -> int:
        """How many steps are waiting."""
        return len(self._waiting)

    def push(self, step: int, numbers: Numbers) -> None:
        """Add the numbers of a step; returns at once."""
        self._waiting.append((step, dict(numbers)))

    def ready(self) -> list[Fetched]:
        """The oldest steps that have arrived, in order; waits only beyond `depth`."""
        found = []
        while self._waiting and (len(self) > self._depth or self._may_take_early()):
            found.append(self._take())
        return found

    def drain(self) -> list[Fetched]:
        """All steps, in order, waiting for each."""
        return [self._take() for _ in range(len(self))]

    def _may_take_early(self) -> bool:
        return self._early and _arrived(self._waiting[0][1])

    def _take(self) -> Fetched:
        step, numbers = self._waiting.popleft()
        return step, {name: _plain(value) for name, value in jax.device_get(numbers).items()}


def _plain(value: Any) -> Any:
    """A scalar as a number; what experts had to do, by layer, stays an array."""
    return np.asarray(value) if np.ndim(value) else float(value)


def _arrived(numbers: Numbers) -> bool:
    return all(value.is_ready() for value in numbers.values() if isinstance(value, Arriving))
