"""The recipe's part on logging."""

from dataclasses import dataclass
from pathlib import Path

from jscale.errors import ConfigError
from jscale.metrics.jsonl import Jsonl
from jscale.metrics.tensorboard import TensorBoard
from jscale.metrics.writers import Destination, Writers


@dataclass(frozen=True)
class Logging:
    """Numbers of every `every`-th step go to the writers; no writers, no files.

    >>> [step for step in range(1, 31) if Logging(every=10).due(step)]
    [1, 10, 20, 30]
    """

    every: int = 10  # steps between two lines
    writers: tuple[Destination, ...] = (Jsonl(), TensorBoard())  # where numbers go

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"Logging.every is {self.every}; it must be 1 or more steps")
        for writer in self.writers:
            if not isinstance(writer, Destination):
                raise ConfigError(
                    f"Logging.writers holds {writer!r}; it takes Jsonl(), TensorBoard(), WandB(...)"
                )

    def due(self, step: int) -> bool:
        """Whether the numbers of this step (from 1) are wanted; those of the first always are."""
        return step == 1 or step % self.every == 0

    def open(self, folder: Path, step: int) -> Writers:
        """All writers as one, continuing after `step` (0 for a new run)."""
        return Writers(folder, step, self.writers)
