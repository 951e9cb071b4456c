import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jscale.config.load import load
from jscale.config.override import override
from jscale.config.tree import nodes
from jscale.config.why import explained, why

Write = Callable[..., Path]

RECIPE = """
STEPS = 5
SHARED = Adam(
    peak=1e-3,
)

def recipe():
    net = Net(
        2,
        dim=8,
    )
    return Run(
        name="mine",
        net=net,
        optimizer=SHARED,
        steps=STEPS,
        mix={"web": 1.0},
    )
"""


def origins(**overrides: str) -> dict[str, str]:
    changes = {path.replace("__", "."): text for path, text in overrides.items()}
    return {setting.path: setting.origin for setting in why(load("my.py"), changes)}


def line(name: str) -> int:
    """The line of the toy parts that declares a field."""
    owner, field = name.split(".")
    rows = Path("toy_parts.py").read_text().splitlines()
    start = rows.index(f"class {owner}:")
    found = next(i for i in range(start, len(rows)) if rows[i].startswith(f"    {field}: "))
    return found + 1


def default(name: str) -> str:
    return f"default of {name.split('.')[0]} (toy_parts.py:{line(name)})"


def test_every_value_has_its_origin(recipe_file: Write) -> None:
    recipe_file(RECIPE)
    assert origins() == {
        "name": "set at my.py:14",
        "net": "set at my.py:15",
        "net.layers": "set at my.py:10",
        "net.dim": "set at my.py:11",
        "net.hidden": "computed by Net",
        "optimizer": "set at my.py:16",
        "optimizer.peak": "set at my.py:5",
        "optimizer.betas": default("Adam.betas"),
        "steps": "set at my.py:17",
        "mesh": default("Run.mesh"),
        "guard": default("Run.guard"),
        "guard.spikes": default("Run.guard"),
        "mix": "set at my.py:18",
        "mix.web": "set at my.py:18",
    }


def test_an_override_is_its_own_origin(recipe_file: Write) -> None:
    recipe_file(RECIPE)
    found = origins(net__dim="16", optimizer="Lion(beta=0.5)", guard="None")
    assert found["net.dim"] == "command line: net.dim=16"
    assert found["optimizer"] == "command line: optimizer=Lion(beta=0.5)"
    assert found["optimizer.beta"] == "command line: optimizer=Lion(beta=0.5)"
    assert found["optimizer.peak"] == default("Lion.peak")
    assert found["guard"] == "command line: guard=None"
    assert found["net.layers"] == "set at my.py:10"
    assert "guard.spikes" not in found and "optimizer.betas" not in found


def test_a_part_made_by_an_override_of_its_fields_says_so(recipe_file: Write) -> None:
    recipe_file("def recipe():\n    return Run('x', Net(2), Lion(), guard=None)")
    assert origins(guard__spikes="4")["guard"] == "command line: guard.spikes=4"
    assert origins(guard__spikes="4")["guard.spikes"] == "command line: guard.spikes=4"
    recipe_file(
        "@dataclass(frozen=True)\n"
        "class Size:\n    x: int = 1\n    y: int = 2\n"
        "@dataclass(frozen=True)\n"
        "class Outer:\n    size: Size | None = None\n"
        "def recipe():\n    return Outer()"
    )
    assert origins(size__x="4") == {
        "size": "command line: size.x=4",
        "size.x": "command line: size.x=4",
        "size.y": "default of Size (my.py:5)",
    }


def test_a_later_override_inside_an_overridden_part_wins(recipe_file: Write) -> None:
    recipe_file(RECIPE)
    found = origins(net="Net.of_depth(4)", net__dim="16")
    assert found["net.dim"] == "command line: net.dim=16"
    assert found["net.layers"] == "command line: net=Net.of_depth(4)"


