"""The architecture of the tutorial: the page shows the file, and its table leaves nothing over."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jscale.config.load import load_file
from jscale.errors import ConfigError
from jscale.models import Model

ROOT = Path(__file__).parents[2]
FILE, PAGE = ROOT / "examples" / "parallel_block.py", ROOT / "docs" / "your_own_model.md"
PIECES = ("from dataclasses", "class Block", "def recipe", "def table")


def tiny(**changes):
    module = load_file(FILE)
    return module, replace(module.recipe().model, vocab=32, dim=16, layers=3, heads=2, **changes)


def test_the_page_shows_the_whole_file():
    shown = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    pieces = [block for block in shown if block.startswith(PIECES)]
    code = FILE.read_text(encoding="utf-8").split('"""\n\n', 1)[1]
    assert "\n\n".join(pieces) == code


def test_it_is_short():
    lines = FILE.read_text(encoding="utf-8").split('"""\n\n', 1)[1].splitlines()
    assert len([line for line in lines if line.strip()]) <= 70


@pytest.mark.parametrize("tied", [True, False])
def test_a_release_holds_every_weight_layer_by_layer(tied):
    module, config = tiny(tied=tied)
    model, table = Model(config), module.table(config)
    params = model.init(jax.random.key(0))
    theirs = table.write(params)
    assert len(theirs) == 7 * 3 + 2 + (not tied) and theirs["layers.2.up.weight"].shape == (64, 16)
    np.testing.assert_array_equal(
        theirs["layers.1.down.weight"], params["blocks"]["block"]["down"][1].T
    )
    back = table.read(theirs, model.shapes)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, params)))


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_every_weight_is_placed(mesh):
    from jscale.mesh import MeshShape
    from jscale.model_summary import summary

    found = summary(tiny()[1], MeshShape(**mesh))
    assert found.bytes_per_device is not None and found.bytes_per_device <= found.bytes
    assert all(row.axes and None not in row.axes for row in found.rows)


def test_sizes_check_themselves():
    with pytest.raises(ConfigError, match="dim=16 must be a multiple of heads=3"):
        replace(tiny()[1], heads=3)
