import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from jscale.config.data import fingerprint, write
from jscale.config.load import load, load_file, shipped
from jscale.errors import ConfigError

RECIPE = """
def recipe():
    return Run("mine", Net(2), Adam(1e-3))

def small():
    return replace(recipe(), net=Net.tiny())
"""
Write = Callable[..., Path]


@pytest.fixture
def package(recipe_file: Write, tmp_path: Path) -> ModuleType:
    (tmp_path / "cookbook").mkdir()
    (tmp_path / "cookbook" / "__init__.py").write_text("")
    recipe_file(RECIPE, "cookbook/soup.py")
    text = (tmp_path / "cookbook" / "soup.py").read_text()
    (tmp_path / "cookbook" / "soup.py").write_text(f'"""Warm.\n\nAnd long."""\n{text}')
    (tmp_path / "cookbook" / "_secret.py").write_text("")
    sys.path.append(str(tmp_path))
    return __import__("cookbook")


def test_a_file_is_loaded_with_its_function(recipe_file: Write) -> None:
    path = recipe_file(RECIPE)
    loaded = load("my.py")
    assert (loaded.value.name, loaded.value.net.layers) == ("mine", 2)
    assert (loaded.source, loaded.function) == (path.resolve(), "recipe")
    assert load("my.py:small").value.net.layers == 1
    assert load(str(path)).value == loaded.value


def test_shipped_recipes_are_listed_and_loaded_by_name(package: ModuleType) -> None:
    assert [(recipe.name, recipe.summary) for recipe in shipped(package)] == [("soup", "Warm.")]
    loaded = load("soup", package)
    assert loaded.value.name == "mine" and loaded.source.name == "soup.py"
    assert load("soup:small", package).value.net.layers == 1
    with pytest.raises(ConfigError, match="no recipe, file or run folder 'sop'; did you mean 'so"):
        load("sop", package)


def test_types_of_a_file_live_in_an_importable_module(recipe_file: Write) -> None:
    recipe_file(
        "@dataclass(frozen=True)\nclass Own:\n    x: int\n\ndef recipe():\n    return Own(1)"
    )
    value = load("my.py").value
    assert type(value).__module__ == "my" and sys.modules["my"].Own is type(value)


@pytest.mark.parametrize("name", ["random.py", "llama-3.py", "_x.py", "3b.py", "jax.py"])
def test_a_file_called_like_another_module_gets_a_name_of_its_own(
    recipe_file: Write, name: str
) -> None:
    before = sys.modules.get(name.removesuffix(".py"))
    module = load_file(recipe_file(RECIPE, name))
    assert module.__name__.startswith("recipe_") and sys.modules[module.__name__] is module
    assert sys.modules.get(name.removesuffix(".py")) is before


