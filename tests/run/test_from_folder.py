"""A run's folder is all that generation and evaluation need, and none of its code is executed."""

import json
import math
import shutil
from pathlib import Path

import pytest
from run.tiny import call, contents, tiny, train

from jscale.config.data import to_data
from jscale.generate import Sampling
from jscale.launch.cli import main
from jscale.mesh import MeshShape
from jscale.run.restored import open_run
from jscale.run.trainer import Trainer

PROMPTS = ("def ", "import argparse\n\nclass Parser:\n", "x")
LIKELIEST = Sampling(temperature=0.0)


def test_from_another_folder_the_text_depends_on_the_seed_alone(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(ended)

    def generate(*words: str) -> str:
        assert main(["generate", str(ended / "run"), "--length", "24", *words]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    one = generate("--prompt", "def ", "--seed", "1")
    assert one.startswith("def ") and one == generate("--prompt", "def ", "--seed", "1")
    assert one != generate("--prompt", "def ", "--seed", "2")
    likeliest = generate("--prompt", "def ", "--temperature", "0", "--seed", "1")
    assert likeliest == generate("--prompt", "def ", "--temperature", "0", "--seed", "2")
    assert generate("--prompt", "", "--step", "5")  # the beginning of a document
    together = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    singles = [generate("--prompt", prompt, "--temperature", "0") for prompt in PROMPTS]
    assert generate(*together, "--temperature", "0") == "".join(singles)
    assert contents(ended) == before and list(tmp_path.iterdir()) == []


def test_every_mesh_writes_the_same_text(again: Path) -> None:
    found = []
    for mesh in (MeshShape(fsdp=8), MeshShape(data=2, tensor=2), MeshShape()):
        with Trainer(tiny(again, steps=10, mesh=mesh), again / "run") as trainer:
            found.append(trainer.generate(PROMPTS, 24, LIKELIEST))
            found.append([trainer.generate([p], 24, LIKELIEST)[0] for p in PROMPTS])
    assert all(texts == found[0] for texts in found)


def test_a_run_of_more_devices_than_there_are_is_opened_on_those(again: Path) -> None:
    recipe = json.loads((again / "run/recipe.json").read_text())
    recipe["mesh"] = to_data(MeshShape(stage=64))
    (again / "run/recipe.json").write_text(json.dumps(recipe))
    run = open_run(again / "run")
    assert run.task.layout.mesh.size == 8
    assert run.notes == ("trained on a mesh of 64 devices; here are 8",)


def test_evaluation_is_that_of_training(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(ended / "run"), "--batches", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((ended / "run/summary.json").read_text())
    assert found["step"] == 10
    assert found["loss"] == summary["values"]["heldout/loss"]
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))


def test_a_path_of_the_recipe_means_the_folder_in_which_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jscale.data import TextFiles

    home = tmp_path / "home"
    home.mkdir()
    source = TextFiles(("corpus.txt",), separator="\n\n")
    recipe = tiny(home, source=source, steps=3, evaluation=None, samples=None)
    monkeypatch.chdir(home)
    train(recipe, Path("run"))
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "home/run", "--batches", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3


def test_a_damaged_step_is_said_and_left_where_it_is(
    again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (again / "run/checkpoints/10/note/note.json").write_text("{}")
    before = contents(again)
    assert main(["generate", str(again / "run"), "--prompt", "a", "--length", "2"]) == 0
    assert capsys.readouterr().err == "jscale: step 10 is damaged (its note is not readable)\n"
    assert contents(again) == before


CANARY = "from pathlib import Path\nPath({path!r}).touch()\n\nclass Recipe:\n    pass\n"
HOSTILE = ("os:system", "subprocess:Popen", "canary:Recipe", "builtins:exec", "recipe:Recipe")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_recipe_executes_nothing(
    again: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sign = again / "run", again / "executed"
    for name in ("canary", "recipe", "jscale", "sitecustomize", "conftest"):
        (run / f"{name}.py").write_text(CANARY.format(path=str(sign)))
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["model"] = {"type": kind, "command": f"touch {sign}", "args": [f"touch {sign}"]}
    (run / "recipe.json").write_text(json.dumps(recipe))
    monkeypatch.chdir(run)
    for words in (["generate", ".", "--prompt", "a"], ["evaluate", "."], ["train", "."]):
        assert main(words) == 64
        err = capsys.readouterr().err
        assert err.startswith("jscale: error: ") and kind.split(":")[0] in err
    assert not sign.exists()


def test_code_that_lies_in_the_folder_is_not_imported(again: Path) -> None:
    run, sign = again / "run", again / "executed"
    for name in ("canary", "recipe", "jscale", "jax", "numpy"):
        (run / f"{name}.py").write_text(CANARY.format(path=str(sign)))
    words = ("generate", ".", "--prompt", "a", "--length", 2, "--temperature", 0)
    status, out, _ = call(*words, cwd=run)
    assert (status, out[:1], sign.exists()) == (0, "a", False)


OWN = """
from dataclasses import dataclass
from jscale.models import Llama

@dataclass(frozen=True)
class Mine(Llama):
    pass

from pathlib import Path
from run.tiny import tiny

def recipe():
    model = Mine(vocab=260, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, remat="none")
    return tiny(Path(__file__).parent, model=model, steps=3, samples=None, evaluation=None)
"""


def test_a_model_of_the_users_own_needs_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "own.py"]) == 0
    for words in (["generate", "runs/tiny", "--prompt", "a", "--length", "2"], ["evaluate"]):
        words = [words[0], "runs/tiny", *words[2:]]
        capsys.readouterr()
        assert main(words) == 64
        assert "--import" in capsys.readouterr().err
        assert main([*words, "--import", "own.py"]) == 0
    shutil.rmtree("runs")
