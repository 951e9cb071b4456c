"""Tables of tiles: asked before the rules, checked by them, and extended by the tuner."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jscale.errors import ConfigError
from jscale.launch.bench.measure import clock_of
from jscale.launch.bench.rows.attention import SUBJECT, Case
from jscale.launch.bench.tune import Target, targets, tune
from jscale.launch.cli import main
from jscale.pallas_kernels.attention import PLAIN, Places, attention, visits
from jscale.pallas_kernels.attention.tpu import flash
from jscale.pallas_kernels.attention.tpu_tiles import Tiles as Flat
from jscale.pallas_kernels.attention.triton import triton
from jscale.pallas_kernels.attention.triton_tiles import Tiles
from jscale.pallas_kernels.attention.tuned import TPU, TRITON, TUNABLES, XLA, Extent, Sizes
from jscale.pallas_kernels.attention.xla import blockwise
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.interpret import interpreted
from jscale.pallas_kernels.tiles.table import SHIPPED, Found, Row, file_name, own, read, write
from jscale.pallas_kernels.tiles.tunable import build, plain

KIND = "some chip"
EXTENT = Extent(300, 300, 64, 64, "float32")
OF = {"queries": 512, "keys": 512, "head": 64, "value": 64, "dtype": "float32"}
ROW = {
    "operation": "attention",
    "implementation": "xla",
    "of": OF,
    "tiles": {"queries": 64, "keys": 152},
}


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    """Where the user's own table of the chip would be."""
    monkeypatch.setenv("JSCALE_TILES", str(tmp_path))
    path = own(KIND)
    assert path is not None and path == tmp_path / "some-chip.json"
    return path


def test_a_users_own_table_is_in_the_home_and_no_test_reads_it(tmp_path, monkeypatch):
    before = own(KIND)
    assert before is not None and not before.exists() and read(before) == {}
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JSCALE_TILES")
    assert own(KIND) == tmp_path / ".cache/jscale/tiles/some-chip.json"


def test_a_table_goes_before_the_rule_for_all_of_its_class(table):
    rule = XLA.of(KIND, EXTENT)
    write(table, KIND, XLA.row(EXTENT, visits.Tiles(64, 152), {}))
    assert json.loads(table.read_text())["rows"] == [ROW | {"measured": {}}]
    assert XLA.of(KIND, EXTENT) == visits.Tiles(64, 152) != rule
    assert XLA.of(KIND, EXTENT._replace(queries=260)) == visits.Tiles(56, 152)
    assert XLA.of("another", EXTENT) == rule
    for other in (dict(queries=600), dict(head=65), dict(dtype="bfloat16")):
        extent = EXTENT._replace(**other)
        assert XLA.of(KIND, extent) == XLA.of("another", extent)
    write(table, KIND, XLA.row(EXTENT, visits.Tiles(32, 32), {}))  # in the place of the other
    assert len(read(table)) == 1 and XLA.of(KIND, EXTENT) == visits.Tiles(32, 32)


def test_attention_takes_the_tiles_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("JSCALE_TILES", str(tmp_path))
    x = jnp.ones((1, 200, 1, 8))
    path = own("cpu")
    assert path is not None
    write(path, "cpu", XLA.row(Extent(200, 200, 8, 8, "float32"), visits.Tiles(7, 8), {}))
    with pytest.raises(ConfigError, match=r"cpu.json, attention by 'xla': .* no multiples of 8"):
        attention(x, x, x, implementation="xla")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read"),
        ("[]", "list of 'rows'"),
        ('{"rows": 3}', "list of 'rows'"),
        ('{"rows": [3]}', "row 1 of the table .* must have just the fields"),
        (dict(ROW, more=1), "just the fields"),
        (dict(ROW, operation=3), "'operation' must be a word"),
        (dict(ROW, tiles=[64]), "'tiles' must be an object"),
        (dict(ROW, of=OF | {"head": None}), "'of.head' must be a whole number or a word"),
        (dict(ROW, of=OF | {"queries": 300}), "powers of two"),
        (dict(ROW, tiles={"queries": 64}), "tiles must have just the fields queries, keys"),
        (dict(ROW, tiles={"queries": 64, "keys": -8}), "keys must be a whole number above 0"),
        (dict(ROW, tiles={"queries": 64, "keys": True}), "keys must be a whole number above 0"),
        (dict(ROW, tiles={"queries": 64, "keys": 12}), "no multiples of 8"),
    ],
)
def test_what_is_no_table_is_named(table, text, message):
    table.write_text(text if isinstance(text, str) else json.dumps({"rows": [text]}))
    with pytest.raises(ConfigError, match=message) as error:
        XLA.of(KIND, EXTENT)
    assert str(table) in str(error.value)


