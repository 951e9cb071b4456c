"""The exclusive right to write into a folder, which ends with the process that holds it."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from jscale.errors import CheckpointError


class Lease:
    """Holds `<folder>/lock` until closed; the kernel frees it if the process is killed.

    The folder is created. Works on local disks and on NFS version 4.

    Raises:
        CheckpointError: another process holds it (named), or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(self._file.fileno())
        except BlockingIOError:
            self._file.close()
            raise CheckpointError(
                f"{folder} is in use by {_owner(self.path)}; stop it, or give this run a folder "
                "of its own"
            ) from None
        except OSError as error:
            self._file.close()
            raise _unwritable(folder, error) from error

    def close(self) -> None:
        """Gives the right back; the file stays, empty."""
        if not self._file.closed:
            os.ftruncate(self._file.fileno(), 0)
            self._file.close()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _unwritable(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be written: {error.strerror}; choose another folder or mend it"
    )


def _write(descriptor: int) -> None:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"process": os.getpid(), "host": socket.gethostname(), "started": started}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return "process {process} on {host} since {started}".format(**owner)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
