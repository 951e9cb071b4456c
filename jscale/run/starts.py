"""starts.json: each start of a run, in order: when, from which step, on what, and its seconds."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jscale.compiled import Compilation
from jscale.run.runfolder import atomic_write


class Starts:
    """The file, with an entry for this start that is written anew whenever more is known.

    `about` is what is known from the beginning, which was `spent` seconds ago. Only the first
    process writes. An entry holds
    `began` and `written` (seconds since 1970), `from_step`, `to_step`, `seconds` by phase,
    `compiled` (every compilation of the step), and `memory_in_use`, the most bytes that the first
    device has held, where its driver counts them.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        about: Mapping[str, Any],
        spent: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._clock = path, clock
        self._earlier = read_starts(path)
        self._this = {
            "began": round(clock() - spent, 3),
            "from_step": step,
            **about,
            "compiled": [],
        }

    def compiled(self, compilation: Compilation) -> None:
        """The step was compiled."""
        self._this["compiled"].append(compilation._asdict())

    def know(self, **facts: Any) -> None:
        """Something more to write with this start."""
        self._this |= facts

    def write(self, step: int, seconds: Mapping[str, float]) -> None:
        """Bring the file up to date.

        Raises:
            CheckpointError: it cannot be written.
        """
        if jax.process_index():
            return
        now = {"to_step": step, "written": round(self._clock(), 3), "seconds": dict(seconds)}
        self._this |= {**now, "memory_in_use": memory_in_use()}
        text = json.dumps([*self._earlier, self._this], indent=1, default=str)
        atomic_write(self._path, text + "\n")


def memory_in_use() -> int | None:
    """The most bytes that the first device of this process has held; None where nobody counts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The entries of a file; none where there is no such file or it is not one of these."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    whole = isinstance(found, list) and all(isinstance(entry, dict) for entry in found)
    return found if whole else []
