"""`jscale upcycle`: a run with experts that starts from a dense one."""

import json
from dataclasses import replace
from typing import Any

import pytest
from run.tiny import tiny

from jscale.config.data import write
from jscale.data import BytePairs
from jscale.errors import ConfigError
from jscale.launch.cli import main
from jscale.launch.commands import upcycle
from jscale.models import Mixtral
from jscale.models.gates import TopK
from jscale.models.sparse import Experts
from jscale.run.restored import open_run
from jscale.run.trainer import Trainer


@pytest.fixture
def dense(tmp_path):
    """The folder of a dense run, and a recipe with experts of half its hidden size."""
    recipe = tiny(tmp_path, steps=3, samples=None, evaluation=None)
    with Trainer(recipe, tmp_path / "dense") as trainer:
        trainer.fit()
    names = ("vocab", "dim", "layers", "heads", "kv_heads", "hidden", "rope", "remat")
    sizes: Any = {name: getattr(recipe.model, name) for name in names}
    model = Mixtral(**sizes, experts=Experts(4, TopK(2), 32))
    return tmp_path / "dense", replace(recipe, model=model)


def test_a_run_goes_on_with_experts(dense, tmp_path, capsys):
    folder, recipe = dense
    write(tmp_path / "moe.json", recipe)
    words = [str(folder), str(tmp_path / "moe.json"), "--run", str(tmp_path / "moe")]
    assert main(["upcycle", *words]) == 0
    said = capsys.readouterr().out
    assert "2 copies of each feed-forward" in said and "logits of random tokens are within" in said
    run = open_run(tmp_path / "moe")
    experts = run.params["blocks"]["block"]["feed"]["routed"]["expert"]
    assert run.step == 0 and experts["up"]["kernel"].shape == (2, 4, 32, 32)
    with pytest.raises(ConfigError, match="is there already; upcycle into a new run"):
        upcycle.main(words)
    assert main(["train", str(tmp_path / "moe")]) == 0
    assert json.loads((tmp_path / "moe" / "summary.json").read_text())["step"] == 3


def test_what_cannot_go_on_makes_no_folder(dense, tmp_path):
    folder, recipe = dense
    wrong = {
        "as the dense one: rope": replace(recipe, model=replace(recipe.model, rope=5.0)),
        "tokens are others than those of": replace(
            recipe, data=replace(recipe.data, tokenizer=BytePairs(260))
        ),
    }
    for message, other in wrong.items():
        write(tmp_path / "other.json", other)
        words = [str(folder), str(tmp_path / "other.json"), "--run", str(tmp_path / "moe")]
        with pytest.raises(ConfigError, match=message):
            upcycle.main(words)
        assert not (tmp_path / "moe").exists()
