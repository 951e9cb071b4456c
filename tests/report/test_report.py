"""A report says what the files say, harms nobody, and refuses what is no run in one sentence."""

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.runs import Page, line, write_run
from run.tiny import written

from jscale.config.data import to_data
from jscale.errors import CheckpointError, DataError
from jscale.launch.cli import main
from jscale.launch.commands.arguments import resolve
from jscale.launch.origin import record_base
from jscale.report import read_run, report
from jscale.report.comparison import names_of
from jscale.report.settings import changes, differing, settings
from jscale.report.times import shares


def made(*folders: Path, out: Path | None = None) -> Page:
    return Page(report(folders, out))


def test_numbers_are_those_of_the_file(trained: Path, tmp_path: Path) -> None:
    page = made(trained / "one", out=tmp_path / "page.html")
    series = page.data["runs"][0]["series"]
    assert {"train/loss", "heldout/loss", "train/mfu"} <= series.keys()
    for name, found in series.items():
        assert list(zip(found["step"], found["value"], strict=True)) == written(
            trained / "one", name
        )
        assert found["count"] == len(found["step"])
        assert found["tokens"] == [step * 8 * 32 for step in found["step"]]
        assert found["seconds"] == sorted(found["seconds"]) and found["seconds"][0] > 0


def test_the_last_values_are_in_the_text(trained: Path, tmp_path: Path) -> None:
    page = made(trained / "one", out=tmp_path / "page.html")
    exact = {about["value"] for tag, about in page.tags if tag == "data"}
    for name in page.data["runs"][0]["series"]:
        assert repr(written(trained / "one", name)[-1][1]) in exact


def test_a_report_tells_the_whole_story(trained: Path, tmp_path: Path) -> None:
    text = made(trained / "one", out=tmp_path / "page.html").text
    for words in (
        "Finished: 12 of 12 steps.",
        "No peak known for this device (cpu)",
        "data=2 fsdp=4 on 8 devices, named by the recipe",
        "blocks/block/feed/down",
        "over fsdp=4",
        "the step, as compiled",
        "training steps",
        "a run that is started from Python has none",
        "2 starts",
        "step 10",
        "jax",
    ):
        assert words in text, words
    assert "step 12" in text and "def " in text, "samples"


def test_the_phases_are_all_the_time(trained: Path) -> None:
    account = read_run(trained / "one")
    assert len(account.starts) == 2
    found = {share.group: share.seconds for share in shares(account)}
    assert {
        "steps",
        "compile",
        "data",
        "save",
        "evaluate",
        "sample",
        "start",
        "other",
    } <= found.keys()
    wall = sum(start["written"] - start["began"] for start in account.starts)
    assert sum(found.values()) == pytest.approx(wall, abs=0.6)


def test_seconds_leave_out_the_time_between_starts(tmp_path: Path) -> None:
    lines = [
        line(1, 10, train_loss=3.0),
        line(2, 20, train_loss=2.0),
        line(3, 9005, train_loss=1.0),
    ]
    starts = [{"began": 1000.0, "written": 1020.0}, {"began": 10_000.0, "written": 10_005.0}]
    account = read_run(write_run(tmp_path / "run", lines, starts=starts))
    assert account.elapsed(account.metrics["train/loss"].times).tolist() == [10.0, 20.0, 25.0]


def test_time_after_the_last_record_of_a_killed_start_is_told(tmp_path: Path) -> None:
    lines = [line(1, 10, train_loss=3.0), line(2, 60, train_loss=2.0)]
    start = {"began": 1000.0, "written": 1015.0, "seconds": {"training steps": 14.0, "other": 1.0}}
    found = shares(read_run(write_run(tmp_path / "run", lines, starts=[start])))
    assert [(s.group, s.seconds) for s in found] == [
        ("steps", 14.0),
        ("other", 1.0),
        ("lost", 44.5),
    ]


def test_values_that_are_not_finite_are_said(tmp_path: Path) -> None:
    lines = [line(1, train_loss=2.0), line(2, train_loss="NaN"), line(3, train_loss="Infinity")]
    page = made(write_run(tmp_path / "run", lines))
    assert page.data["runs"][0]["series"]["train/loss"]["value"] == [2.0, "NaN", "Infinity"]
    assert page.raw.count("not finite</title>") >= 2
    assert 'value="inf"' in page.raw