@pytest.mark.parametrize(
    ("made", "layers", "dim"),
    [
        ("Net(layers=2)", "set at my.py:4", default),
        ("Net(2)", "set at my.py:4", default),
        ("Net(**{'layers': 2})", "set in recipe() of my.py", "set in recipe() of my.py"),
        ("Net(*[2], dim=3)", "set in recipe() of my.py", "set at my.py:4"),
        ("Net.of_depth(2)", "from Net.of_depth, called at my.py:4", None),
        ("Net.tiny()", "from Net.tiny, called at my.py:4", default),
        ("replace(Net(2), dim=3)", "set at my.py:4", "set at my.py:4"),
        ("replace(Net.tiny(), dim=3)", "from Net.tiny, called at my.py:4", "set at my.py:4"),
        ("helper(2)", "set at my.py:7", default),
        ("Alias(2)", "set at my.py:4", default),
        ("Half()", "set in recipe() of my.py", default),
        ("[Net(x) for x in (1, 2)][1]", "set at my.py:4", default),
        ("(Net(1), Net(2))[1]", "set at my.py:4", default),
        ("toy_parts.Net(2)", "set at my.py:4", default),
    ],
)
def test_the_origin_of_a_part_depends_on_how_it_was_made(
    recipe_file: Write, made: str, layers: str, dim: object
) -> None:
    recipe_file(
        "def recipe():\n"
        "    return Run('x', optimizer=Lion(), net=\n"
        f"        {made})\n"
        "\n"
        "def helper(n):\n"
        "    return Net(n)\n"
        "import functools, toy_parts\n"
        "Alias = Net\n"
        "Half = functools.partial(Net, layers=2)\n"
    )
    found = origins()
    assert found["net.layers"] == layers
    expected = default("Net.dim") if dim is default else dim or layers
    if made == "Half()":
        expected = "set in recipe() of my.py"
    assert found["net.dim"] == expected


def test_a_constant_that_is_assigned_twice_is_not_guessed(recipe_file: Write) -> None:
    recipe_file(
        "NET = Net(2)\nif True:\n    NET = Net(1)\ndef recipe():\n    return Run('x', NET, Lion())"
    )
    assert origins()["net.layers"] == "set in recipe() of my.py"


def test_a_recipe_that_starts_from_another_names_it(recipe_file: Write) -> None:
    recipe_file("def recipe():\n    return Run('x', Net(2), Lion())", "first.py")
    recipe_file(
        "from first import recipe as start\n"
        "def recipe():\n"
        "    first = start()\n"
        "    return replace(first,\n"
        "        steps=3, net=replace(first.net, dim=4))\n"
    )
    sys.path.append(str(Path.cwd()))
    found = origins()
    assert found["name"] == "from first.recipe, called at my.py:4"
    assert found["net.layers"] == "from first.recipe, called at my.py:4"
    assert found["optimizer.peak"] == default("Lion.peak")
    assert (found["steps"], found["net.dim"]) == ("set at my.py:6", "set at my.py:6")


def test_what_an_override_makes_a_part_compute_is_said(recipe_file: Write) -> None:
    recipe_file(
        "@dataclass(frozen=True)\n"
        "class Odd:\n"
        "    size: int = 1\n"
        "    double: int = field(default=0, init=False)\n"
        "    def __post_init__(self):\n"
        "        object.__setattr__(self, 'double', 2 * self.size)\n"
        "def recipe():\n"
        "    return Odd()\n"
    )
    assert origins() == {"size": "default of Odd (my.py:4)", "double": "computed by Odd"}
    assert origins(size="3") == {
        "size": "command line: size=3",
        "double": "computed from size=3",
    }


def test_the_settings_are_those_of_the_overridden_value(recipe_file: Write) -> None:
    recipe_file(RECIPE)
    loaded = load("my.py")
    changed = override(loaded.value, {"net": "Net.of_depth(3)"})
    settings = why(loaded, {"net": "Net.of_depth(3)"})
    assert [setting.path for setting in settings] == [path for path, _ in nodes(changed)]
    values = {setting.path: setting.value for setting in settings}
    assert values["net"] is type(changed.net) and values["net.dim"] == 96


def test_fields_are_documented_from_their_class(recipe_file: Write) -> None:
    recipe_file(RECIPE)
    loaded = load("my.py")
    notes = {x.path: x.note for x in explained(loaded.value, why(loaded))}
    assert notes["optimizer.peak"] == "the highest learning rate"
    assert notes["net.dim"] == "The size of the residual stream, in numbers."
    assert notes["guard.spikes"] == "how many in a row before giving up"
    assert notes["net.layers"] == notes["mix.web"] == ""


def test_a_profiler_that_was_set_stays_set(recipe_file: Write) -> None:
    recipe_file(RECIPE)
    before = sys.getprofile()
    mine = lambda *_: None
    sys.setprofile(mine)
    try:
        load("my.py")
        kept = sys.getprofile()
    finally:
        sys.setprofile(before)
    assert kept is mine


def test_without_overrides_nothing_is_changed(recipe_file: Write) -> None:
    recipe_file(RECIPE)
    loaded = load("my.py")
    assert [x.origin for x in why(loaded)] == [x.origin for x in why(replace(loaded), {})]
