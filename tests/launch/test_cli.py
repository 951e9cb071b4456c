import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from jscale.config.data import from_data, to_data, write
from jscale.launch.cli import COMMANDS, Command, main
from jscale.launch.commands.arguments import resolve

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Run the command line in an empty folder: its status, its output, its complaints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    yield run
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give the command `odd` a body."""

    def write_command(body: str) -> None:
        name = f"odd_command_{abs(hash(body))}"
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / f"{name}.py").write_text(
            f"from jscale.errors import *\n\ndef main(arguments):\n{lines}"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(COMMANDS, "odd", Command(name, "for tests"))

    return write_command


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(call: Call, arguments: list[str]) -> None:
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    for name, command in COMMANDS.items():
        assert f"  {name} " in out and command.help in out


def test_the_version_is_that_of_the_package(call: Call) -> None:
    assert call("--version") == (0, f"jscale {metadata.version('jscale')}\n", "")


@pytest.mark.parametrize(
    ("name", "said"), [("trian", "did you mean 'train'?"), ("x", "ckpt, compile, config")]
)
def test_an_unknown_command_is_a_mistake(call: Call, name: str, said: str) -> None:
    status, out, err = call(name)
    assert (status, out) == (64, "")
    assert err.startswith(f"jscale: error: there is no command {name!r}; ") and said in err


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("return 0", 0, ""),
        ("return 75", 75, ""),
        ("raise ConfigError('so not')", 64, "jscale: error: so not\n"),
        ("raise DataError('so\\n  not')", 65, "jscale: error: so not\n"),
        ("raise CheckpointError('x')", 66, "jscale: error: x\n"),
        ("raise NumericError('x')", 72, "jscale: error: x\n"),
        ("raise KeyboardInterrupt", 130, "jscale: interrupted\n"),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
    ],
)
def test_what_a_command_ends_with_is_the_status(
    call: Call, command: Callable[[str], None], body: str, status: int, said: str
) -> None:
    command(body)
    assert call("odd") == (status, "", said)


def test_an_error_of_ours_shows_where_and_asks_for_a_report(
    call: Call, command: Callable[[str], None]
) -> None:
    command("return 1 / 0")
    status, out, err = call("odd")
    assert (status, out) == (70, "")
    assert "Traceback" in err and "ZeroDivisionError" in err
    assert err.endswith("jscale: this is a bug in jscale: please report the lines above\n")


@pytest.mark.parametrize("arguments", [["--debug", "odd"], ["odd", "--debug"]])
def test_debug_shows_where_a_mistake_was_found(
    call: Call, command: Callable[[str], None], arguments: list[str]
) -> None:
    command("raise ConfigError('so not')")
    status, _, err = call(*arguments)
    assert status == 64 and "Traceback" in err and err.endswith("jscale: error: so not\n")


def test_a_command_gets_its_own_arguments(call: Call, command: Callable[[str], None]) -> None:
    command("print(arguments)\nreturn 0")
    assert call("odd", "--debug", "a=1", "-x") == (0, "['a=1', '-x']\n", "")


@pytest.mark.parametrize("name", ["config", "recipes"])
def test_each_command_has_help(call: Call, name: str) -> None:
    status, out, err = call(name, "--help")
    assert (status, err) == (0, "") and out.startswith(f"usage: jscale {name}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config"], "the following arguments are required: RECIPE (try"),
        (["config", "quickstart", "--wy", "x"], "unrecognized arguments: --wy"),
        (["config", "quickstart", "--why"], "expected one argument"),
        (["config", "quickstart", "--why", "a", "--diff", "b"], "not allowed with"),
        (["config", "quikstart"], "no recipe, file or run folder 'quikstart'; did you mean 'quick"),
        (["config", "quickstart", "stpes"], "write field=value; did you mean 'steps'"),
        (["config", "quickstart", "stpes=3"], "no field 'stpes'; did you mean 'steps'"),
        (["config", "quickstart", "layers=3"], "no field 'layers'; did you mean 'model.layers'"),
        (["config", "quickstart", "steps=3", "steps=4"], "steps is set twice"),
        (["config", "quickstart", "steps=many"], "steps must be int, got 'many'"),
        (["config", "quickstart", "steps=0"], "steps must be at least 1"),
        (["config", "quickstart", "model.heads=3"], "model: heads=3 must be a multiple"),
        (["config", "quickstart", "optimizer=Lyon()"], "did you mean 'Lion'?"),
        (
            ["config", "quickstart", "--why", "layers"],
            "no field 'layers'; did you mean 'model.layers'",
        ),
        (["config", "quickstart", "--why", "stpes"], "no field 'stpes'; did you mean 'steps'"),
        (["config", "quickstart", "--diff", "nothing"], "no recipe, file or run folder 'nothing'"),
        (["config", "quickstart", "--import", "x.py"], "there is no file"),
        (["recipes", "copy"], "required: NAME"),
        (["recipes", "steal"], "invalid choice: 'steal'"),
        (["recipes", "copy", "quikstart"], "did you mean 'quickstart'?"),
        (["recipes", "copy", "quickstart", "x.txt"], "x.txt must end in .py, or be a folder"),
        (["recipes", "copy", "quickstart", "no/x.py"], "cannot write no/x.py: No such file"),
    ],
)
def test_a_mistake_is_one_line_and_status_64(call: Call, arguments: list[str], said: str) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (64, "")
    assert err.startswith("jscale: error: ") and err.count("\n") == 1 and said in err


def test_config_shows_every_value_and_its_origin(call: Call) -> None:
    status, out, _ = call("config", "quickstart", "model.layers=2", "optimizer=Lion(peak=1e-4)")
    rows = dict(line.split("  ", 1) for line in out.splitlines()[2:])
    rows = {left: origin.strip() for left, origin in rows.items()}
    assert status == 0
    assert rows["model.layers = 2"] == "command line: model.layers=2"
    assert rows["optimizer = Lion"] == "command line: optimizer=Lion(peak=1e-4)"
    assert rows["optimizer.peak = 0.0001"] == "command line: optimizer=Lion(peak=1e-4)"
    assert "default of Recipe (" in rows["seed = 0"] and "recipe.py:" in rows["seed = 0"]
    assert "default of Sized (" in rows["model.eps = 1e-06"]
    assert "recipes/quickstart.py:" in rows["model.tied = True"]


def test_the_lines_that_config_names_are_the_right_ones(call: Call) -> None:
    _, out, _ = call("recipes", "copy", "quickstart", "mine.py")
    _, out, _ = call("config", "mine.py")
    lines = Path("mine.py").read_text().splitlines()
    found = [line.split(" = ") for line in out.splitlines() if "set at mine.py:" in line]
    for path, rest in found:
        name = path.rpartition(".")[2]
        number = int(rest.rpartition(":")[2])
        assert f"{name}=" in lines[number - 1]
    assert len(found) > 15


def test_config_why_shows_one_field_and_what_it_is_for(call: Call) -> None:
    status, out, _ = call("config", "quickstart", "--why", "model.kv_heads", "model.kv_heads=4")
    assert status == 0
    first, note = out.splitlines()
    assert first.split() == "model.kv_heads = 4 command line: model.kv_heads=4".split()
    assert "key/value heads" in note
    _, out, _ = call("config", "quickstart", "--why", "optimizer")
    rows = [line for line in out.splitlines() if not line.startswith(" ")]
    assert len(rows) > 3 and all(line.startswith("optimizer") for line in rows)


def test_config_diff_shows_only_what_differs(call: Call) -> None:
    arguments = ["config", "quickstart", "steps=9", "samples=None", "--diff", "quickstart"]
    status, out, _ = call(*arguments)
    rows = [line.split(maxsplit=1) for line in out.splitlines()]
    assert status == 0
    assert rows[0] == ["steps", f"9 -> {resolve('quickstart').value.steps}"]
    assert rows[1] == ["samples", "None -> Samples"]
    assert all(path.startswith("samples.") for path, _ in rows[2:])
    assert call("config", "quickstart", "--diff", "quickstart") == (0, "", "no differences\n")


def test_a_copied_recipe_is_the_same_recipe_and_is_never_overwritten(call: Call) -> None:
    status, out, _ = call("recipes", "copy", "quickstart")
    assert (status, out) == (0, "wrote quickstart.py\n")
    assert call("config", "./quickstart.py", "--diff", "quickstart")[2] == "no differences\n"
    path = Path("quickstart.py")
    text = path.read_text()
    assert text.count("#") >= 5 and ast.parse(text)
    path.write_text("mine")
    status, _, err = call("recipes", "copy", "quickstart")
    assert status == 64 and "quickstart.py exists already" in err and path.read_text() == "mine"
    Path("folder").mkdir()
    assert call("recipes", "copy", "quickstart", "folder")[1] == "wrote folder/quickstart.py\n"


def test_recipes_are_listed_with_what_they_do(call: Call) -> None:
    status, out, _ = call("recipes")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0 and "quickstart" in rows and len(rows["quickstart"]) > 20


def test_a_run_folder_is_a_recipe(call: Call) -> None:
    value = resolve("quickstart", ["steps=7"]).value
    Path("run").mkdir()
    write(Path("run/recipe.json"), value)
    assert resolve("run").value == value
    _, out, _ = call("config", "run", "--diff", "quickstart")
    assert out.split() == ["steps", "7", "->", str(resolve("quickstart").value.steps)]
    _, out, _ = call("config", "run", "--why", "steps")
    assert "run folder run/recipe.json" in out


def test_a_run_folder_with_a_users_type_needs_that_file(call: Call) -> None:
    own = (
        "from dataclasses import dataclass\n"
        "from jscale.launch.recipes.quickstart import recipe as start\n"
        "from dataclasses import replace\n"
        "@dataclass(frozen=True)\n"
        "class Half:\n"
        "    z: float = 0.5\n"
        "    def __call__(self, model, params, batch, rng): ...\n"
        "def recipe():\n"
        "    return replace(start(), loss=Half())\n"
    )
    Path("own_loss.py").write_text(own)
    value = resolve("own_loss.py", ["loss.z=1"]).value
    Path("run").mkdir()
    write(Path("run/recipe.json"), value)
    status, _, err = call("config", "run")
    assert status == 64 and "in the module 'own_loss', which is not jscale's" in err
    status, out, _ = call("config", "run", "--import", "own_loss.py", "--why", "loss")
    assert status == 0 and "loss.z = 1.0" in out
    _, out, _ = call("config", "quickstart", "loss=NextToken(z_loss=1e-4)", "--why", "loss.z_loss")
    assert "loss.z_loss = 0.0001" in out


def test_every_shipped_recipe_survives_being_written() -> None:
    value = resolve("quickstart").value
    assert from_data(to_data(value)) == value
    assert from_data(to_data(replace(value, seed=3))) != value


def shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jscale.launch.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_the_status_reaches_the_shell(tmp_path: Path) -> None:
    ran = shell("conifg", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (64, "")
    assert ran.stderr == "jscale: error: there is no command 'conifg'; did you mean 'config'?\n"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "odd_command.py").write_text("def main(arguments):\n    print('x' * 10**7)")
    code = (
        "import sys\nfrom jscale.launch.cli import COMMANDS, Command, main\n"
        "COMMANDS['odd'] = Command('odd_command', '')\nsys.exit(main(['odd']))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_config_starts_no_backend(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom jscale.launch.cli import main\nstatus = main(['config', 'quickstart'])\n"
        "from jscale.mesh.compat import started\nsys.exit(status or (9 if started() else 0))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "") and "model.layers = " in ran.stdout


def test_help_imports_neither_jax_nor_a_command(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom jscale.launch.cli import main\nmain(['--help'])\n"
        "sys.exit(any(x in sys.modules for x in ('jax', 'rich', 'jscale.launch.commands.config')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_recipe_of_the_documentation_works(call: Call) -> None:
    page = Path(__file__).parents[2] / "docs" / "recipes.md"
    Path("mine.py").write_text(page.read_text().split("```python\n")[1].partition("```")[0])
    status, out, err = call("config", "mine.py")
    assert (status, err) == (0, "") and "from Sized.of_depth, called at mine.py:10" in out
