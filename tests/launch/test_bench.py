"""`jscale bench kernels`: who is wrong gets no time, turns are fair, figures are kept."""

import json
from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace

import absent
import jax
import jax.numpy as jnp
import pytest

from jscale.errors import ConfigError, NumericError
from jscale.launch.bench import rows
from jscale.launch.bench.case import DENSE
from jscale.launch.bench.case import measure as measure_case
from jscale.launch.bench.ceiling import Ceiling, side_of
from jscale.launch.bench.measure import Clock, clock_of, take_turns
from jscale.launch.bench.results import keep, read
from jscale.launch.bench.rivals import attention as rivals
from jscale.launch.bench.rows import attention
from jscale.launch.bench.subject import Program, Subject, Work, differentiable, draw, exactly
from jscale.launch.cli import main
from jscale.launch.commands import bench
from jscale.pallas_kernels.device import Device

HERE = Device("cpu", "cpu")
CEILING = Ceiling(1e9, 1e9)
QUICK = clock_of("cpu", quick=True)


@dataclass(frozen=True)
class Case:
    """The square of so many numbers."""

    size: int = 8
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.size} numbers"


def raising(x):
    raise NotImplementedError("knows no squares\nand says so at length")


SQUARE = Subject(
    "square",
    Case,
    cases=lambda platform, quick: [Case()],
    inputs=lambda case: draw({"x": (case.size,)}, case.dtype),
    work=lambda case: {n: Work(8.0, 8.0) for n in ("forward", "backward", "training")},
    values=lambda case, given: exactly(lambda x: x * x, given),
    contenders=lambda case: {
        "ours": differentiable(lambda x: x * x),
        "false": differentiable(lambda x: x * x * 1.001),
        "refuses": "needs circles",
    },
    chosen=lambda case: "ours",
    rivals=lambda case: {
        "false gradient": differentiable(lambda x: x * jnp.asarray(x, jnp.bfloat16) + x * x),
        "forward only": differentiable(lambda x: x**2, gradients=False),
        "raises": differentiable(raising),
    },
)


def test_the_wrong_and_the_unwilling_get_no_time():
    passes = ["forward", "backward", "training"]
    found = measure_case(SQUARE, Case(), passes, CEILING, QUICK, HERE)
    assert set(found["passes"]["forward"]["contenders"]) == {"ours", "forward only", DENSE}
    assert set(found["passes"]["backward"]["contenders"]) == {"ours", DENSE}
    silent = found["silent"]
    assert "result is off by 1.0e-03" in silent["false"]["wrong"]
    assert "off by" in silent["false gradient"]["wrong"]
    assert silent["raises"] == {"refused": "NotImplementedError: knows no squares"}
    assert silent["refuses"] == {"refused": "needs circles"}
    ours = found["passes"]["forward"]["contenders"]["ours"]
    assert ours["ratio"] == 1 and ours["seconds"] > 0 and ours["temporaries"] is not None


def test_a_wrong_one_of_ours_is_an_error_in_the_end(capsys, tmp_path):
    options = SimpleNamespace(out=str(tmp_path / "a.json"), quick=True, forward=1, backward=0)
    with pytest.raises(NumericError, match="square by 'false'$"):
        bench.measure([(SQUARE, Case())], HERE, QUICK, options)
    (kept,) = json.loads((tmp_path / "a.json").read_text())["cases"]
    assert set(kept["passes"]) == {"forward"} and kept["machine"]["platform"] == "cpu"
    assert "false: wrong: result is off" in capsys.readouterr().out


def test_turns_are_compared_with_their_neighbours():
    """A machine that gets slower all the time changes no ratio."""
    now, steps = [0.0], count(1)

    def program(seconds):
        def call():
            now[0] += seconds * (1 + next(steps) / 1000)

        return Program(call, lambda x: x)

    clock = Clock(lambda: now[0], "seconds", turn=0.0, rounds=9, budget=1e9)
    found = take_turns({"a": program(1.0), "b": program(2.0)}, clock)
    assert found["b"].ratio(found["a"]) == pytest.approx(2, rel=0.01)
    assert len(found["a"].seconds) == 9
    short = take_turns({"a": program(1.0)}, replace(clock, budget=4.0))
    assert 3 <= len(short["a"].seconds) < 9
    many = take_turns({"a": program(1.0)}, replace(clock, turn=50.0, rounds=1))
    assert many["a"].middle == pytest.approx(1, rel=0.3)


