"""`jscale moe bench`: who is wrong gets no time, times are kept, and `auto` reads its own alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from close import LAYOUT, assert_close

from jscale.errors import ConfigError, NumericError
from jscale.launch.bench.rows import moe_layer
from jscale.launch.bench.rows.moe_layer import Case, everyone, inputs, run
from jscale.launch.commands import moe_bench
from jscale.models.dispatching import WAYS, Spread, choose
from jscale.models.measured import Class, measured
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.tiles.table import own, read, write

HERE = Device("cpu", "cpu")
TINY = Case(16, 8, 8, 8, 2, devices=8, dtype="float32")
SPREAD = Spread(("expert",), (8,), 2, 2, 8, 3 * 8 * 8 * 8)
WORDS = "--experts 8 --choices 2 --dim 8 --hidden 8 --tokens 16 --quick".split()


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("JSCALE_TILES", str(tmp_path))
    path = own("cpu")
    assert path is not None
    return path


def seconds_of(spread=SPREAD, room=None):
    with TINY.layout.active():
        return measured(spread, room, WAYS)


def test_a_run_prints_stages_and_writes_a_table(table, capsys):
    assert moe_bench.main([*WORDS, "--by", "local", "gather", "one_hot"]) == 0
    told = capsys.readouterr().out
    for word in ("router", "dispatch", "experts", "combine", "ragged_dot", f"kept in {table}"):
        assert word in told
    assert {by: s > 0 for by, s in (seconds_of() or {}).items()} == {"local": True, "gather": True}
    (row,) = read(table).values()
    assert row.measured["case"]["tokens"] == 16 and row.of["ways"] == "8"


def test_what_was_measured_is_of_this_machine_and_such_layers_alone(table):
    mine = Class.of(SPREAD, None, HERE)
    for other in (mine._replace(machine="abacus"), mine._replace(hosts=2), mine._replace(room="2")):
        write(table, "cpu", other.row({"local": 1.0}, {}))
    other_chip = own("NVIDIA H100")
    assert other_chip is not None
    write(other_chip, "NVIDIA H100", mine.row({"local": 1.0}, {}))
    assert seconds_of() is None
    write(table, "cpu", mine.row({"local": 2.0, "ragged": 1}, {}))
    assert seconds_of() == {"local": 2.0, "ragged": 1.0}
    assert seconds_of(room=2.0) == {"local": 1.0}
    assert seconds_of(SPREAD._replace(dim=9)) is None
    assert seconds_of(SPREAD._replace(weights=SPREAD.weights - 100)) == seconds_of()  # of a class
    picked = choose("cpu", SPREAD, None, seconds_of())
    assert picked.by == "ragged" and picked.reason.startswith("measured: ragged 1 s")


@pytest.mark.parametrize(
    "times, message",
    [
        ({"gathered": 1.0}, "names a way 'gathered'; did you mean 'gather'"),
        ({"gather": "fast"}, "'gather' must take a number of seconds, not 'fast'"),
        ({"gather": -1.0}, "must take a number of seconds, not -1.0"),
        ({}, "has no times: measure again with jscale moe bench"),
    ],
)
def test_a_broken_row_is_one_clear_error(table, times, message):
    write(table, "cpu", replace(Class.of(SPREAD, None, HERE).row({}, {}), tiles=times))
    with pytest.raises(ConfigError, match=message) as error:
        seconds_of()
    assert str(table) in str(error.value)


def test_a_broken_table_is_found_before_the_work(table):
    table.write_text("{")
    with pytest.raises(ConfigError, match=f"{table} cannot be read"):
        moe_bench.main(WORDS)
    with pytest.raises(ConfigError, match=f"{table} cannot be read"):
        seconds_of()


def test_a_wrong_way_gets_no_time_and_is_an_error_in_the_end(table, monkeypatch, capsys):
    """A room of a hundredth loses nearly all."""
    words = [*WORDS, "--by", "gather", "--room", "0.01"]
    with pytest.raises(NumericError, match="not right, and so not timed: 'gather'"):
        moe_bench.main(words)
    assert "result is off by" in capsys.readouterr().out and not table.exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "takes a RECIPE, or --experts N .*; --experts is missing"),
        (WORDS[2:], "--experts is missing"),
        (["quickstart", *WORDS], "--experts is for a layer without a recipe"),
        (["--experts", "0", *WORDS[2:]], "--experts must be at least 1, not 0"),
        ([*WORDS, "--by", "gathr"], "no way 'gathr' to dispatch; did you mean 'gather'"),
        (["--experts", "9", *WORDS[2:]], "16 tokens and 9 experts must divide over 8 device"),
        (["quickstart"], "quickstart has no layer of experts to measure"),
    ],
)
def test_wrong_words_are_named(table, words, message):
    with pytest.raises(ConfigError, match=message):
        moe_bench.main(words)


def test_layers_of_a_recipe_are_those_of_its_model():
    options = moe_bench.parser().parse_args(["qwen3_30b_a3b:twin"])
    (case,) = moe_bench.recipes_layers(options)
    spread = case.way("gather").spread
    assert spread.tokens * case.devices == case.tokens and case.experts == 8
    assert spread.weights == 3 * case.dim * case.hidden * case.experts


def test_every_expert_on_every_token_is_what_one_hot_products_give():
    """What large layers are held against is what small ones are."""
    case = replace(TINY, devices=1, tokens=12)
    given = inputs(case)

    def gradients(function):
        loss = lambda given: jnp.square(function(case)(**given)).sum()
        return jax.jit(jax.value_and_grad(loss))(given)

    one_hot = gradients(lambda case: run(case, "one_hot"))
    assert_close(gradients(everyone), one_hot, LAYOUT)
    assert moe_layer.too_large(replace(case, tokens=2**20)) and not moe_layer.too_large(case)


def test_a_layer_takes_what_was_measured(table):
    assert TINY.way("auto").picked == ("gather", "on CPU")
    mine = Class.of(TINY.way("auto").spread, None, HERE)
    write(table, "cpu", mine.row({"ragged": 1.0, "gather": 2.0}, {}))
    assert TINY.way("auto").picked == ("ragged", "measured: ragged 1 s, gather 2 s")
    assert TINY.way("local").picked.by == "local", "what is named is not picked"
