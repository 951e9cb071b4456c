"""Recipes with experts: headers that tell the truth, and twins that learn on eight devices."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ahead.machines import need

from jscale import train
from jscale.ahead import compile_for
from jscale.compiled import Memory
from jscale.config.load import load, shipped
from jscale.explain import bytes_of
from jscale.launch import recipes
from jscale.launch.cli import main
from jscale.mesh import abstract_mesh
from jscale.mesh.machines import Gpu
from jscale.mesh.target import target
from jscale.models.model import Model
from jscale.prepare import mesh_of, task_of
from jscale.recipe import Recipe

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "benchmarks" / "results" / "moe_recipes.json").read_text("utf-8"))
KEPT = {(row["recipe"], row["machine"]): row for row in ROWS if not row["changes"]}
LINE = re.compile(r"^    (\w+) +(\S+:\S+|\S+-\d+) +(.+?) +([\d.]+) of ([\d.]+) GiB$", re.MULTILINE)
FILES = [r for r in shipped(recipes) if "twin" in r.others]
OPEN = re.compile(r"^    (\w+) +(\S+:\S+|\S+-\d+) +-$", re.MULTILINE)  # not compiled yet
NAMES = [r.name for r in FILES]
WHOLE = [name for r in NAMES for name in (f"{r}:recipe", f"{r}:finetune")]
TWINS = [name for r in NAMES for name in (f"{r}:twin", f"{r}:finetune_twin")]
GIB = 2**30
FORESEEN = {name: {"ahead": 0} for name in ("deepseek_v3", "glm_4_5_air")}  # is not in the title
# The rest of each family has the same kinds of layers and runs by name.
BRIEF = {"deepseek_v3:twin", "mixtral_8x7b:finetune_twin"}


def value(name: str) -> Any:
    return load(name, recipes, expect=Recipe).value


def lines(name: str) -> list[tuple[str, ...]]:
    """Function, machine, mesh, bytes needed and bytes there, as the header of a recipe has them."""
    (found,) = [r for r in FILES if r.name == name]
    return LINE.findall(found.source.read_text("utf-8"))


def not_yet(name: str) -> list[tuple[str, ...]]:
    """Function and machine of what the header says has not been compiled."""
    (found,) = [r for r in FILES if r.name == name]
    return OPEN.findall(found.source.read_text("utf-8"))


def test_there_is_a_recipe_for_each_of_these_models():
    wanted = "mixtral_8x7b qwen3_30b_a3b qwen3_235b_a22b deepseek_v3 deepseek_v2_lite gpt_oss_20b"
    assert set(NAMES) == {*wanted.split(), "gpt_oss_120b", "glm_4_5_air", "olmoe_1b_7b", "kimi_k2"}


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_the_compiler_said_and_that_it_fits(name):
    told, open_ = lines(name), not_yet(name)
    assert not any((f"{name}:{function}", machine) in KEPT for function, machine in open_)
    for function in ("recipe", "finetune"):
        chips = [target(m).chip for f, m, *_ in (*told, *open_) if f == function]
        assert {isinstance(c.build, Gpu) for c in chips if c} == {True, False}, "a GPU and a TPU"
    for function, machine, mesh, needed, has in told:
        row = KEPT[f"{name}:{function}", machine]
        assert row["fits"] and row["refusal"] is None
        assert (mesh, needed) == (row["mesh"], f"{row['needed'] / GIB:.1f}")
        assert has == f"{row['has'] / GIB:.1f}" and row["needed"] <= row["has"]
        assert row["needed"] == sum(row["memory"][part] for part in Memory._fields)


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_rows_are_of_the_recipe_as_it_is(name):
    for function, machine, *_ in lines(name):
        recipe, row = value(f"{name}:{function}"), KEPT[f"{name}:{function}", machine]
        rows, shape = recipe.data.batch // recipe.accumulate, mesh_of(recipe, target(machine).count)
        asked = (rows, recipe.data.length, recipe.accumulate, recipe.model.remat)
        assert asked == tuple(row[key] for key in ("rows", "length", "accumulate", "remat"))
        assert str(shape.shape) == row["mesh"]
        state = train.shapes(task_of(recipe, abstract_mesh(shape.shape)))
        assert bytes_of(state.params) == row["state"]["parameters"]


@pytest.mark.parametrize("name", NAMES)
def test_the_title_counts_the_weights(name):
    (found,) = [r for r in FILES if r.name == name]
    model = Model(replace(value(name).model, **FORESEEN.get(name, {})))
    title = re.search(r": ([\d.]+) ([BT]) weights, a token uses ([\d.]+) B", found.summary)
    assert title, found.summary
    whole, unit, used = title.groups()
    assert float(whole) == float(f"{model.size / {'B': 1e9, 'T': 1e12}[unit]:.3g}")
    assert float(used) == float(f"{model.active / 1e9:.3g}")


@pytest.mark.parametrize("name", WHOLE)
def test_the_router_s_policy_is_the_one_that_is_stated(name):
    recipe = value(name)
    balance, choice = recipe.model.experts.balance, recipe.model.experts.choice
    if name.endswith(":finetune"):
        assert (balance.scope, balance.weight, balance.z) == ("global", 0.001, 0)
        assert recipe.accumulate == 1  # otherwise a global loss takes a pass more
        assert not choice.corrected or balance.steer == 0
    elif choice.corrected:
        assert (balance.scope, balance.weight, balance.steer) == ("sequence", 0.0001, 0.001)
    else:
        assert balance.weight >= 0.001


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_its_recipe_in_small(name):
    small, whole = value(name), value(name.replace("_twin", "").replace("twin", "recipe"))
    assert type(small.model) is type(whole.model) and small.loss == whole.loss
    ours, theirs = small.model.experts, whole.model.experts
    assert ours.balance == theirs.balance
    few = dict(choices=2, limit=ours.choice.limit)
    assert ours.choice == replace(theirs.choice, **few)
    assert (ours.shared is None, ours.choice.limit is None) == (
        theirs.shared is None,
        theirs.choice.limit is None,
    )
    assert small.mesh.devices == 8 and small.mesh.fsdp > 1 and small.mesh.expert > 1
    assert Model(small.model).size < 1_000_000


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to train in, with a home whose tokens are kept."""
    return tmp_path_factory.mktemp("twins")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in BRIEF else pytest.mark.slow) for n in TWINS]
)
def test_a_twin_learns_on_eight_devices(name, desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("HOME", str(desk / "home"))
    assert main(["train", name, "evaluation=None", "logging.writers=(Jsonl(),)"]) == 0
    run = desk / "runs" / value(name).name
    told = [json.loads(line)["values"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [values["train/loss"] for values in told if "train/loss" in values]
    assert len(losses) == 5 and np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.5
    assert all(values["train/skipped"] == 0 for values in told if "train/skipped" in values)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["h100", "v6e"])
def test_a_kept_row_is_what_the_compiler_says(machine):
    (row,) = [
        row
        for (name, m), row in KEPT.items()
        if name == "olmoe_1b_7b:finetune" and m.startswith(machine)
    ]
    need(row["machine"])
    found = compile_for(value("olmoe_1b_7b:finetune"), row["machine"])
    assert found.needed == pytest.approx(row["needed"], rel=0.02)


def test_long_rows_fit_by_chunks_and_rematerialisation():
    long = [row for row in ROWS if "/" in row["recipe"]]
    advised = {
        r["machine"]: r for r in long if r["recipe"].endswith(":recipe") and not r["changes"]
    }
    assert {row["machine"] for row in long} == advised.keys() and advised
    for row in long:
        least = advised[row["machine"]]
        assert least["fits"] and least["rows"] * least["length"] >= 32_768 * 16
        if row["changes"] == ["model.remat=offload"]:
            assert row["needed"] < least["needed"]
        elif row is not least:
            assert row["needed"] > least["needed"]


def test_the_page_has_the_tables_of_the_kept_rows():
    script = runpy.run_path(str(ROOT / "benchmarks" / "moe_recipes.py"))
    assert script["table"](ROWS) in script["PAGE"].read_text("utf-8"), "run it with --missing"
