"""Recipe files to load, and an import system that forgets them after each test."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PARTS = '''\
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol


class Optimizer(Protocol):
    def rate(self, step: int) -> float: ...


@dataclass(frozen=True)
class Adam:
    peak: float  # the highest learning rate
    betas: tuple[float, float] = (0.9, 0.95)

    def rate(self, step: int) -> float:
        return self.peak


@dataclass(frozen=True)
class Lion:
    peak: float = 1e-4
    beta: float = 0.9

    def rate(self, step: int) -> float:
        return self.peak


@dataclass(frozen=True)
class Guard:
    """When to stop.

    spikes: how many in a row
      before giving up
    """

    spikes: int = 3


@dataclass(frozen=True)
class Net:
    layers: int
    # The size of the residual stream,
    # in numbers.
    dim: int = 64
    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, not {self.layers}")
        if self.hidden is None:
            object.__setattr__(self, "hidden", 4 * self.dim)

    @classmethod
    def of_depth(cls, layers: int, **changes: int) -> "Net":
        return cls(**{"layers": layers, "dim": 32 * layers, **changes})

    @classmethod
    def tiny(cls) -> "Net":
        return cls(layers=1)


@dataclass(frozen=True)
class Run:
    name: str
    net: Net
    optimizer: Optimizer
    steps: int = 10
    mesh: Literal["auto"] | int = "auto"
    guard: Guard | None = Guard()
    mix: dict[str, float] = field(default_factory=dict)
'''


@pytest.fixture(autouse=True)
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Take back what loading files does to the import system, here and in tests before."""
    base, path = str(tmp_path_factory.getbasetemp()), list(sys.path)
    sys.path[:] = [folder for folder in path if not folder.startswith(base)]
    _forget(base)
    yield
    sys.path[:] = path
    _forget(base)


def _forget(base: str) -> None:
    """Drop the modules of files below a folder."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(base):
            del sys.modules[name]


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a recipe file that begins with the toy parts' import; we stand in its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy_parts.py").write_text(PARTS)

    def write(body: str, name: str = "my.py") -> Path:
        path = tmp_path / name
        path.write_text(f"from toy_parts import *\n{body}")
        return path

    return write
