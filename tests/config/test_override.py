from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol, runtime_checkable

import pytest

from jscale.config.override import override, parse_overrides
from jscale.errors import ConfigError


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@runtime_checkable
class Optimizer(Protocol):
    def rate(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    pass


@dataclass(frozen=True)
class Cosine:
    warmup: int = 0


@dataclass(frozen=True)
class Adam:
    peak: float
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Constant | Cosine = Constant()

    def rate(self, step: int) -> float:
        return self.peak


@dataclass(frozen=True)
class Lion:
    peak: float = 1e-4
    schedule: Constant | Cosine = Constant()

    def rate(self, step: int) -> float:
        return self.peak

    @classmethod
    def of_size(cls, layers: int, **changes: Any) -> "Lion":
        return cls(**{"peak": 1 / layers, **changes})


@dataclass(frozen=True)
class Bytes:
    offset: int = 0


@dataclass(frozen=True)
class Net:
    layers: int = 2
    dim: int = 8
    heads: int = 2

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} must be a multiple of heads={self.heads}")


@dataclass(frozen=True)
class Source:
    path: str
    weight: float = 1.0


def plain_loss(x: float) -> float:
    return x


def robust_loss(x: float) -> float:
    return abs(x)


@dataclass(frozen=True)
class Run:
    net: Net = Net()
    optimizer: Optimizer = Adam(1e-3)
    tokenizer: Bytes | str = Bytes()
    steps: int = 10
    rate: float = 0.5
    quiet: bool = False
    name: str = "run"
    note: str | None = None
    mesh: Literal["auto", 8] | Net = "auto"
    color: Color = Color.RED
    extra: Net | None = None
    rules: Mapping[str, str | tuple[str, ...] | None] = field(default_factory=lambda: {"e.x": "a"})
    mix: dict[str, Source] = field(default_factory=lambda: {"web": Source("w")})
    sources: tuple[Source, ...] = (Source("a"), Source("b"))
    loss: Any = plain_loss
    source: Source | None = None
    derived: int = field(default=0, init=False)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "1_000", 1000),
        ("steps", "-3", -3),
        ("rate", "3", 3.0),
        ("rate", "1e-4", 1e-4),
        ("rate", "-inf", float("-inf")),
        ("quiet", "true", True),
        ("quiet", "False", False),
        ("name", "a b=c", "a b=c"),
        ("name", "12", "12"),
        ("name", "'quoted'", "quoted"),
        ("name", "gs://bucket/x", "gs://bucket/x"),
        ("name", "Bytes(3)", "Bytes(3)"),
        ("note", "None", None),
        ("note", "'None'", "None"),
        ("note", "x", "x"),
        ("mesh", "auto", "auto"),
        ("mesh", "8", 8),
        ("mesh", "Net(dim=4)", Net(dim=4)),
        ("color", "BLUE", Color.BLUE),
        ("color", "blue", Color.BLUE),
        ("net.layers", "4", 4),
        ("optimizer.betas", "0.5,0.6", (0.5, 0.6)),
        ("optimizer.betas", "[0, 1]", (0.0, 1.0)),
        ("optimizer.betas.1", "0.99", 0.99),
        ("optimizer.schedule", "Cosine(warmup=3)", Cosine(3)),
        ("optimizer.schedule", "Cosine", Cosine()),
        ("optimizer", "Lion(peak=1e-5)", Lion(1e-5)),
        ("optimizer", "Lion(1, Cosine(7))", Lion(1.0, Cosine(7))),
        ("optimizer", "Lion.of_size(4)", Lion(0.25)),
        ("optimizer", "Lion.of_size(4, schedule=Cosine())", Lion(0.25, Cosine())),
        ("tokenizer", "Bytes(5)", Bytes(5)),
        ("tokenizer", "data/gpt2.json", "data/gpt2.json"),
        ("extra", "Net", Net()),
        ("mesh.layers", "4", 4),
        ("extra", "none", None),
        ("rules.e.x", "('a', 'b')", ("a", "b")),
        ("rules", "{'m': None}", {"m": None}),
        ("mix.web.weight", "2", 2.0),
        ("mix", "{'code': Source('c', weight=3)}", {"code": Source("c", 3.0)}),
        ("sources.1.path", "data/c", "data/c"),
        ("sources", "(Source(data/c),)", (Source("data/c"),)),
        ("sources", "()", ()),
        ("loss", "robust_loss", robust_loss),
    ],
)
def test_a_value_is_parsed_by_its_annotation(path: str, text: str, value: Any) -> None:
    found = override(Run(), {path: text})
    for name in path.replace("e.x", "e_x").split("."):
        name = name.replace("e_x", "e.x")
        if isinstance(found, Mapping):
            found = found[name]
        else:
            found = found[int(name)] if isinstance(found, tuple) else getattr(found, name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("steps", "1.5", "steps must be int, got float 1.5"),
        ("steps", "1e3", "got float 1000.0 (write 1000)"),
        ("steps", "'4'", "steps must be int, got str '4'"),
        ("steps", "four", "steps must be int, got 'four'"),
        ("steps", "True", "steps must be int"),
        ("steps", "", "steps must be int, got ''"),
        ("rate", "1+1", "rate must be float, got '1+1'"),
        ("rate", "9" * 400, "rate must be float"),
        ("quiet", "1", "quiet must be bool, got int 1"),
        ("mesh", "manual", "mesh must be 'auto' or 8 or Net, got 'manual'"),
        ("color", "green", "color must be Color, got 'green'"),
        ("optimizer.betas", "1,2,3", "optimizer.betas must be (float, float), got tuple (1, 2, 3)"),
        ("optimizer.betas", "1,x", "optimizer.betas.1 must be float, got 'x'"),
        ("optimizer", "Lio(1)", "optimizer cannot be Lio(...): did you mean 'Lion'?"),
        ("optimizer", "Lion(peek=1)", "Lion has no argument 'peek'; did you mean 'peak'?"),
        ("optimizer", "Lion(peak='x')", "optimizer.peak must be float, got str 'x'"),
        ("optimizer", "Adam()", "optimizer: Adam needs peak"),
        ("optimizer", "Lion(1, peak=2)", "Lion is given peak twice"),
        ("optimizer", "Lion(1, 2, 3)", "Lion takes 2 arguments"),
        ("optimizer", "Lion(**{'peak': 1})", "without * or **"),
        ("optimizer", "Net(2)", "optimizer must be Optimizer, got a Net"),
        ("optimizer", "Lion.__init__()", "Lion has no maker '__init__'"),
        ("optimizer", "Lion.rate(3)", "Lion has no maker 'rate'"),
        ("optimizer", "__import__('os').system('x')", "optimizer cannot be __import__"),
        ("optimizer", "print(1)", "optimizer cannot be print(...)"),
        ("optimizer", "(lambda: 1)()", "optimizer cannot be"),
        ("mesh", "Net(heads=3)", "mesh: dim=8 must be a multiple of heads=3"),
        ("net.dim", "9", "net: dim=9 must be a multiple of heads=2 (after net.dim=9)"),
        ("layers", "4", "Run has no field 'layers'; did you mean 'net.layers'?"),
        ("net.layer", "4", "Net has no field 'layer'; did you mean 'net.layers'?"),
        ("stpes", "4", "Run has no field 'stpes'; did you mean 'steps'?"),
        ("net.peek", "4", "did you mean 'optimizer.peak'?"),
        ("steps.more", "4", "steps is int 10, which has no fields"),
        ("note.layers", "4", "note is None, which has no fields; give note=... first"),
        ("extra.lyers", "4", "Net has no field 'lyers'; did you mean 'extra.layers'"),
        ("extra.layers", "x", "extra.layers must be int, got 'x'"),
        ("source.weight", "2", "source: Source needs path"),
        ("derived", "4", "Run computes derived itself"),
        ("mix.wb.weight", "1", "mix has no such entry; did you mean 'mix.web'?"),
        ("sources.2.path", "x", "sources has 2 items, counted from 0, and no '2'"),
        ("sources.-1.path", "x", "and no '-1'"),
        ("rules", "{'a': 1}", "rules.a must be str or tuple of str or None, got int 1"),
        ("rules", "{'a': 'b', 'a': 'c'}", "rules has the entry 'a' twice"),
        ("", "4", "has no field ''"),
        ("net..dim", "4", "has no field ''"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(path: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Run(), {path: text})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_changes_of_one_part_are_checked_together() -> None:
    changed = override(Run(), {"net.dim": "9", "net.heads": "3"})
    assert changed.net == Net(2, 9, 3)


def test_a_part_can_be_replaced_and_then_changed() -> None:
    changed = override(Run(), {"extra": "Net(layers=3)", "extra.dim": "16"})
    assert changed.extra == Net(3, 16)


def test_a_field_of_an_absent_part_makes_the_part() -> None:
    changed = override(Run(), {"mesh.layers": "4", "extra.dim": "9", "extra.heads": "3"})
    assert (changed.mesh, changed.extra) == (Net(4), Net(2, 9, 3))
    changed = override(Run(), {"source.path": "p", "source.weight": "2"})
    assert changed.source == Source("p", 2.0)


def test_a_change_that_would_be_overwritten_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"extra=Net\(\) would overwrite extra.dim=16"):
        override(Run(), {"extra.dim": "16", "extra": "Net()"})


def test_types_of_the_caller_may_be_named() -> None:
    @dataclass(frozen=True)
    class Mine:
        scale: float = 2.0

        def rate(self, step: int) -> float:
            return self.scale

    assert override(Run(), {"optimizer": "Mine(scale=3)"}, [Mine]).optimizer == Mine(3.0)
    with pytest.raises(ConfigError, match="cannot be Mine"):
        override(Run(), {"optimizer": "Mine(scale=3)"})


def test_without_changes_the_value_itself_comes_back() -> None:
    run = Run()
    assert override(run, {}) is run


def test_overrides_are_split_at_the_first_equals_sign() -> None:
    assert parse_overrides(["a.b=1", "c==x"]) == {"a.b": "1", "c": "=x"}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["stpes"], "'stpes' is not an override: write field=value"),
        (["=3"], "'=3' is not an override"),
        (["a=1", "b=2", "a=3"], "a is set twice: a=1 and a=3"),
    ],
)
def test_what_is_no_list_of_overrides_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_overrides(texts)