def test_two_files_of_one_name_are_two_modules(recipe_file: Write, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    own = "@dataclass(frozen=True)\nclass Own:\n    x: int = {}\n\ndef recipe():\n    return Own()"
    recipe_file(own.format(1))
    recipe_file(own.format(2), "other/my.py")
    assert (load("my.py").value.x, load("other/my.py").value.x, load("my.py").value.x) == (1, 2, 1)


def test_an_unchanged_file_is_run_once_and_a_changed_one_again(recipe_file: Write) -> None:
    path = recipe_file(RECIPE)
    first = load_file(path)
    assert load_file(path) is first
    recipe_file(RECIPE.replace("mine", "yours"))
    assert load("my.py").value.name == "yours"


def test_a_run_folder_is_read_as_data_without_running_its_code(
    recipe_file: Write, tmp_path: Path
) -> None:
    recipe_file(RECIPE)
    value = load("my.py").value
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    write(run / "recipe.json", value)
    (run / "toy_parts.py").write_text("raise SystemExit('code of the folder was run')")
    parts = sys.modules["toy_parts"]
    for name in ("runs/a", "runs/a/recipe.json"):
        loaded = load(name, allow=[parts])
        assert loaded.value == value and loaded.function is None
        assert fingerprint(loaded.value) == fingerprint(value)
        assert set(loaded.origins.values()) == {"run folder runs/a/recipe.json"}
    with pytest.raises(ConfigError, match="of a type in the module 'toy_parts'"):
        load("runs/a")


def test_a_module_beside_the_file_can_be_imported(recipe_file: Write, tmp_path: Path) -> None:
    (tmp_path / "beside_me.py").write_text("STEPS = 7")
    recipe_file(
        "from beside_me import STEPS\ndef recipe(): return Run('x', Net(1), Lion(), steps=STEPS)"
    )
    assert load("my.py").value.steps == 7


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def recipe(:\n    pass", "my.py:2: invalid syntax"),
        ("def recipe():\n    return nothing", "my.py:3: NameError: name 'nothing' is not defined"),
        ("import nothing_such", "my.py:2: ModuleNotFoundError: No module named 'nothing_such'"),
        ("raise SystemExit(3)", "my.py:2: SystemExit: 3"),
        ("\n\ndef recipe():\n    return Run('x', Net(0), Lion())", "my.py:5: ValueError: layers"),
        ("def recipe():\n    return helper()\ndef helper():\n    return 1 / 0", "my.py:5: ZeroDiv"),
        ("def recipe():\n    return 3", "recipe() of my.py gives int 3, not a frozen dataclass"),
        ("def recipe():\n    return Run", "gives the class Run"),
        ("def recipie():\n    pass", "my.py has no function recipe(); did you mean 'recipie'?"),
        ("def recipe(x):\n    pass", "my.py: TypeError: recipe() missing 1 required positional"),
        (
            "def recipe():\n    return Run('x', Net('2'), Lion())",
            "TypeError: '<' not supported between instances of 'str' and 'int'",
        ),
        (
            "def recipe():\n    return Run('x', Net(2), Lion('1e-3'))",
            "recipe() of my.py: optimizer.peak must be float, got str '1e-3'",
        ),
        (
            "def recipe():\n    return Run('x', Net(2), Lion(), mix={'a': 'b'})",
            "recipe() of my.py: mix must be mapping of float, got dict {'a': 'b'}",
        ),
        (
            "def recipe():\n    return Free(lambda: 1)\n"
            "@dataclass(frozen=True)\nclass Free:\n    x: object",
            "recipe() of my.py: x is my.recipe.<locals>.<lambda>, which is no public name",
        ),
    ],
)
def test_an_error_in_a_file_is_told_with_its_line(recipe_file: Write, body: str, said: str) -> None:
    recipe_file(body)
    with pytest.raises(ConfigError) as caught:
        load("my.py")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_in_an_imported_file_names_that_file(recipe_file: Write, tmp_path: Path) -> None:
    (tmp_path / "broken_beside.py").write_text("x = (")
    recipe_file("import broken_beside")
    with pytest.raises(ConfigError, match="^broken_beside.py:1: "):
        load("my.py")


def test_a_file_that_failed_leaves_no_module(recipe_file: Write) -> None:
    recipe_file("raise ValueError('no')")
    with pytest.raises(ConfigError):
        load("my.py")
    assert "my" not in sys.modules
    recipe_file(RECIPE)
    assert load("my.py").value.name == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("yours.py", "there is no file .*yours.py; in that folder, .*my.py"),
        ("nowhere/my.py", "there is no file .*nowhere/my.py"),
        ("nothing", "there is no recipe, file or run folder 'nothing'"),
        ("", "there is no recipe|cannot read"),
        (".", "cannot read recipe.json"),
        ("x.json", "cannot read x.json"),
        ("my.py:smal", r"my.py has no function smal\(\); did you mean 'small'"),
    ],
)
def test_what_is_not_there_is_told(recipe_file: Write, name: str, said: str) -> None:
    recipe_file(RECIPE)
    with pytest.raises(ConfigError, match=said):
        load(name)


def test_another_type_than_expected_is_refused(recipe_file: Write) -> None:
    recipe_file(RECIPE)
    with pytest.raises(ConfigError, match=r"recipe\(\) of my.py gives a Run, not a Path"):
        load("my.py", expect=Path)
    value = load("my.py").value
    assert load("my.py", expect=type(value)).value == replace(value)
