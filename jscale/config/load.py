"""Find a recipe: a shipped one by name, a Python file, or the data in a run folder."""

import ast
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from jscale.config import data
from jscale.config.annotations import brief, check
from jscale.config.source import default_of, read_source
from jscale.config.trace import tell, watch
from jscale.config.tree import is_part, nodes, shown
from jscale.errors import ConfigError, UserError, did_you_mean

FUNCTION = "recipe"
DATA_FILE = "recipe.json"


@dataclass(frozen=True)
class Loaded:
    """A value and where it came from.

    `module` and `function` made it, or are None if it was read from a run folder. `origins` says
    of every dotted path where it was set; `notes` what the user should know, in sentences.
    """

    value: Any
    source: Path
    module: ModuleType | None
    function: str | None
    origins: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shipped:
    """A recipe that comes with the package: its name, its file, the first line of its docstring.

    `others` are the further functions of the file that return a recipe, each with the first line of
    its own docstring: `name:function` is one of them.
    """

    name: str
    source: Path
    summary: str
    others: Mapping[str, str] = field(default_factory=dict)


def shipped(package: ModuleType) -> list[Shipped]:
    """The recipes in `package`, read without importing any of them."""
    found = []
    for entry in pkgutil.iter_modules(package.__path__):
        if not entry.name.startswith("_"):
            path = Path(package.__path__[0]) / f"{entry.name}.py"
            tree = read_source(path).tree
            functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            others = {x.name: _summary(x) for x in functions if _makes_another(x)}
            found.append(Shipped(entry.name, path, _summary(tree), others))
    return found


