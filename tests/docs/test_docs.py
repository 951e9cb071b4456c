"""The documents are true: commands and snippets run, links lead somewhere, nothing is left out.

Blocks of one document run in their order, in one folder, the Python ones in one namespace. A
`text` block right after them is what they print: each of its lines must be there but for spaces,
with `…` for those left out. Comments on the line above a block make exceptions, each with its
reason: `<!-- not run: why -->`, and `<!-- fails 64: why -->` where every command ends with that
status.
"""

import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from jscale.config.tree import nodes
from jscale.data import TextData
from jscale.launch.cli import COMMANDS, main
from jscale.launch.commands import importing
from jscale.launch.commands.arguments import resolve
from jscale.launch.commands.forms import FORMS
from jscale.launch.recipes import quickstart
from jscale.mesh.compat import setting

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MARK = re.compile(r"<!-- (not run|fails (\d+)): \S.* -->")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
OTHERS = ("cat ", "cd ", "git ", "kill ", "pip ", "pytest ", "ruff ", "source ", "tensorboard ")
SHELLS = ("sh", "bash")
FIRST = ("git clone", "./")  # a block that begins so sets up an environment of its own
TRAINED = ("quickstart", "examples/parallel_block.py")  # the runs that a reader has at hand

# Small values for what a training command leaves unsaid, where the recipe has such a field.
SMALL = {
    "steps": "6",
    "model.dim": "32",
    "model.hidden": "64",
    "model.layers": "1",
    "model.heads": "2",
    "model.kv_heads": "2",
    "data.source": 'TextFiles(("my_texts/*.txt",))',
    "data.tokenizer": "Bytes()",
    "data.heldout": "0.3",
    "data.length": "32",
    "data.batch": "8",
    "optimizer.schedule.warmup": "2",
    "evaluation.batches": "1",
    "samples.every": "1000",
}


class Block(NamedTuple):
    """A fenced block of a page: its language, its lines, the line before its first, its mark."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None
    shows: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def runs(self) -> bool:
        skipped = self.mark is not None and self.mark.startswith("<!-- not run")
        return self.language in ("python", *SHELLS) and not skipped

    @property
    def status(self) -> int:
        found = MARK.fullmatch(self.mark) if self.mark else None
        return int(found[2]) if found and found[2] else 0


def blocks(page: Path) -> list[Block]:
    out: list[Block] = []
    lines, i, before = page.read_text(encoding="utf-8").splitlines(), 0, ""
    gap = True  # whether prose stands between this block and the one before
    while i < len(lines):
        text = lines[i].strip()
        if text.startswith("```"):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == "```")
            body = "\n".join(lines[i + 1 : end])
            mark = before if before.startswith("<!--") else None
            if text == "```text" and out and not gap:
                out[-1] = out[-1]._replace(shows=body)
            out.append(Block(page, i + 1, text[3:], body, mark))
            i, gap, before = end, False, ""
        elif text:
            gap, before = gap or not text.startswith("<!--"), text
        i += 1
    return out


RUNNABLE = [page for page in PAGES if any(b.runs for b in blocks(page))]


def trained_by_pages() -> set[str]:
    """The recipes of what readers have at hand, and of every training that a page shows."""
    run = [b.text for page in RUNNABLE for b in blocks(page) if b.runs and b.language in SHELLS]
    return {*TRAINED, *re.findall(r"^\s*(?:\$ )?jscale train (\S+)", "\n".join(run), re.MULTILINE)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the texts that the pages speak of, and two runs, trained a little."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    write_texts(folder, [p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md")])
    with pytest.MonkeyPatch.context() as patch, reader(folder, folder / "home", patch):
        for recipe in TRAINED:
            assert main(smaller(["train", recipe])) == 0
    return folder


def write_texts(folder: Path, texts: list[str]) -> None:
    """The texts as files of every kind that a page reads."""
    import pyarrow
    import pyarrow.parquet
    import zstandard

    for name in ("my_texts", "web", "code"):
        (folder / name).mkdir()
    for number, text in enumerate(texts):
        (folder / "my_texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "web" / "a.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    table = pyarrow.table({"content": texts})
    pyarrow.parquet.write_table(table, folder / "code" / "a.parquet")


@contextmanager
def reader(folder: Path, home: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader's place: a working folder and a home, nothing of which is left in this process."""
    known = set(sys.modules)
    patch.chdir(folder)
    patch.setenv("HOME", str(home))
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(setting("jax_compilation_cache_dir")))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    patch.setattr(sys, "path", [str(folder), *sys.path])
    try:
        yield
    finally:
        for name in set(sys.modules) - known:
            file = str(getattr(sys.modules[name], "__file__", None))
            if file.startswith((str(folder), str(ROOT / "examples"))):
                del sys.modules[name]


