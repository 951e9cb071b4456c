"""The folder of a run: where its parts lie, and the exclusive right to write them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from jscale.checkpoint.agreement import first_decides
from jscale.checkpoint.lease import Lease
from jscale.errors import CheckpointError


class RunFolder:
    """`runs/<name>/`, made if it is not there and held by this run alone until closed.

    Made by all processes of a run alike; the first one holds the lease. Should the run be killed,
    the kernel gives the folder free.

    Raises:
        CheckpointError: another run is using the folder (it is named), or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lease: Lease | None = None
        first_decides(self._take)

    @property
    def recipe(self) -> Path:
        """The resolved recipe, as data."""
        return self.path / "recipe.json"

    @property
    def environment(self) -> Path:
        """Versions, devices and the command."""
        return self.path / "environment.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a step (`jscale.checkpoint.store.Store`)."""
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        """TensorBoard's files."""
        return self.path / "events"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def layout(self) -> Path:
        """Where every parameter is on the mesh (`jscale.explain`)."""
        return self.path / "layout.json"

    @property
    def starts(self) -> Path:
        """Each start: when, from which step, its seconds by phase (`jscale.run.starts`)."""
        return self.path / "starts.json"

    @property
    def experts(self) -> Path:
        """What each layer's experts had to do (`jscale.experts.journal`)."""
        return self.path / "experts.jsonl"

    @property
    def samples(self) -> Path:
        """What the model wrote, step by step."""
        return self.path / "samples.txt"

    def close(self) -> None:
        """Gives the folder free for another run."""
        if self._lease is not None:
            self._lease.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self) -> None:
        self._lease = Lease(self.path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes below `path`; what the file system says against it becomes a sentence.

    Raises:
        CheckpointError: there is no room or no permission.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise CheckpointError(f"{where} cannot be written: {error.strerror or error}") from error


def atomic_write(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one whole, even after a crash.

    Raises:
        CheckpointError: it cannot be written (no room, no permission); the old text is untouched.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
