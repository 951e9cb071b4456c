"""TensorBoard events in the run's folder."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TensorBoard:
    """Write TensorBoard events into `events/` of the run's folder."""

    def open(self, folder: Path, step: int) -> "TensorBoardWriter":
        """Continue after `step`: TensorBoard hides what an earlier process wrote beyond it."""
        return TensorBoardWriter(folder / "events", step)


class TensorBoardWriter:
    """Scalars and texts as TensorBoard reads them; at most ten seconds behind."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter  # slow to import

        resumed = folder.is_dir() and any(folder.iterdir())
        self._events = SummaryWriter(
            logdir=str(folder),
            purge_step=step + 1 if resumed else None,
            flush_secs=10,
            # Files are named by the second: a quick restart would overwrite its predecessor.
            filename_suffix=f".{time.time_ns()}",
        )
        self._closed = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point for every name."""
        for name, value in values.items():
            self._events.add_scalar(name, float(value), step)

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text, shown as it is and not as Markdown."""
        indented = "\n".join("    " + line for line in text.splitlines())
        self._events.add_text(name, indented, step)

    def close(self) -> None:
        """Write what is still held and close the events file."""
        if not self._closed:
            self._closed = True
            self._events.close()
