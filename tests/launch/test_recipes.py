"""Every shipped recipe is whole: it loads, goes to data and back, and fits the meshes it is for."""

from pathlib import Path

import pytest

from jscale.config.data import from_data, to_data
from jscale.config.load import load, shipped
from jscale.explain import explain
from jscale.launch import recipes
from jscale.launch.commands.recipes import copy_recipe, main
from jscale.recipe import Recipe

SHIPPED = shipped(recipes)
NAMES = [name for r in SHIPPED for name in (r.name, *(f"{r.name}:{x}" for x in r.others))]
SMALL = {name: (1, 2, 4, 8) for name in ("quickstart", "tiny", "further")}
DEVICES = {**SMALL, "llama_8b": (8, 64, 256, 512)}


def value(name: str) -> Recipe:
    return load(name, recipes, expect=Recipe).value


def run_name(name: str) -> str:
    """What a recipe calls its run: `mixtral_8x7b-finetune-twin` of `…:finetune_twin`."""
    return name.replace(":", "-").replace("_twin", "-twin")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_data(name):
    recipe = value(name)
    assert from_data(to_data(recipe)) == recipe
    assert recipe.name == run_name(name)


@pytest.mark.parametrize("name", DEVICES)
def test_a_recipe_fits_its_meshes(name):
    recipe = value(name)
    whole = explain(recipe, 1).bytes_per_device["parameters"]
    for devices in DEVICES[name]:
        found = explain(recipe, devices)
        assert found.mesh.devices == devices, found.reason
        assert found.bytes_per_device["parameters"] <= whole / devices * 1.2 + 4096


def test_recipes_of_one_file_are_listed_below_it(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == NAMES
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


@pytest.mark.parametrize("name", [r.name for r in SHIPPED])
def test_a_copy_loads_by_itself(name, tmp_path: Path):
    """Also by the name of another recipe in it: it is one file."""
    (recipe,) = [r for r in SHIPPED if r.name == name]
    asked = [name, *(f"{name}:{other}" for other in recipe.others)][-1]
    path = copy_recipe(asked, str(tmp_path / "mine.py"))
    for function in ("recipe", *recipe.others):
        there = name if function == "recipe" else f"{name}:{function}"
        assert load(f"{path}:{function}", expect=Recipe).value == value(there)