EVIL = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\u2028"


def test_nothing_of_a_file_becomes_markup(tmp_path: Path) -> None:
    recipe = {"name": EVIL, "steps": 5, "x": {"type": f"{EVIL}:{EVIL}", EVIL: EVIL, "y": [1, EVIL]}}
    lines = [
        {"step": 1, "time": 1.0, "values": {"train/loss": 1.0, EVIL: 2.0, f"train/{EVIL}": 3.0}},
        {"step": 2, "time": 2.0, "values": {"train/loss": 0.5, EVIL: 3.0}},
        {"step": 2, "time": 2.0, "text": {f"sample/{EVIL}": EVIL + EVIL}},
    ]
    about = {"command": [EVIL], "versions": {EVIL: EVIL}, "devices": {"kind": EVIL, "count": EVIL}}
    parameter = {"dtype": EVIL, "dimensions": [], "bytes_per_device": 4}
    layout = {
        "mesh": {EVIL: 2},
        "reason": EVIL,
        "count": 1,
        "parameters": {EVIL: parameter},
        "bytes_per_device": {EVIL: 4},
        "replicated": [EVIL],
    }
    starts = [{"began": 1.0, "seconds": {EVIL: 3.0}, "devices": {"kind": EVIL}}]
    base = {"name": EVIL, "recipe": {"name": "a", EVIL: "b"}}
    files = {
        "recipe": recipe,
        "environment": about,
        "layout": layout,
        "starts": starts,
        "base": base,
    }
    one = write_run(tmp_path / "one", lines, **files)
    two = write_run(tmp_path / "two", lines, **files)
    for page in (made(one), made(one, two, out=tmp_path / "both.html")):
        names = [tag for tag, _ in page.tags]
        assert names.count("script") == 2 and "img" not in names
        assert not [about for _, about in page.tags if any(k.startswith("on") for k in about)]
        assert "alert(1)" in page.text, "it is shown"


def test_the_policy_forbids_everything_but_what_is_in_the_page(
    trained: Path, tmp_path: Path
) -> None:
    page = made(trained / "one", out=tmp_path / "page.html")
    (policy,) = (a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    assert not [a for t, a in page.tags if "style" in a or "src" in a or t in ("link", "iframe")]
    outside = {a["href"] for _, a in page.tags if a.get("href")}
    assert all(str(where).startswith("#") for where in outside)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.raw)


def test_pages_are_small_and_long_runs_are_thinned_honestly(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), [f"train/number_{i}" for i in range(10)]
    values = rng.normal(size=(20_000, len(names)))
    values[777, 3] = 99.0
    lines = [
        {"step": i + 1, "time": 1e9 + i, "values": dict(zip(names, row, strict=True))}
        for i, row in enumerate(values.tolist())
    ]
    start = time.monotonic()
    page = made(write_run(tmp_path / "long", lines))
    assert time.monotonic() - start < 30
    assert len(page.raw) < 2_000_000
    series = page.data["runs"][0]["series"]["train/number_3"]
    assert series["count"] == 20_000 and len(series["step"]) <= 820
    kept = dict(zip(series["step"], series["value"], strict=True))
    assert kept[778] == 99.0 and 1 in kept and 20_000 in kept
    assert all(values[step - 1, 3] == value for step, value in kept.items())
    assert "about 800 points are drawn" in page.text


def test_what_says_nothing_is_named_and_not_drawn(tmp_path: Path) -> None:
    lines = [
        line(
            i, train_loss=float(i), train_nll=float(i), train_scale=1.0, train_eta_seconds=float(i)
        )
        for i in range(1, 5)
    ]
    page = made(write_run(tmp_path / "run", lines))
    assert "train/nll (equal to train/loss at every step)" in page.text
    assert "train/scale (1 at every step)" in page.text
    assert {c["name"] for chart in page.data["charts"].values() for c in chart} == {"train/loss"}


