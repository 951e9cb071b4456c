"""The two seams of logging: a destination (recipe data) opens a writer (a file, a service)."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Writer(Protocol):
    """Where numbers go while a run is going on."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of one step; names are grouped by a slash, as in `train/loss`."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text, such as a sample, of one step."""
        ...

    def close(self) -> None:
        """Write what is still held and let go of files; closing twice is allowed."""
        ...


@runtime_checkable
class Destination(Protocol):
    """A recipe part that knows how to open a writer."""

    def open(self, folder: Path, step: int) -> Writer:
        """A writer into the run's folder, continuing after `step` (0 for a new run).

        Numbers of later steps, left by a process that died, are taken out or marked void.
        """
        ...


class Writers:
    """Several writers as one."""

    def __init__(self, folder: Path, step: int, destinations: Sequence[Destination]) -> None:
        self._writers: list[Writer] = []
        with ExitStack() as opened:
            for destination in destinations:
                writer = destination.open(folder, step)
                opened.callback(writer.close)
                self._writers.append(writer)
            self._opened = opened.pop_all()  # only when all could be opened

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of one step to every writer."""
        for writer in self._writers:
            writer.scalars(step, values)

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text of one step to every writer."""
        for writer in self._writers:
            writer.text(step, name, text)

    def close(self) -> None:
        """Close every writer, also when one of them fails."""
        self._opened.close()
