"""The house itself: who may import whom, and that everything stays small enough to read."""

import ast
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("jscale", "models", "mesh", "pallas_kernels", "launch")
MAY_IMPORT = {
    "mesh": set(),
    "pallas_kernels": set(),
    "models": {"mesh", "pallas_kernels"},
    "jscale": {"mesh", "models"},
    "launch": {"mesh", "models", "jscale", "pallas_kernels"},  # the last for its bench
}
# What core knows of the models: a model, what decoders give, what experts did, what is steered.
BORDER = {f"jscale.models.{name}" for name in ("model", "decoder", "load", "steered")}
FORBIDDEN = {"utils", "common", "helpers", "helper", "manager", "base", "misc", "lib"}
SUPPRESSION = re.compile(r"#\s*(type:\s*ignore|noqa|pyright:\s*ignore)")


def files(room: str) -> list[Path]:
    links = [ROOT / "jscale" / r for r in ROOMS if r != "jscale"]
    found = sorted((ROOT / room).rglob("*.py"))
    return [f for f in found if not any(link in f.parents for link in links)]


CODE = [(room, path) for room in ROOMS for path in files(room)]
IDS = [str(path.relative_to(ROOT)) for _, path in CODE]
everywhere = pytest.mark.parametrize("room, path", CODE, ids=IDS)


def imports(tree: ast.AST) -> list[str]:
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            modules = [f"jscale.{a.name}" for a in node.names if is_module(a.name)]
            out += modules if node.module == "jscale" and modules else [node.module]
        elif isinstance(node, ast.Import):
            out += [alias.name for alias in node.names]
    return out


def is_module(name: str) -> bool:
    return (ROOT / "jscale" / f"{name}.py").exists() or (ROOT / "jscale" / name).is_dir()


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "jscale"


@everywhere
def test_imports_point_down(room, path):
    for name in imports(ast.parse(path.read_text())):
        if name.split(".")[0] != "jscale" or name == "jscale.errors":
            continue
        if path != ROOT / "jscale" / "__init__.py":
            assert name != "jscale", "nobody inside imports the users' door"
        other = room_of(name)
        assert other == room or other in MAY_IMPORT[room], f"{room} may not import {name}"
        # Formats are the one part of core whose subject are families: their sizes, their names.
        free = path.name == "__init__.py" or "formats" in path.parts
        if room == "jscale" and other == "models" and not free:
            assert name in BORDER, f"core knows the border of the models, not {name}"


@everywhere
def test_files_and_functions_are_small(room, path):
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 120 if room == "pallas_kernels" else 60
            assert (node.end_lineno or 0) - node.lineno < limit, f"{node.name} is too long"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [a for a in arguments if a.arg not in ("self", "cls")]
            assert len(own) <= 8, f"{node.name} has {len(own)} parameters"
        if isinstance(node, ast.ClassDef):
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            assert len(fields) <= 16, f"{node.name} has {len(fields)} fields"
        assert not isinstance(node, ast.Global), "no global state"


@everywhere
def test_names_and_words(room, path):
    assert path.stem not in FORBIDDEN
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a file says what it is for"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert node.returns is not None, f"{node.name} does not say what it returns"


def test_median_sizes():
    lines = sorted(len(path.read_text().splitlines()) for _, path in CODE)
    assert lines[len(lines) // 2] <= 150


def test_suppressions_are_few():
    found = [
        f"{path}:{i}"
        for path in [*(p for _, p in CODE), *(ROOT / "tests").rglob("*.py")]
        if path != Path(__file__)
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if SUPPRESSION.search(line)
    ]
    assert len(found) <= 20, found


@pytest.mark.parametrize("room", [r for r in ROOMS if r != "jscale"])
def test_links_point_right(room):
    link = ROOT / "jscale" / room
    assert link.is_symlink() and os.readlink(link) == f"../{room}"
