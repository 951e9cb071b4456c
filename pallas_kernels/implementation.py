"""Implementations of an operation, and who of them computes a call."""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jscale.errors import ConfigError, did_you_mean
from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.device import Device, device


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        run: the function; its signature is that of all implementations of the operation.
        refuses: why it cannot compute a call, as a clause ("needs heads of …"); None if it can. A
            call is the operation's own description of shapes, dtypes and options.
        platforms: where it runs; a kernel runs interpreted everywhere.
        kernel: whether it is written for one device's arrays, so that no partitioner can split it.
        loops: whether its loops start from plain zeros, which a `shard_map` that checks what varies
            would refuse as it refuses kernels.
        proven: whether it was run and checked on a real chip, or by an interpreter that is exact.
            What is not proven is never chosen, only taken by name.
    """

    run: Callable[..., Any]
    refuses: Callable[[Any], str | None] = lambda call: None
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    kernel: bool = False
    loops: bool = False
    proven: bool = True

    def obstacle(self, call: Any, where: Device) -> str | None:
        """Why this cannot compute the call on that device; None if it can."""
        if where.platform not in self.platforms and not (self.kernel and interpret.active()):
            return f"runs on {' and '.join(self.platforms)} only, not on {where.platform}"
        if self.kernel and where.whole:
            return "runs inside shard_map only, where arrays are split over devices"
        if (self.kernel or self.loops) and where.checked:
            return "runs in a shard_map with check_vma=False only, as jscale.mesh.per_shard makes"
        return self.refuses(call)


_instead: ContextVar[Mapping[str, Implementation] | None] = ContextVar("instead", default=None)


@contextmanager
def instead(others: Mapping[str, Implementation]) -> Iterator[None]:
    """Let others, by the names of operations, compute what is traced inside and names nobody.

    For comparing them within a whole model. jit does not see it: trace inside.
    """
    token = _instead.set(others)
    try:
        yield
    finally:
        _instead.reset(token)


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation's implementations by name, and the order in which they are to be tried.

    `preferred(call, device)` gives names, best first, each with the reason for which it is there;
    the last must be able to compute every call.
    """

    name: str
    implementations: Mapping[str, Implementation]
    preferred: Callable[[Any, Device], Sequence[tuple[str, str]]]

    def pick(self, call: Hashable, named: str | None = None) -> Implementation:
        """The implementation that was named; else the first preferred one that can.

        What was chosen, and why, is logged once for each call and device.

        Raises:
            ConfigError: an unknown name, a named implementation that cannot compute the call, or a
                `shard_map` around that no implementation can be in.
        """
        where = device()
        other = (_instead.get() or {}).get(self.name)
        if named is None and other is not None:
            return other
        if named is None:
            return self.implementations[_choose(self, call, where)]
        if named not in self.implementations:
            known = did_you_mean(named, self.implementations)
            raise ConfigError(f"no implementation {named!r} of {self.name}; {known}")
        obstacle = self.implementations[named].obstacle(call, where)
        if obstacle is not None:
            raise ConfigError(f"{self.name}: implementation {named!r} {obstacle}")
        return self.implementations[named]


@lru_cache(maxsize=1024)  # so that each choice is logged once
def _choose(operation: Operation, call: Any, where: Device) -> str:
    passed = []
    for name, reason in operation.preferred(call, where):
        candidate = operation.implementations[name]
        obstacle = candidate.obstacle(call, where) if candidate.proven else "is not proven"
        if obstacle is None:
            told = "".join(f"; {other!r} {why}" for other, why in passed)
            logging.getLogger("jscale.pallas_kernels").info(
                "%s of %s on %s by %r: %s%s", operation.name, call, where.kind, name, reason, told
            )
            return name
        passed.append((name, obstacle))
    if where.checked:
        raise ConfigError(f"{operation.name}: {passed[-1][0]!r} {passed[-1][1]}")
    raise AssertionError(f"{operation.name}: nothing computes {call}: {passed}")
