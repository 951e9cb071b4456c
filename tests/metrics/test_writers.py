"""Writers: TensorBoard files read back, several writers as one, the recipe's part."""

import dataclasses
import resource

import pytest

from jscale.errors import ConfigError
from jscale.metrics import (
    Destination,
    Jsonl,
    Logging,
    TensorBoard,
    WandB,
    Writer,
    Writers,
    read_lines,
)


def events(folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_scalars_read_back(tmp_path):
    writer = TensorBoard().open(tmp_path, 0)
    writer.scalars(1, {"train/loss": 2.5, "train/rate": 1e-4})
    writer.scalars(2, {"train/loss": 2.0})
    writer.close()
    writer.close()
    found = events(tmp_path / "events")
    assert set(found.Tags()["scalars"]) == {"train/loss", "train/rate"}
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 2.5), (2, 2.0)]


def test_tensorboard_text_reads_back_unformatted(tmp_path):
    writer = TensorBoard().open(tmp_path, 0)
    writer.text(3, "samples/greedy", "# one\n* two")
    writer.close()
    found = events(tmp_path / "events")
    (tag,) = found.Tags()["tensors"]
    (event,) = found.Tensors(tag)
    assert tag.startswith("samples/greedy") and event.step == 3
    assert event.tensor_proto.string_val == [b"    # one\n    * two"]


def test_tensorboard_resume_hides_what_came_after(tmp_path):
    for resume, steps, value in ((0, range(1, 8), 1.0), (4, range(5, 7), 2.0)):
        writer = TensorBoard().open(tmp_path, resume)
        for step in steps:
            writer.scalars(step, {"loss": value})
        writer.close()
    found = [(e.step, e.value) for e in events(tmp_path / "events").Scalars("loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]


def test_logging_opens_all_writers(tmp_path):
    writers = Logging().open(tmp_path, 0)
    assert isinstance(writers, Writer)
    writers.scalars(1, {"loss": 3.0})
    writers.text(1, "sample", "hello")
    writers.close()
    writers.close()
    lines = list(read_lines(tmp_path / "metrics.jsonl"))
    assert lines[0].values == {"loss": 3.0} and lines[1].text == {"sample": "hello"}
    assert events(tmp_path / "events").Tags()["scalars"] == ["loss"]


def test_no_writers_no_files(tmp_path):
    writers = Logging(writers=()).open(tmp_path, 0)
    writers.scalars(1, {"loss": 3.0})
    writers.close()
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass(frozen=True)
class Broken:
    """A destination that cannot be opened."""

    def open(self, folder, step):
        raise ConfigError("no such service")


def test_when_one_cannot_open_the_others_are_closed(tmp_path):
    with pytest.raises(ConfigError, match="no such service"):  # an open file left would warn
        Writers(tmp_path, 0, (Jsonl(), Broken()))


def test_parts_are_frozen_values():
    assert Logging() == dataclasses.replace(Logging())
    assert hash(Logging()) == hash(Logging())
    assert all(isinstance(d, Destination) for d in (Jsonl(), TensorBoard(), WandB("project")))


def test_mistakes_are_said_in_a_sentence():
    with pytest.raises(ConfigError, match="Logging.every is 0"):
        Logging(every=0)
    with pytest.raises(ConfigError, match="WandB.mode is 'on'"):
        WandB("project", mode="on")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r'pip install "jscale\[wandb\]"'):
        WandB("project").open(tmp_path, 0)


def test_a_full_disk_is_an_error_and_no_hang(tmp_path):
    writer = TensorBoard().open(tmp_path, step=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(OSError):
            for step in range(1, 1_000):
                writer.scalars(step, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
