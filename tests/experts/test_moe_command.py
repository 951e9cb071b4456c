"""`jscale moe` on a run that was trained, on one written by hand, and on data before training."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experts.synthetic import course, drawn, experts
from report.runs import Page, line, write_run
from run.tiny import tiny, train

from jscale.checkpoint import Checkpoints
from jscale.experts.journal import Entry, Journal, evenly, read
from jscale.experts.layer import Layer
from jscale.launch.cli import main
from jscale.mesh import MeshShape
from jscale.models import Mixtral
from jscale.models.gates import Balance, TopK
from jscale.models.sparse import Experts
from jscale.recipe import Recipe
from jscale.report import report

E, LAYERS = 4, 2
MODEL = Mixtral(
    vocab=260, dim=16, layers=LAYERS, heads=2, kv_heads=1, hidden=16, remat="none",
    experts=Experts(E, TopK(2), balance=Balance(0.0)),
)  # fmt: skip


def mixture(folder: Path, **changes: Any) -> Recipe:
    one = MeshShape(data=1)
    recipe = tiny(folder, model=MODEL, steps=3, mesh=one, samples=None, evaluation=None, **changes)
    return replace(recipe, name="mixture", checkpoints=Checkpoints(every=3))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps. Not to be changed."""
    folder = tmp_path_factory.mktemp("mixture")
    train(mixture(folder), folder / "run")
    return folder / "run"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["moe", *map(str, words)]) == 0
    return capsys.readouterr().out


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    return json.loads(said(capsys, *words, "--json"))


def failed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    status = main(["moe", *map(str, words)])
    return status, capsys.readouterr().err


def test_a_trained_run_is_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "report", run)
    assert text.startswith("mixture: step 3 of 3; 2 layers of experts")
    assert re.search(r"^0 +4 +\d", text, re.MULTILINE), "a row for each layer"
    assert "dropped: 0 of" in text and "no replays" in text
    told = asked(capsys, "report", run)
    (first, *_, last) = read(run / "experts.jsonl")
    assert told["kept"] == [1, 2, 3] and first.step == 1
    assert [x["name"] for x in told["layers"]] == [x.name for x in last.layers]
    most = last.layers[0].chosen.max() / last.layers[0].chosen.mean()
    assert told["layers"][0]["most"] == pytest.approx(most, rel=1e-5)


def test_the_page_shows_the_experts(run: Path, tmp_path: Path) -> None:
    page = Page(report([run], tmp_path / "page.html"))
    assert "now: 2 layers × 4 experts" in page.text and "layer 1" in page.text
    assert ("a", {"href": "#experts"}) in page.tags


@pytest.fixture
def recipe_file(run: Path) -> Iterator[Path]:
    path = run.parent / "mixture_recipe.py"
    path.write_text(
        "from pathlib import Path\nfrom experts.test_moe_command import mixture\n\n\n"
        f"def recipe():\n    return mixture(Path({str(run.parent)!r}))\n"
    )
    yield path
    path.unlink()


