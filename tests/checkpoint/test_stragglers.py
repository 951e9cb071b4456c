"""What Orbax's other threads say of a save that failed is said by us, in one sentence, once."""

import logging
from pathlib import Path

import pytest

from jscale.checkpoint.orbax_border import LOGGERS, Writer


class Failing:
    """A save whose first thread has failed."""

    def result(self) -> None:
        raise OSError("the disk is full")


def said_by(path: str) -> logging.LogRecord:
    return logging.LogRecord("absl", logging.ERROR, path, 1, "raised an exception", (), None)


def test_a_thread_that_ends_after_its_save_has_failed_is_not_heard(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    with pytest.raises(OSError, match="the disk is full"):
        writer.finish(Failing())
    writer.close()
    for logger in LOGGERS:
        assert not logger.filter(said_by("/site-packages/orbax/checkpoint/_src/futures/future.py"))
        assert logger.filter(said_by("/site-packages/other/future.py"))