def _summary(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _makes_another(function: ast.FunctionDef) -> bool:
    """Whether it says that it returns a recipe, and is not the one of the file's name."""
    returned = function.returns is not None and ast.unparse(function.returns) == "Recipe"
    return returned and function.name != FUNCTION and not function.name.startswith("_")


def load(
    name: str,
    package: ModuleType | None = None,
    allow: Sequence[ModuleType] = (),
    expect: type | None = None,
) -> Loaded:
    """The recipe called `name`.

    `name` is that of a recipe in `package`, or the path of a Python file, either with `:function`
    for another function than `recipe`; or else the path of a run folder or of a `recipe.json`. Data
    is read without executing any code of its folder: its types are jscale's, or from the modules in
    `allow`. With `expect`, the value must be of that type.

    Raises:
      ConfigError: there is no such recipe, its file has an error (which it quotes with its line),
        or what it returns is no frozen dataclass of plain data.
    """
    where, function = _split(name)
    path = Path(where).expanduser()
    if package and where.isidentifier():
        if where in [recipe.name for recipe in shipped(package)]:
            return _make(_import_shipped(package, where), function or FUNCTION, expect)
    if path.suffix == ".py":
        return _make(load_file(path), function or FUNCTION, expect)
    if path.suffix == ".json" or path.is_dir():
        return _restore(path / DATA_FILE if path.is_dir() else path, allow, expect)
    names = [recipe.name for recipe in shipped(package)] if package else []
    raise ConfigError(
        f"there is no recipe, file or run folder {name!r}; {did_you_mean(name, names)}"
    )


def _split(name: str) -> tuple[str, str | None]:
    """`path/to/my.py:small` as its file and its function."""
    found = re.fullmatch(r"(.+):([A-Za-z_]\w*)", name)
    return (found.group(1), found.group(2)) if found else (name, None)


def _import_shipped(package: ModuleType, name: str) -> ModuleType:
    path = Path(package.__path__[0]) / f"{name}.py"
    return _blaming(path, lambda: importlib.import_module(f"{package.__name__}.{name}"))


def load_file(path: Path) -> ModuleType:
    """The module in a user's file, importable by a name that depends on the file alone.

    As with `python my.py`, the modules beside the file can be imported from it. A file that has not
    changed since it was loaded is not run again.

    Raises:
      ConfigError: the file is missing or has an error.
    """
    if not path.is_file():
        siblings = [other.name for other in path.parent.glob("*.py")]
        hint = did_you_mean(path.name, siblings)
        raise ConfigError(f"there is no file {shown(path)}; in that folder, {hint}")
    real = path.resolve()
    name = _module_name(real)
    text = real.read_bytes()
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__loaded_text__", None) == text:
        return module
    return _run(name, real, text)


def _run(name: str, path: Path, text: bytes) -> ModuleType:
    """Execute `path` as the module `name`; if it fails, the module is forgotten."""
    module = ModuleType(name)
    module.__file__ = str(path)
    vars(module)["__loaded_text__"] = text
    before = sys.modules.get(name)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a user's file shadows no installed package
    try:
        _blaming(path, lambda: exec(compile(text, str(path), "exec"), vars(module)))
    except BaseException:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _module_name(path: Path) -> str:
    """The file's own name if nothing else is called so, with a digest of its path otherwise."""
    stem = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    plain = stem == path.stem and not stem.startswith("_") and not stem[0].isdigit()
    if plain and _is_free(stem, path):
        return stem
    return f"recipe_{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _is_free(name: str, path: Path) -> bool:
    """Whether `import name` would find this very file, or nothing."""
    known = sys.modules.get(name)
    if known is not None:
        return getattr(known, "__file__", None) == str(path)
    spec = importlib.util.find_spec(name)
    return spec is None or (spec.origin is not None and Path(spec.origin).resolve() == path)


def _blaming(path: Path, action: Callable[[], Any]) -> Any:
    """`action()`, an error in the user's file told in one sentence with the line that raised it."""
    try:
        return action()
    except SyntaxError as error:
        place = f"{shown(Path(error.filename or path))}:{error.lineno}"
        raise ConfigError(f"{place}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        line = _line(error, path)
        place = f"{shown(path)}:{line}" if line else shown(path)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise ConfigError(f"{place}: {kind}{error}") from error


def _line(error: BaseException, path: Path) -> int:
    """The innermost line of `path` in the error's traceback; 0 if it never was there."""
    lines, trace = [0], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1]


def _make(module: ModuleType, function: str, expect: type | None) -> Loaded:
    """What `function` of `module` returns, watched while it is made."""
    path = Path(module.__file__ or "")
    make = vars(module).get(function)
    if not callable(make):
        found = [x for x in vars(module).values() if isinstance(x, FunctionType)]
        own = [x.__name__ for x in found if x.__module__ == module.__name__]
        hint = did_you_mean(function, own)
        raise ConfigError(f"{shown(path)} has no function {function}(); {hint}")
    value, births = _blaming(path, lambda: watch(make))
    returned = f"{function}() of {shown(path)}"
    _check_value(value, expect, returned)
    return Loaded(value, path, module, function, tell(module, function, value, births))


def _restore(path: Path, allow: Sequence[ModuleType], expect: type | None) -> Loaded:
    filled: list[data.Filled] = []
    value = data.read(path, allow, filled)
    _check_value(value, expect, shown(path))
    origins = {place: f"run folder {shown(path)}" for place, _ in nodes(value)}
    for place, owner, _ in filled:
        name = place.rpartition(".")[2]
        origins |= {x: default_of(owner, name) for x in origins if f"{x}.".startswith(f"{place}.")}
    return Loaded(value, path, None, None, origins, tuple(data.told(path, filled)))


def _check_value(value: Any, expect: type | None, where: str) -> None:
    """Refuse what is no frozen dataclass of plain data, or not of the type `expect`."""
    wanted = expect.__name__ if expect else "frozen dataclass"
    if not (isinstance(value, expect) if expect else is_part(value)):
        raise ConfigError(f"{where} gives {brief(value)}, not a {wanted}")
    try:
        check(value)
        data.to_data(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