def test_what_the_dense_product_costs():
    assert side_of(2 * 512.0**3, "cpu") == 512 and side_of(1.0, "gpu") == 128
    assert Ceiling(10.0, 2.0).least(Work(20.0, 2.0)) == 2


@pytest.mark.parametrize("name", rows.names())
def test_every_row_has_cases_for_every_platform(name):
    subject = rows.subject(name)
    for platform in ("cpu", "gpu", "tpu"):
        for quick in (False, True):
            for case in subject.cases(platform, quick):
                assert isinstance(case, subject.case) and case.dtype in subject.limits
                assert all(work.flops > 0 for work in subject.work(case).values())
                assert name != "attention" or case.pairs <= case.length**2
    usual = subject.cases("cpu", True)[0]
    assert subject.chosen(usual) in subject.contenders(usual)


def test_a_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "kernels", "retention", "--quick", "--forward"]
    shapes = ["--shapes", "length=20,heads=1", "--shapes", "length=9,heads=2"]
    assert main([*words, *shapes[:2]]) == 0
    assert "times as long" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main([*words, "--out", "a.json", *shapes]) == 0
    first, second = json.loads((tmp_path / "a.json").read_text())["cases"]
    assert (first["case"]["heads"], second["case"]["heads"]) == (1, 2)
    assert set(first["passes"]) == {"forward"}
    assert first["chosen"] in first["passes"]["forward"]["contenders"]


def test_a_file_keeps_cases_and_takes_new_ones_in_the_place_of_old_ones(tmp_path):
    path = tmp_path / "folder" / "a.json"
    one = lambda heads, seconds: {"operation": "x", "case": {"heads": heads}, "seconds": seconds}
    keep(path, [one(1, 3.0), one(2, 4.0)])
    keep(path, [one(1, 5.0)])
    assert {c["case"]["heads"]: c["seconds"] for c in read(path)} == {1: 5.0, 2: 4.0}
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        keep(tmp_path / "file" / "a.json", [])


@pytest.mark.slow
@pytest.mark.parametrize("name", rows.names())
def test_quick_runs_of_all(name, tmp_path):
    out = tmp_path / "a.json"
    assert main(["bench", "kernels", name, "--quick", "--out", str(out)]) == 0
    (case,) = json.loads(out.read_text())["cases"]
    assert case["chosen"] in case["passes"]["training"]["contenders"]
    assert not any("wrong" in why for why in case["silent"].values())


CAUSAL = attention.Case(1, 2048, 4, 2, 128)
FULL = replace(CAUSAL, causal=False)
ABSENT = [
    ("v5e-4", rivals.pallas_flash, CAUSAL),
    ("v5e-4", rivals.pallas_splash, CAUSAL),
    ("v6e-4", rivals.pallas_splash, replace(CAUSAL, window=256)),
    ("h100:1", rivals.pallas_triton, CAUSAL),
    ("h100:1", rivals.pallas_mosaic, FULL),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize("machine, make, case", ABSENT)
def test_jaxs_own_kernels_compile_for_chips_that_are_not_here(machine, make, case):
    run = make(case)
    loss = lambda given: run(**given).astype(jnp.float32).sum()
    assert absent.compiled(machine, jax.grad(loss), jax.eval_shape(lambda: attention.inputs(case)))


@pytest.mark.parametrize(
    "words, message",
    [
        (["steps"], "cannot bench 'steps'"),
        (["kernels", "atention"], "did you mean 'attention'"),
        (["kernels", "attention", "--shapes", "lenght=4"], "lenght"),
        (["kernels", "attention", "--shapes", "length=long"], "length"),
        (["kernels", "attention", "--shapes", "length"], "length"),
        (["kernels", "--forward", "--backward"], "not allowed with"),
        (["kernels", "retention", "--quick", "--out", "broken.json"], "holds no results"),
        (["kernels", "retention", "--tune", "--quick"], "tiles that can be tuned"),
    ],
)
def test_wrong_calls_are_named(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("[]")
    assert main(["bench", *words]) == ConfigError.status
    assert message in capsys.readouterr().err
