"""Every shipped recipe is whole: it loads, goes to data and back, and fits the meshes it is for."""

import pytest

from jscale.config.data import from_data, to_data
from jscale.config.load import load, shipped
from jscale.explain import explain
from jscale.launch import recipes
from jscale.recipe import Recipe

NAMES = [recipe.name for recipe in shipped(recipes)]
SMALL = {name: (1, 2, 4, 8) for name in ("quickstart", "tiny", "further")}
DEVICES = {**SMALL, "llama_8b": (8, 64, 256, 512)}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_data(name):
    recipe = load(name, recipes, expect=Recipe).value
    assert from_data(to_data(recipe)) == recipe
    assert recipe.name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_its_meshes(name):
    recipe = load(name, recipes, expect=Recipe).value
    whole = explain(recipe, 1).bytes_per_device["parameters"]
    for devices in DEVICES[name]:
        found = explain(recipe, devices)
        assert found.mesh.devices == devices, found.reason
        assert found.bytes_per_device["parameters"] <= whole / devices * 1.2 + 4096