def test_a_row_that_is_there_twice_is_named(table):
    table.write_text(json.dumps({"rows": [ROW, ROW]}))
    with pytest.raises(ConfigError, match="row 2 .* is there twice"):
        XLA.of(KIND, EXTENT)


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(tmp_path / "file" / "a.json", KIND, Row(**ROW))


def test_shipped_tables_hold_tiles_that_fit():
    known = {(t.operation, t.implementation): t for t in TUNABLES}
    for path in SHIPPED.glob("*.json"):
        kind = json.loads(path.read_text())["chip"]
        assert path.name == f"{file_name(kind)}.json"
        for row in read(path).values():
            tunable = known[row.operation, row.implementation]
            sizes: Any = row.of
            extent = Extent(**sizes)
            assert row == tunable.row(
                extent, tunable.checked(kind, extent, Found(row, path)), {**row.measured}
            )


CHIPS = {XLA: ("cpu",), TPU: ("TPU v4", "TPU v5", "TPU7x"), TRITON: ("NVIDIA H100", "NVIDIA B200")}


@pytest.mark.parametrize("tunable", TUNABLES, ids=lambda t: t.implementation)
@pytest.mark.parametrize("head", [40, 64, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rules_and_candidates_fit(tunable, head, dtype):
    extent = Extent(4096, 4096, head, head, dtype)
    for kind in CHIPS[tunable]:
        rule = tunable.rule(kind, extent)
        assert tunable.unfit(kind, extent, rule) is None
        assert build(tunable.form, plain(rule), "") == rule
        for group in range(len(tunable.groups)):
            tried = tunable.candidates(group, kind, extent, rule)
            assert all(tunable.unfit(kind, extent, x) is None for x in tried)
            cut = [tunable.cut(extent, x) for x in [rule, *tried]]
            assert len(set(cut)) == len(cut)


@pytest.mark.parametrize(
    "tunable, tiles, clause",
    [
        (TPU, Flat(2048, 2048), "bytes of vector memory"),
        (TPU, Flat(100, 128), "multiples of 128"),
        (TRITON, (256, 256, 4, 2), "numbers in a thread"),
        (TRITON, (64, 128, 16, 8), "KiB ahead"),
        (TRITON, (48, 64, 4, 2), "powers of two"),
        (TRITON, (64, 64, 32, 2), "16 warps"),
    ],
)
def test_what_does_not_fit_says_why(tunable, tiles, clause):
    tiles = tiles if isinstance(tiles, Flat) else Sizes(*[Tiles(*tiles)] * 3)
    extent = Extent(8192, 8192, 128, 128, "bfloat16")
    assert clause in tunable.unfit("NVIDIA H100", extent, tiles)


def cheapest(seconds):
    """A race by a price list."""
    return lambda ready: {tiles: seconds(tiles) for tiles in ready}


def test_the_tuner_takes_the_fastest_and_only_where_it_is_clear():
    case = Case(1, 64, 1, 1, 8, dtype="float32")
    (target,) = targets(SUBJECT, case, Device("cpu", KIND))
    clock = clock_of("cpu", quick=True)
    few = replace(XLA, groups=(lambda *_: [visits.Tiles(n, 32) for n in (16, 32)],))
    target = target._replace(tunable=few)
    prices = {16: 0.7, 32: 0.8}
    race = cheapest(lambda tiles: prices.get(tiles.queries, 1.0))
    row = tune(SUBJECT, case, target, KIND, clock, race=race)
    assert row.tiles == {"queries": 16, "keys": 32} and row.measured["ratio"] == 0.7
    assert row.of == {"queries": 64, "keys": 64, "head": 8, "value": 8, "dtype": "float32"}
    prices |= {16: 0.99, 32: 0.985}
    row = tune(SUBJECT, case, target, KIND, clock, race=race)
    assert row.tiles == plain(XLA.rule(KIND, target.extent)) and row.measured["ratio"] == 1


def test_the_tuner_passes_over_what_is_wrong_or_does_not_compile():
    case, told = Case(1, 64, 1, 1, 8, dtype="float32"), []

    def run(size):
        def one(q, k, v):
            if size.queries == 8:
                raise MemoryError("too many registers")
            found = blockwise(q, k, v, case.mask, PLAIN, Places(), size)[0]
            return found * 1.01 if size.queries == 16 else found

        return one

    few = replace(XLA, groups=(lambda *_: [visits.Tiles(n, 32) for n in (8, 16, 32)],))
    target = Target(few, Extent(64, 64, 8, 8, "float32"), run)
    race = cheapest(lambda tiles: tiles.queries / 1000)
    row = tune(SUBJECT, case, target, KIND, clock_of("cpu", True), told.append, race)
    assert row.tiles["queries"] == 32
    assert any("too many registers" in line for line in told)
    assert any("result is off by" in line for line in told)


def of(run, case):
    """A backend as a function of tiles."""
    return lambda size: lambda q, k, v: run(q, k, v, case.mask, PLAIN, Places(), size)[0]


def test_a_gpus_tiles_are_tuned_by_the_same_code():
    """Interpreted, and group by group: each beside the best so far."""
    case = Case(1, 32, 1, 1, 16, dtype="float32")
    slow, fast = Tiles(32, 32, 4, 2), Tiles(16, 16, 4, 2)
    groups = (
        lambda kind, extent, now: [now._replace(forward=fast)],
        lambda kind, extent, now: [now._replace(forward=slow, keys=fast)],
    )
    few = replace(TRITON, groups=groups)
    target = Target(few, Extent(32, 32, 16, 16, "float32"), of(triton, case))
    race = cheapest(lambda size: float(2 * size.forward.queries + size.keys.queries))
    with interpreted():
        row = tune(SUBJECT, case, target, "NVIDIA H100", clock_of("cpu", True), race=race)
    assert build(Sizes, row.tiles, "") == Sizes(fast, slow, slow)
    assert row.measured["ratio"] == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.slow
def test_a_tpus_tiles_are_tuned_by_the_same_code():
    case = Case(1, 136, 1, 1, 16, dtype="float32")
    few = replace(TPU, groups=(lambda *_: [Flat(128, 256)],))
    target = Target(few, Extent(136, 136, 16, 16, "float32"), of(flash, case))
    race = cheapest(lambda size: float(size.queries))
    with interpreted():
        row = tune(SUBJECT, case, target, "TPU v5", clock_of("cpu", True), race=race)
    assert row.tiles == {"queries": 128, "keys": 256}


def test_tuning_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "a.json"
    words = ["bench", "kernels", "attention", "--tune", "--quick", "--table", str(path)]
    assert main([*words, "--shapes", "rows=1,length=16,heads=1,kv_heads=1,head=8"]) == 0
    (row,) = read(path).values()
    assert row.of["queries"] == 16 and set(row.tiles) == {"queries", "keys"}
    assert "1 rows written" in capsys.readouterr().out
    path.write_text("{")
    assert main([*words, "--shapes", "length=40"]) == ConfigError.status