def test_the_base_recipe_and_what_was_changed(tmp_path: Path) -> None:
    model = {"type": "jscale.models.llama:Llama", "layers": 2, "rope": None}
    base = {"name": "run", "steps": 100, "model": model, "data": {"batch": 4, "length": 8}}
    recipe = {**base, "steps": 7, "model": {**model, "layers": 4}}
    about = {"name": "tiny.py", "recipe": base}
    folder = write_run(tmp_path / "run", [line(1, train_loss=1.0)], recipe=recipe, base=about)
    text = made(folder).text
    assert "Changed against tiny.py :" in text
    assert "steps 100 7" in text and "model.layers 2 4" in text
    same = write_run(tmp_path / "run", [line(1, train_loss=1.0)], recipe=base, base=about)
    assert "As in tiny.py , with nothing changed." in made(same).text


def test_a_known_peak_is_told(tmp_path: Path) -> None:
    peak = {"flops": 989e12, "origin": "known"}
    start = {"began": 1000.0, "peak": peak, "devices": {"kind": "NVIDIA H100", "count": 8}}
    start |= {"memory_in_use": 7 * 2**30, "seconds": {"training steps": 5.0}}
    lines = [line(1, train_loss=1.0, train_mfu=0.41), line(2, train_loss=0.5, train_mfu=0.42)]
    text = made(write_run(tmp_path / "run", lines, starts=[start])).text
    assert "a share of 989 TFLOP/s, the peak of a NVIDIA H100" in text
    assert "MFU 42.0% of the device" in text and "most that was in use: 7.0 GiB" in text


def test_settings_of_any_json() -> None:
    part = {"type": "jscale.optim.adam:AdamW", "peak": 0.1, "betas": [0.9, 0.95]}
    recipe = {"optimizer": part, "overrides": [{"type": "a:B", "x": None}], "mine": {}}
    assert settings(recipe) == {
        "optimizer": "AdamW",
        "optimizer.peak": "0.1",
        "optimizer.betas": "[0.9, 0.95]",
        "overrides.0": "a:B",
        "overrides.0.x": "None",
        "mine": "{}",
    }
    other = {"optimizer": {**part, "type": "jscale.optim.muon:Muon"}}
    assert changes({"optimizer": part}, other) == [("optimizer", "AdamW", "Muon")]
    assert differing([recipe, other])[0] == ("optimizer", ["AdamW", "Muon"])
    deep: Any = 1
    for _ in range(500):
        deep = {"a": deep}
    assert len(settings(deep)) == 1


@pytest.mark.parametrize(
    "recipe, owner, words",
    [
        ({"steps": 2}, "", "Finished: 2 of 2 steps."),
        ({"steps": 9}, "", "Not finished: 2 of 9 steps. It was stopped"),
        ({"steps": 9}, {"process": 2**22 + 5, "host": "{here}"}, "It was killed"),
        ({"steps": 9}, {"process": "{me}", "host": "{here}"}, "Going on: 2 of 9 steps so far."),
        (
            {"steps": 9},
            {"process": 7, "host": "elsewhere"},
            "process 7 on elsewhere holds the folder",
        ),
        ({"steps": "many"}, "", "Not finished: 2 steps."),
    ],
)
def test_where_a_run_stands(tmp_path: Path, recipe: dict, owner: Any, words: str) -> None:
    folder = write_run(tmp_path / "run", [line(1, train_loss=1.0), line(2, train_loss=2.0)])
    (folder / "recipe.json").write_text(json.dumps({"name": "run", **recipe}))
    text = json.dumps(owner) if owner else ""
    text = text.replace("{here}", socket.gethostname()).replace('"{me}"', str(os.getpid()))
    (folder / "lock").write_text(text)
    assert words in made(folder).text


