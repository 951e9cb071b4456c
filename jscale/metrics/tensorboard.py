"""TensorBoard events in the run's folder."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorBoard:
    """Write TensorBoard events into `events/` of the run's folder."""

    def open(self, folder: Path, step: int) -> "TensorBoardWriter":
        """Continue after `step`: TensorBoard hides what an earlier process wrote beyond it."""
        return TensorBoardWriter(folder / "events", step)


class TensorBoardWriter:
    """Scalars and texts as TensorBoard reads them.

    Written by this thread, not by tensorboardX's own: that one dies in silence on a full disk, and
    the training loop then waits for ever for room in its queue.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # slow to import
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        resumed = any(folder.iterdir())
        # Files are named by the second: a quick restart would overwrite its predecessor.
        suffix = f".{os.getpid()}.{time.time_ns()}"
        self._events = EventsWriter(str(folder / "events"), suffix)
        self._closed = False
        if resumed:
            self._write(step + 1, session_log=SessionLog(status=SessionLog.START))
        self._events.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point for every name."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(name, float(value)))
        self._events.flush()

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text, shown as it is and not as Markdown."""
        from tensorboardX import summary

        indented = "\n".join("    " + line for line in text.splitlines())
        self._write(step, summary=summary.text(name, indented))
        self._events.flush()

    def close(self) -> None:
        """Close the events file."""
        if not self._closed:
            self._closed = True
            self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
