"""Stopping at the same step on all processes, though signals reach each of them at another one."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jscale.signals import Signals

LAG = 2  # steps that an answer may be under way: asking then waits for no device


class Stops:
    """The signal on which to stop, the same on every process at the same step.

    One process stops on what it hears. Several ask one another at each step, by a program of one
    number a device that runs between the steps, and read the answer `LAG` steps later. Its order
    among the other programs is the same everywhere, so that all read the same answer at the same
    step: no process goes on into a step that another will not begin.
    """

    def __init__(self, signals: Signals, mesh: Mesh) -> None:
        self._signals = signals
        self._several = jax.process_count() > 1
        self._answers: deque[Array] = deque()
        self._questions: dict[int, Array] = {}
        flat = Mesh(mesh.devices.reshape(-1), ("device",))
        self._devices = flat.devices.shape
        self._where = NamedSharding(flat, PartitionSpec("device"))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(flat, PartitionSpec()))

    def asked(self) -> int | None:
        """The signal that any process has heard, or None. All must call it, once a step."""
        if not self._several:
            return self._signals.asked
        self._answers.append(self._largest(self._question(self._signals.asked or 0)))
        if len(self._answers) <= LAG:
            return None
        return int(self._answers.popleft()) or None

    def _question(self, signum: int) -> Array:
        """The number on every device of this process; kept, for it is nearly always 0."""
        if signum not in self._questions:
            value = np.full(self._devices, signum, np.int32)
            self._questions[signum] = jax.make_array_from_callback(
                value.shape, self._where, lambda index: value[index]
            )
        return self._questions[signum]