def test_a_last_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [line(1, train_loss=1.0)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "time": 10')
    assert made(folder).data["runs"][0]["series"]["train/loss"]["step"] == [1]


def test_damaged_files_beside_the_metrics_are_named(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run",
        [line(1, train_loss=1.0)],
        layout={"mesh": {"data": 0}},
        environment="{",
        starts='{"a": 1}',
        base="[]",
    )
    text = made(folder).text
    for name in ("environment.json", "starts.json", "base.json"):
        assert f"{name} cannot be read, and its part of this page is missing" in text
    assert "layout.json is not as jscale writes it" in text


ODD = [1, None, "x", [], [1], {}, {"a": 1}, -1, 1e400, True, 2**70, -1e308]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_data_never_break_a_report(tmp_path: Path, odd: Any) -> None:
    starts = [
        {
            "began": odd,
            "seconds": odd,
            "compiled": odd,
            "peak": odd,
            "devices": odd,
            "written": odd,
        },
        {"compiled": [odd], "memory_in_use": odd, "peak": {"flops": odd, "origin": odd}},
    ]
    about = dict.fromkeys(
        ("command", "devices", "versions", "git", "data", "hosts", "parameters"), odd
    )
    layout = {"mesh": {"data": 2}, "reason": odd, "count": odd, "parameters": {"a": odd}}
    layout |= {"bytes_per_device": odd, "replicated": odd}
    recipe = {"name": odd, "steps": odd, "data": odd, "model": odd}
    files = {"starts": starts, "environment": about, "layout": layout, "recipe": recipe}
    files["base"] = {"name": odd, "recipe": odd}
    one = write_run(tmp_path / "one", [line(1, train_loss=1.0)], **files)
    two = write_run(tmp_path / "two", [line(1, train_loss=1.0)])
    assert "Loss" in made(one).text
    assert "Last values" in made(one, two, out=tmp_path / "both.html").text


@pytest.mark.parametrize("key", ["size", "mesh", "count", "bytes_per_device"])
def test_an_endless_layout_is_left_out(tmp_path: Path, key: str) -> None:
    dimension = {"size": 4, "axis": "embed", "over": [], "reason": "rule"}
    about = {"dtype": "float32", "dimensions": [dimension], "bytes_per_device": 16}
    layout: dict[str, Any] = {"mesh": {"data": 2}, "reason": "chosen", "count": 4}
    layout |= {"parameters": {"a": about}, "bytes_per_device": {"params": 16}, "replicated": []}
    lines = [line(1, train_loss=1.0)]
    told = {**layout, "processes": [0, 1]}
    text = made(write_run(tmp_path / "one", lines, layout=told)).text
    assert "embed whole" in text
    assert "Process 0 has device(s) 0; process 1 has device(s) 1." in text
    where = {"size": dimension, "mesh": layout["mesh"], "bytes_per_device": about}.get(key, layout)
    where["data" if key == "mesh" else key] = 1e400
    text = made(write_run(tmp_path / "two", lines, layout=layout)).text
    assert "layout.json is not as jscale writes it" in text


@pytest.mark.parametrize("value", [1e308, -1e308, 1e-320])
def test_values_at_the_end_of_what_a_number_can_be_are_drawn(tmp_path: Path, value: float) -> None:
    lines = [line(1, train_loss=1.0), line(2, train_loss=value)]
    page = made(write_run(tmp_path / "one", lines))
    assert page.data["runs"][0]["series"]["train/loss"]["value"] == [1.0, value]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        report([tmp_path / "nowhere"])
    with pytest.raises(CheckpointError, match="is not the folder of a run: it has no recipe.json"):
        report([tmp_path])
    (tmp_path / "lock").write_text('{"process": 1}')
    with pytest.raises(CheckpointError, match="has only begun: there is nothing to report yet"):
        report([tmp_path])
    folder = write_run(tmp_path / "run", [])
    with pytest.raises(CheckpointError, match="nothing has been logged .* yet"):
        report([folder])
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="nothing has been logged .* yet"):
        report([folder])
    (folder / "metrics.jsonl").write_text('{"step": 1\nhello\n')
    with pytest.raises(DataError, match="metrics.jsonl, line 1 is not a line of metrics"):
        report([folder])
    (folder / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as the recipe of a run"):
        report([folder])


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (write_run(tmp_path / n, [line(1, train_loss=1.0)]) for n in ("one", "two"))
    assert main(["report", str(one)]) == 0
    assert capsys.readouterr().out == f"written: {one}/report.html\n"
    assert main(["report", str(one), str(two), "--out", str(tmp_path / "x.html")]) == 0
    assert "2 runs compared" in (tmp_path / "x.html").read_text()
    bad = [
        (["report"], 64, "RUN"),
        (["report", str(one), str(one)], 64, "is named twice"),
        (["report", str(tmp_path)], 66, "has no recipe.json"),
        (["report", str(one), "--out", str(tmp_path)], 66, "is a folder"),
        (["report", str(one), "--out", str(tmp_path / "no" / "x.html")], 66, "cannot be written"),
    ]
    for words, status, said in bad:
        capsys.readouterr()
        assert main(words) == status
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_no_code_of_the_folder_is_executed(tmp_path: Path) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('executed')")
    recipe = {"type": "evil_module:Recipe", "name": "x", "model": {"type": "evil_module:Model"}}
    folder = write_run(tmp_path / "run", [line(1, train_loss=1.0)], recipe=recipe)
    assert "evil_module:Model" in made(folder).text


def test_a_comparison(trained: Path, tmp_path: Path) -> None:
    folders = (trained / "one", trained / "two")
    page = made(*folders, out=tmp_path / "page.html")
    for i, folder in enumerate(folders):
        for name, found in page.data["runs"][i]["series"].items():
            assert list(zip(found["step"], found["value"], strict=True)) == written(folder, name)
    assert "steps 12 8" in page.text and "seed 0 1" in page.text
    assert "Finished: 12 of 12 steps." in page.text and "Finished: 8 of 8 steps." in page.text
    exact = {about["value"] for tag, about in page.tags if tag == "data"}
    assert {repr(written(f, "train/loss")[-1][1]) for f in folders} <= exact
    loss = page.data["charts"]["c0"]
    assert [c["label"] for c in loss] == [
        "tiny, training",
        "other, training",
        "tiny, held out",
        "other, held out",
    ]


def test_runs_of_other_metrics_are_compared(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "run", [line(1, train_loss=1.0), line(2, train_loss=0.5)])
    recipe = {"name": "run", "steps": 3, "data": {"type": "mine:Data"}}
    lines = [line(1, train_reward=1.0), line(3, train_reward=2.0)]
    two = write_run(tmp_path / "b" / "run", lines, recipe=recipe)
    page = made(one, two, out=tmp_path / "page.html")
    first, second = (run["name"] for run in page.data["runs"])
    assert first == str(one) and second == str(two)
    assert "tokens" not in page.data["runs"][0]["series"]["train/loss"], "one run has none"
    assert "–" in page.text


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    lines = [line(1, train_loss=1.0)]
    recipe = {"name": "tiny"}
    folders = [write_run(tmp_path / n, lines, recipe=recipe) for n in ("x/a", "x/b", "y/b")]
    accounts = [read_run(folder) for folder in folders]
    assert names_of(accounts) == ["a", str(folders[1]), str(folders[2])]
    assert names_of(accounts[:1]) == ["tiny"]


def test_explain_draws_every_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    words = ["explain", "tiny", "--devices", "8", "mesh=MeshShape(data=2,fsdp=4)"]
    assert main([*words, "--html", str(path)]) == 0
    assert capsys.readouterr().out == f"written: {path}\n"
    page = Page(path)
    assert main(words) == 0
    table = capsys.readouterr().out
    names = re.findall(r"^(\S+/\S+)  ", table, re.MULTILINE)
    assert len(names) > 8 and all(name in page.text for name in names)
    assert "data=2 fsdp=4 on 8 devices" in page.text
    assert "[:, 0:8, :] on devices 0, 4" in page.text
    assert "embed over fsdp=4" in page.text and "decided by the rules" in page.text
    # Every byte of the table stands on the page too.
    each = {about["value"] for tag, about in page.tags if tag == "data"}
    assert {str(2 * 32 * 64 * 4 // 4)} <= each, "one matrix of the feed-forward layer"


@pytest.mark.parametrize(
    "words, said",
    [
        (["--html", "picture.png"], "ends in .html"),
        (["--html", "nowhere/x.html"], "cannot be written"),
        (["--param", "nothing", "--html", "x.html"], "no parameter has such a name"),
    ],
)
def test_explain_refuses(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "tiny", "--devices", "8", *words]) in (64, 66)
    assert said in capsys.readouterr().err


def test_the_base_recipe_is_recorded_without_the_overrides(tmp_path: Path) -> None:
    resolved = resolve("tiny", ["steps=2", "evaluation=None"])
    folder = write_run(tmp_path / "run", [line(1, train_loss=1.0)], recipe=to_data(resolved.value))
    record_base(resolved, folder)
    text = made(folder).text
    assert "Changed against launch/recipes/tiny.py" in text or "Changed against jscale/" in text
    assert "steps 100 2" in text and "Evaluation" in text
    record_base(resolve(str(folder), ["steps=3"]), folder)
    assert "steps 100 2" in made(folder).text, "it stays when a run goes on from its folder"