def test_the_doctor_sees_what_the_first_step_saw(
    run: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights, the same batch, the same way forward: the same loads."""
    told = asked(capsys, "doctor", recipe_file, "--batches", 1)
    first = next(read(run / "experts.jsonl"))
    for found, layer in zip(told["layers"], first.layers, strict=True):
        most = layer.chosen.max() / layer.chosen.mean()
        assert found["most"] == pytest.approx(most, rel=1e-5)
        assert found["log_sum"] == pytest.approx(layer.log_sum / layer.tokens, rel=1e-4)
    assert any("on 2 devices" in note for note in told["notes"])


def test_the_doctor_takes_the_weights_of_a_run_and_data_of_ones_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} " * 40}) + "\n" for i in range(40))
    )
    before = sorted(p.name for p in run.iterdir())
    text = said(capsys, "doctor", run, "--data", tmp_path / "mine.jsonl", "--batches", 2)
    assert "the newest weights of" in text and "mine.jsonl" in text
    assert "dropped by experts that are full: 0.00%" in text
    assert sorted(p.name for p in run.iterdir()) == before


def test_the_doctor_counts_what_bounds_would_lose(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = "model.experts.choice=Top2(training=Even(0.5),evaluation=Even(0.5))"
    bounds = half, "model.experts.dispatch.room=0.4"
    told = asked(capsys, "doctor", recipe_file, *bounds, "--batches", 1)
    assert all(layer["dropped"] > 0.1 for layer in told["layers"])
    assert all("dropping" in layer["verdict"] for layer in told["layers"])
    assert any(note.endswith("1 of 1 batches would be done again") for note in told["notes"])
    assert "model.experts.choice.training.factor=" in str(told["advice"])


def test_what_the_doctor_cannot_do(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, status, why in (
        ((recipe_file, "--data", tmp_path / "no.txt"), 65, "there is no file"),
        ((recipe_file, "--batches", 0), 64, "at least 1 batch"),
        ((recipe_file, "--data", recipe_file, tmp_path), 65, "there is no file"),
        (("quickstart", "mesh=auto"), 64, "model=Llama has no experts"),
        (("qwen3_235b_a22b", "mesh=auto", "precision.store=float32"), 73, "qwen3_235b_a22b:twin"),
    ):
        found = failed(capsys, "doctor", *words)
        assert found[0] == status and why in found[1]


GOLDEN = Path(__file__).parent / "report.txt"


def by_hand(folder: Path) -> Path:
    """A run whose second layer collapses from step 300 on, and whose third has a dead expert."""
    steep, path = np.random.default_rng(5).normal(size=16) * 7, "blocks/block/feed/routed"
    dead = np.where(np.arange(16) == 7, -12.0, 0.0)
    (setting,) = experts(balance__scope="microbatch")
    recipe = {"name": "hand", "steps": 100, "model": {"experts": dict(setting.data)}}
    dimension = {"axis": "experts", "size": 16, "over": ["expert"]}
    weights = {f"{path}/expert/up/kernel": {"dimensions": [dimension]}}
    write_run(
        folder,
        [line(600, train_loss=1.0, train_replays=2)],
        recipe=recipe,
        layout={"mesh": {"expert": 4}, "parameters": weights},
    )
    journal = Journal(folder / "experts.jsonl", 0, 600, 10)
    for step in range(10, 601, 10):
        part = max(0, step - 300) / 200
        scores = (np.zeros(16), steep * part, dead)
        each = [drawn(s, step + i, name=f"{path}/{i}") for i, s in enumerate(scores)]
        journal.write(step, each)
    return folder


def test_the_table_of_a_run_written_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "report", by_hand(tmp_path / "hand")) == GOLDEN.read_text("utf-8")


def test_steps_that_are_far_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = asked(capsys, "report", by_hand(tmp_path / "hand"), "--every", 100)
    assert told["kept"] == [100, 200, 300, 400, 500, 600]


def test_a_run_that_is_going_on_has_a_line_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = by_hand(tmp_path / "hand") / "experts.jsonl"
    with journal.open("a") as file:
        file.write('{"step": 610, "lay')
    assert "figures of step 490 to 600" in said(capsys, "report", tmp_path / "hand")


def test_what_is_no_run_of_experts_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = {"name": "dense", "model": {"type": "jscale.models.llama:Llama"}}
    write_run(tmp_path / "dense", [line(1, train_loss=1.0)], recipe=dense)
    young = by_hand(tmp_path / "young")
    (young / "experts.jsonl").unlink()
    torn = by_hand(tmp_path / "torn")
    (torn / "experts.jsonl").write_text('{"step": 1}\n')
    for name, status, why in (
        ("dense", 64, "has no experts: its model is a Llama"),
        ("young", 66, "no step of its experts is kept there yet"),
        ("torn", 66, "experts.jsonl cannot be read"),
        ("none", 66, "there is no folder"),
    ):
        found = failed(capsys, "report", tmp_path / name)
        assert found[0] == status and why in found[1]
    status, why = failed(capsys, "reprot")
    assert status == 64 and "did you mean 'report'?" in why
    assert "report" in said(capsys, "--help")


def test_many_layers_of_many_experts_make_a_small_page(tmp_path: Path) -> None:
    """48 layers of 128 experts whose loads are noise from step to step: no cell like the next."""
    folder, rng = by_hand(tmp_path / "hand"), np.random.default_rng(0)
    (folder / "experts.jsonl").unlink()
    journal = Journal(folder / "experts.jsonl", 0, 20, 1)
    small = np.zeros(0)
    for step in range(1, 21):
        loads = np.round(rng.lognormal(5.0, 0.8, (48, 128)))
        each = [
            Layer(f"routed/{i}", row, row, float(row.sum() / 8), 1.0, 1.0, 1.0, 0.0, 0.0, small)
            for i, row in enumerate(loads)
        ]
        journal.write(step, each)
    page = Page(report([folder], tmp_path / "page.html"))
    assert len(page.raw) < 1_000_000
    assert "48 layers × 128 experts" in page.text and "the other 42 layers" in page.text


def test_a_damaged_journal_costs_its_own_part_of_a_page(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "hand")
    (folder / "experts.jsonl").write_text("[]\n")
    page = Page(report([folder], tmp_path / "page.html"))
    assert "experts.jsonl cannot be read" in page.text and "#experts" not in page.raw


def test_a_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    entries = course(7, lambda step: np.zeros(8), correction=np.array([0.5] * 8))
    journal = Journal(tmp_path / "experts.jsonl", 0, 70, 10)
    for entry in entries:
        journal.write(entry.step, entry.layers)
    found = list(read(tmp_path / "experts.jsonl"))
    for one, other in zip(entries, found, strict=True):
        assert one.step == other.step
        for field in Layer._fields:
            np.testing.assert_array_equal(
                getattr(one.layers[0], field), getattr(other.layers[0], field)
            )
    assert [e.step for e in read(tmp_path / "experts.jsonl", 3)] == [10, 40, 70]
    assert evenly([Entry(1, ()), Entry(2, ())], 1) == [Entry(2, ())]
