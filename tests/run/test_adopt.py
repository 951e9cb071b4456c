"""A run that starts from weights in TorchScale's names, and a model written in them."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import jax
import numpy as np
import pytest
from run.tiny import tiny
from safetensors.numpy import load_file, save_file

from jscale.config.data import write
from jscale.data.tokenizers import Tokenizer
from jscale.errors import CheckpointError, ConfigError, UserError
from jscale.formats.files import Files
from jscale.formats.huggingface import config_of
from jscale.formats.torchscale import table
from jscale.launch.cli import main
from jscale.launch.commands import importing
from jscale.models import Llama, Model, RetNet
from jscale.models.feed import GLU
from jscale.run.adopt import adopt
from jscale.run.restored import open_run

SMALL = RetNet(vocab=260, dim=16, value=32, heads=2, layers=2, feed=GLU(24, "swish"), remat="none")


@pytest.fixture
def release(tmp_path):
    """A recipe's file, and weights as TorchScale would have written them."""
    params = Model(SMALL).init(jax.random.key(7))
    save_file(table(SMALL).write(params), tmp_path / "theirs.safetensors")
    recipe = tiny(tmp_path, model=SMALL, steps=4)
    write(tmp_path / "recipe.json", recipe)
    return recipe, tmp_path / "theirs.safetensors"


def test_there_and_back_from_the_command_line(release, tmp_path, capsys):
    recipe, weights = release
    run, out = tmp_path / "run", tmp_path / "out"
    assert (
        main(
            ["import", "torchscale", str(weights), str(tmp_path / "recipe.json"), "--run", str(run)]
        )
        == 0
    )
    assert f"step 0 of {run}" in capsys.readouterr().out
    assert open_run(run).step == 0
    assert main(["export", str(run), str(out), "--as", "torchscale"]) == 0
    given, found = load_file(weights), load_file(out / "model.safetensors")
    assert set(given) == set(found)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    # Training goes on from there.
    assert main(["train", str(run / "recipe.json"), "--run", str(run)]) == 0
    assert json.loads((run / "summary.json").read_text())["step"] == 4
    assert "going on from step 0" in capsys.readouterr().out


def test_what_cannot_be_is_refused_before_a_folder_is_made(release, tmp_path):
    recipe, weights = release
    run = tmp_path / "run"
    save_file(dict(list(load_file(weights).items())[1:]), tmp_path / "fewer.safetensors")
    with Files(tmp_path / "fewer.safetensors") as fewer:
        with pytest.raises(CheckpointError, match="the release lacks"):
            adopt(recipe, run, table(SMALL), fewer)
        assert not run.exists()
    with Files(weights) as tensors:
        (tmp_path / "there").mkdir()
        with pytest.raises(ConfigError, match="is there already"):
            adopt(recipe, tmp_path / "there", table(SMALL), tensors)
    with pytest.raises(ConfigError, match="TorchScale has no Llama"):
        table(Llama(vocab=8, dim=8, layers=1, heads=1, kv_heads=1, hidden=8))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of a small Llama of bytes, and it as a release."""
    at = tmp_path_factory.mktemp("exported")
    write(at / "recipe.json", tiny(at, steps=3))
    assert main(["train", str(at / "recipe.json"), "--run", str(at / "first")]) == 0
    assert main(["export", str(at / "first"), str(at / "small"), "--as", "huggingface"]) == 0
    return at


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
    """A copy of the release in the working folder, and a text."""
    monkeypatch.chdir(tmp_path)
    copytree(exported / "small", "small")
    Path("text.txt").write_text("Some text. " * 200)
    return Path("small")


LESS = ["data.source=TextFiles(('text.txt',))", "data.batch=2", "data.heldout=0", "evaluation=None"]


def test_a_release_goes_on_without_a_recipe(exported, folder, capsys):
    assert main(["import", "small", "optimizer.peak=0.5", "steps=2", "data.length=16", *LESS]) == 0
    assert "jscale train runs/small  goes on" in capsys.readouterr().out
    run = open_run(Path("runs/small"))
    optimizer: Any = run.recipe.optimizer
    assert (run.step, run.recipe.steps, optimizer.peak) == (0, 2, 0.5)
    assert run.model.config == config_of(folder)
    assert run.tokenizer.fingerprint == Tokenizer.load(exported / "first").fingerprint
    given = open_run(exported / "first").params
    jax.tree.map(np.testing.assert_array_equal, run.params, given)
    assert main(["train", "runs/small"]) == 0
    assert json.loads(Path("runs/small/summary.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["smal"], "is no folder|there is no folder|is named owner/name"),
        (["torchscale", "small"], "do not say which model they are of: name a recipe"),
        (["small", "tiny", "more"], r"takes \[FORMAT\] WEIGHTS \[RECIPE\]"),
        (["huggingface", "small", "tiny"], "has other sizes than the recipe's model"),
        (["huggingface", "small/model.safetensors", "tiny"], "has other sizes than the recipe's"),
        (["steps=2"], r"takes \[FORMAT\] WEIGHTS \[RECIPE\]"),
        (["small", "step=2"], "did you mean 'steps'"),
        (["small", "quikstart"], "did you mean 'quickstart'"),
    ],
)
def test_words_that_make_no_import_are_refused(folder, words, message):
    with pytest.raises(UserError, match=message):
        importing.main(words)
    assert not Path("runs").exists()


def test_a_release_without_a_tokenizer_asks_for_one(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="has no tokenizer.json: say which"):
        importing.main(["small"])
    assert importing.main(["small", "data.tokenizer=Bytes()", "data.length=16", *LESS]) == 0