@pytest.fixture
def desk(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the trained folder, to work in."""
    folder = tmp_path / "desk"
    shutil.copytree(trained, folder, symlinks=True, ignore=shutil.ignore_patterns("home"))
    with reader(folder, trained / "home", monkeypatch):
        yield folder


def smaller(words: list[str]) -> list[str]:
    """The words of a command with a recipe, with small values for what they leave unsaid."""
    named = len(words) > 1 and (words[1] in FORMS or words[1].endswith(".py"))
    at = {"train": 1, "import": 3 if named else 2}.get(words[0])
    if at is None or "--help" in words or any(Path(word).is_dir() for word in words[at : at + 1]):
        return words  # of no recipe, or of a run's, which is small by now
    given = {word.split("=")[0] for word in words if "=" in word}
    unnamed = not words[at:] or "=" in words[at] or words[at].startswith("--")
    recipe = resolve(importing.DEFAULT if unnamed else words[at]).value
    there = {path for path, x in nodes(recipe) if path != "model.layers" or isinstance(x, int)}
    if unnamed:  # the release has a model and tokens of its own
        there = {path for path in there if not path.startswith(("model.", "data.tokenizer"))}
    if not isinstance(recipe.data, TextData):  # other data are small by themselves
        there = {path for path in there if not path.startswith("data.")}
    free = lambda path: not any(path.startswith(g) or g.startswith(f"{path}.") for g in given)
    small = [f"{path}={value}" for path, value in SMALL.items() if path in there and free(path)]
    return [*words, *small]


def run_shell(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if not line or line.startswith(("#", *OTHERS)):
            continue
        words = shlex.split(line, comments=True)
        if words[0] == "python" and words[1].startswith("examples/"):
            runpy.run_path(words[1], run_name="__main__")
            continue
        assert words[0] == "jscale", f"{block.where}: nobody runs {line!r}"
        status = main(smaller(words[1:]))
        assert status == block.status, f"{block.where}: {line!r} ended with {status}"


def run_python(block: Block, names: dict[str, object]) -> None:
    """Run a snippet; where it asks for the shipped recipe it gets the one `trained` was made of."""
    small = resolve("quickstart", smaller(["train", "quickstart"])[2:]).value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "recipe", lambda: small)
        exec(compile("\n" * block.line + block.text, str(block.page), "exec"), names)


def check_shown(block: Block, printed: str) -> None:
    words = lambda text: [" ".join(line.split()) for line in text.splitlines()]
    said = {*words(printed), "", "…"}
    for line in words(block.shows or ""):
        assert line in said, f"{block.where} does not print {line!r} but:\n{printed}"


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(
    page: Path, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {"__name__": f"snippets_of_{page.stem}"}
    for block in blocks(page):
        if not block.runs or block.text.startswith(FIRST):
            continue
        if block.language in SHELLS:
            run_shell(block)
        else:
            run_python(block, names)
        printed = "".join(capfd.readouterr())
        assert "jscale train examples/" not in block.text or "step" in printed, block.where
        check_shown(block, printed)


UNTRAINED = [path for path in EXAMPLES if f"examples/{path.name}" not in trained_by_pages()]


@pytest.mark.parametrize("example", UNTRAINED, ids=lambda path: path.name)
def test_every_other_example_runs(
    example: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "def recipe(" in example.read_text(encoding="utf-8"):
        assert main(smaller(["train", f"examples/{example.name}"])) == 0
    else:
        runpy.run_path(str(example), run_name="__main__")
    assert "step" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]


def test_every_mark_gives_its_reason() -> None:
    marks = [(b.where, b.mark) for page in PAGES for b in blocks(page) if b.mark]
    assert all(MARK.fullmatch(mark) for _, mark in marks), marks


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {p.name for p in (ROOT / "docs").glob("*.md")} - {"index.md"} <= listed
    assert {f"../examples/{p.name}" for p in EXAMPLES} <= listed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert any(re.search(rf"\bjscale {name}\b", page.read_text("utf-8")) for page in PAGES)


def test_every_dependency_is_justified_and_no_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [r for group in (project["dependencies"], *extras.values()) for r in group]
    names = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in wanted} - {"jscale"}
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))
    assert rows == names, rows ^ names
    assert all(f"`{extra}`" in text for extra in extras)
