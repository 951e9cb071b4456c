"""TensorBoard events in the run's folder."""

import socket
import struct
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
    """Scalars and texts as TensorBoard reads them, each in the file when the call returns.

    The records are tensorboardX's; its own writer is a thread behind a short queue, which dies on a
    full disk and then holds the program for ever.
    """

    def __init__(self, folder: Path, step: int) -> None:
        resumed = folder.is_dir() and any(folder.iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        # By the nanosecond: a quick restart must not meet its predecessor's file.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = (folder / name).open("xb", buffering=0)
        self._append(0, file_version="brain.Event:2")
        if resumed:
            self._append(step + 1, session_log={"status": "START"})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point for every name."""
        points = [{"tag": name, "simple_value": float(value)} for name, value in values.items()]
        self._append(step, summary={"value": points})

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text, shown as it is and not as Markdown."""
        from tensorboardX.summary import text as summary

        indented = "\n".join("    " + line for line in text.splitlines())
        self._append(step, summary=summary(name, indented))

    def close(self) -> None:
        """Close the events file."""
        self._file.close()

    def _append(self, step: int, **content: Any) -> None:
        """One record: its length, its content, a checksum of either."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c

        kinds: Any = event_pb2  # whose classes are made when it is imported
        body = kinds.Event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(body))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, body)]
        record = length + sums[0] + body + sums[1]
        if self._file.write(record) != len(record):
            raise OSError(None, "the disk is full", self._file.name)
