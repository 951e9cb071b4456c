"""What is exported is what was trained, bit for bit or rounded once."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jscale.checkpoint.names import named_leaves
from jscale.config.data import read
from jscale.data import Bytes, TextData, Texts
from jscale.data.tokenizers import Tokenizer
from jscale.export import export
from jscale.mesh import make_mesh
from jscale.models import Llama
from jscale.optim import AdamW
from jscale.prepare import task_of
from jscale.recipe import Recipe
from jscale.run.restored import Run


def make_run() -> Run:
    """A model on eight devices that has not been trained."""
    data = TextData(Texts(("some text", "more")), Bytes(), length=8, batch=8, heldout=0.0)
    model = Llama(vocab=260, dim=32, layers=2, heads=4, kv_heads=2, hidden=64)
    recipe = Recipe("exported", model, data, AdamW(peak=1e-3), steps=10)
    task = task_of(recipe, make_mesh(fsdp=4, tensor=2))
    params = task.model.init(jax.random.key(0), task.layout)
    return Run(recipe, task, params, Bytes().load(), step=0)


def read_back(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: array for file in files for name, array in load_file(file).items()}


def test_one_file_holds_every_parameter_by_name(tmp_path):
    run = make_run()
    assert export(run, tmp_path / "out") == [tmp_path / "out" / "model.safetensors"]
    wanted, found = named_leaves(run.params), read_back(tmp_path / "out")
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    assert read(tmp_path / "out" / "recipe.json") == run.recipe
    assert Tokenizer.load(tmp_path / "out").fingerprint == run.tokenizer.fingerprint


def test_many_files_have_an_index(tmp_path):
    run = make_run()
    files = export(run, tmp_path / "out", "bfloat16", shard=20_000)
    assert len(files) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    wanted, found = named_leaves(run.params), read_back(tmp_path / "out")
    assert index["weight_map"].keys() == wanted.keys() == found.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array.astype("bfloat16"))


def test_nothing_is_overwritten_and_wrong_words_are_named(tmp_path):
    run = make_run()
    with pytest.raises(ValueError, match="is there already"):
        export(run, tmp_path)
    with pytest.raises(ValueError, match="choose from float32, bfloat16, float16"):
        export(run, tmp_path / "out", "int8")
    assert list(tmp_path.iterdir()) == []
