"""What a recipe will do, said before it does it."""

from pathlib import Path
from typing import Any

import pytest
from run.tiny import call, contents, environment, tiny, write_recipe

from jscale.data import Bytes
from jscale.explain import compile_step, explain
from jscale.launch.cli import main
from jscale.mesh import MeshShape
from jscale.models import Mixtral
from jscale.models.dispatching import Dispatch
from jscale.models.sparse import Experts


@pytest.mark.parametrize("devices", [8, 64, 256])
def test_devices_that_are_not_there_are_only_supposed(tmp_path: Path, devices: int) -> None:
    file = write_recipe(tmp_path, "batch=256")
    none = {**environment(), "JAX_PLATFORMS": "none at all"}  # asking for a device would fail
    status, out, err = call("explain", file, "--devices", devices, cwd=tmp_path, env=none)
    assert (status, err) == (0, "")
    assert f"chosen for {devices} device(s)" in out and "blocks/block/feed_norm/scale" in out
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["corpus.txt", "tiny_recipe.py"]


def test_bytes_are_those_of_the_shards(tmp_path: Path) -> None:
    whole = explain(tiny(tmp_path, mesh=MeshShape()))
    split = explain(tiny(tmp_path, mesh=MeshShape(fsdp=8)))
    assert whole.bytes_per_device["parameters"] == 4 * whole.parameters
    assert split.bytes_per_device["parameters"] < whole.bytes_per_device["parameters"] / 2


def test_how_tokens_get_to_their_experts(tmp_path: Path) -> None:
    model = Mixtral(259, 16, 2, 2, 1, 16, experts=Experts(4, dispatch=Dispatch(chunks=2)))
    changed: dict[str, Any] = dict(model=model, accumulate=2)
    found = explain(tiny(tmp_path, mesh=MeshShape(expert=4), **changed))
    assert "experts over expert=4: gather, in two chunks (on CPU)" in found.totals()
    found = explain(tiny(tmp_path, mesh=MeshShape(fsdp=4), **changed))
    assert found.dispatches == ("experts: local, in two chunks (no mesh axis splits them)",)
    assert explain(tiny(tmp_path)).dispatches == ()


def test_a_dry_run_compiles_the_step_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_recipe(tmp_path, "mesh=MeshShape(fsdp=8)")
    (tmp_path / "corpus.txt").write_text("text")
    before = contents(tmp_path)
    assert main(["train", str(file), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    said = out.splitlines()[-1]
    assert said.startswith("the train step compiles in ") and "on each device" in said and not err
    left = {n: content for n, content in contents(tmp_path).items() if "__pycache__" not in n}
    assert left == before


def test_a_dry_run_reads_how_many_tokens_a_file_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Bytes().load().save(tmp_path / "bytes")
    file = write_recipe(tmp_path, "tokenizer=TokenizerFile('bytes'), model=replace(MODEL, vocab=9)")
    assert main(["train", str(file), "--dry-run"]) == 64
    assert "data.tokenizer has 259 tokens and model.vocab=9" in capsys.readouterr().err


def test_the_memory_of_the_step_is_more_than_its_state(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, mesh=MeshShape(fsdp=8))
    state = explain(recipe).bytes_per_device
    found = compile_step(recipe)
    assert found.memory is not None and found.seconds > 0 and not found.changed
    assert found.memory > state["parameters"] + state["optimizer"]


def test_a_mesh_of_another_size_than_supposed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_recipe(tmp_path, "mesh=MeshShape(fsdp=8)")
    assert main(["explain", str(file), "--devices", "64"]) == 64
    assert "(fsdp=8) has 8 devices, not 64; set mesh=auto" in capsys.readouterr().err
    assert main(["explain", str(file), "mesh=auto", "--devices", "4"]) == 0
