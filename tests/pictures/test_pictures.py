"""Pictures show what is there: every spike and gap, every device, every block; and nothing runs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jscale
from jscale.errors import ConfigError
from jscale.mesh import Layout, MeshShape, abstract_mesh, make_mesh
from jscale.pictures import Axis, Chart, LivePlot, Picture, Series, draw
from jscale.pictures.blocks import blocks_of_array
from jscale.pictures.chart import POINTS, seconds_axis
from jscale.run.events import Evaluated, Noted, Saved, Stepped

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """What a reader reads, element by element; the SVG must be sound XML."""
    return [t for e in ElementTree.fromstring(svg).iter() for t in (e.text,) if t and t.strip()]


def paths(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [e.get("d", "") for e in root.iter(f"{SVG}path") if "line" in e.get("class", "")]


def circles(svg: str) -> int:
    return len(list(ElementTree.fromstring(svg).iter(f"{SVG}circle")))


def test_one_point_is_a_dot() -> None:
    svg = Chart("loss", [Series("train", [5], [2.0])]).svg()
    assert circles(svg) == 1
    assert "train: 1 value(s), step 5 to 5, smallest 2, largest 2, last 2" in texts(svg)


def test_no_curve_and_no_finite_value_are_said() -> None:
    assert "no values" in texts(Chart("loss", []).svg())
    svg = Chart("loss", [Series("train", [1, 2], [np.nan, np.inf])]).svg()
    assert "no values" in texts(svg) and "train: no finite value" in texts(svg)


def test_a_long_curve_keeps_its_spikes_and_gaps_and_stays_small() -> None:
    y = np.random.default_rng(0).normal(size=100_000)
    y[777], y[50_000], y[99_998] = 55.0, np.nan, -44.0
    svg = Chart("loss", [Series("train", np.arange(100_000), y)]).svg()
    assert len(svg) < 40_000
    assert svg.count("not finite</title>") == 1
    assert "smallest -44, largest 55" in svg and "1 not finite" in svg
    (path,) = (d for d in paths(svg) if len(d) > 100)
    assert path.count("M") == 2, "the gap breaks the line"
    frame = Chart("loss", [Series("train", np.arange(100_000), y)]).frame
    assert f" {frame.y_at(55.0):.1f}".removesuffix(".0") in path and path.count("L") < 1.2 * POINTS


def test_points_are_where_the_axes_say() -> None:
    chart = Chart("loss", [Series("train", [0, 10, 20], [1.0, 3.0, 2.0])], y=Axis("nats"))
    root = ElementTree.fromstring(chart.svg())
    dots = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]
    frame = chart.frame
    assert [x for x, _ in dots] == pytest.approx(
        [frame.left, (frame.left + frame.right) / 2, frame.right], abs=0.051
    )
    (_, low), (_, high), (_, middle) = dots
    assert middle == pytest.approx((low + high) / 2, abs=0.051) and high < low


@pytest.mark.parametrize(
    "values, scale, logarithmic",
    [
        ([1.0, 2.0], "auto", False),
        ([1.0, 200.0], "auto", True),
        ([0.0, 200.0], "auto", False),
        ([0.0, 200.0], "log", False),
        ([1.0, 2.0], "log", True),
        ([1.0, 2e5], "linear", False),
        ([3.0, 3.0], "log", True),
    ],
)
def test_the_scale(values: list[float], scale: Any, logarithmic: bool) -> None:
    chart = Chart("x", [Series("a", [1, 2], values)], scale=scale)
    assert chart.logarithmic is logarithmic
    ElementTree.fromstring(chart.svg())


def test_names_cannot_become_markup() -> None:
    bad = "</svg><script>alert(1)</script>\x00"
    svg = Chart(bad, [Series(bad, [1], [1.0]), Series("b", [1], [2.0])], x=Axis(bad)).svg()
    assert not list(ElementTree.fromstring(svg).iter(f"{SVG}script"))
    assert "<script" not in svg


def test_curves_of_unequal_length_are_refused() -> None:
    with pytest.raises(ConfigError, match="'train' has 1 places and 2 values"):
        Series("train", [1], [1.0, 2.0])


def test_many_curves_have_many_names() -> None:
    curves = [Series(f"a rather long name {i}", [1, 2], [i, i + 1]) for i in range(12)]
    svg = Chart("loss", curves, width=300, height=260).svg()
    assert {f"a rather long name {i}" for i in range(12)} <= set(texts(svg))


@pytest.mark.parametrize("longest, title", [(20.0, "seconds"), (600.0, "minutes"), (1e6, "days")])
def test_time_has_a_fitting_unit(longest: float, title: str) -> None:
    assert seconds_axis(longest).title == title


def test_a_mesh_shows_every_device_at_its_place() -> None:
    picture = draw(make_mesh(data=2, fsdp=4))
    seen = texts(picture.alone())
    assert [t for t in seen if t.isdigit()] == [str(d.id) for d in jax.devices()]
    assert {"mesh data=2 fsdp=4", "data = 2", "fsdp = 4"} <= set(seen)


@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(),
        MeshShape(fsdp=64),
        MeshShape(stage=2, data=2, fsdp=2, tensor=2),
        MeshShape(stage=2, data=2, fsdp=2, expert=2, context=2, tensor=2),
        MeshShape(fsdp=37),
    ],
)
def test_every_shape_of_mesh_is_drawn(shape: MeshShape) -> None:
    for mesh in (shape, abstract_mesh(shape)):
        seen = [t for t in texts(draw(mesh).alone()) if t.isdigit()]
        assert sorted(map(int, seen)) == list(range(shape.devices))


def test_of_a_huge_mesh_a_part_is_drawn_and_told() -> None:
    svg = draw(MeshShape(data=64, fsdp=32, tensor=2)).alone()
    assert "drawn: 1 of 64 along data" in texts(svg) and len(svg) < 200_000


@pytest.mark.parametrize(
    "spec",
    [
        ("fsdp", None),
        (None, "fsdp"),
        ("data", "fsdp"),
        (("data", "fsdp"),),
        (("fsdp", "data"),),
        (),
    ],
    ids=str,
)
def test_blocks_are_those_of_the_array(spec: tuple) -> None:
    mesh = make_mesh(data=2, fsdp=4)
    array = jax.device_put(jnp.zeros((16, 32)), NamedSharding(mesh, PartitionSpec(*spec)))
    blocks = blocks_of_array(array)
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        (block,) = (b for b, held in blocks.holders.items() if device.id in held)
        part = array.sharding.shard_shape(array.shape)
        assert tuple((s.start or 0) // n for s, n in zip(index, part, strict=True)) == block
    svg = draw(array).alone()
    assert svg.count('class="cell') == 8 + len(blocks.holders)
    assert ("whole on every device" in svg) is (not spec)


@pytest.mark.parametrize("array", [jnp.float32(2), jnp.zeros(5), jnp.zeros((2, 3, 4))], ids=str)
def test_an_array_on_one_device_is_whole(array: jax.Array) -> None:
    assert draw(array).description == "whole on the one device"


def test_three_split_dimensions_become_copies() -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    where = NamedSharding(mesh, PartitionSpec("data", "fsdp", "tensor"))
    svg = draw(jax.device_put(jnp.zeros((4, 16, 32)), where)).alone()
    assert {"dimension 0 (4) part 1", "dimension 0 (4) part 2"} <= set(texts(svg))


def test_a_layout_shows_its_rules() -> None:
    picture = draw(Layout(make_mesh(data=2, fsdp=4)))
    assert "weights: embed over fsdp=4" in picture.description
    assert "activations: batch over data=2, fsdp=4" in picture.description


@pytest.mark.parametrize("thing", [3, "mesh", {"a": jnp.zeros(2)}, np.zeros(3), None], ids=str)
def test_what_cannot_be_drawn_is_refused(thing: Any) -> None:
    with pytest.raises(ConfigError, match="draw takes a mesh, a layout, or an array"):
        draw(thing)


def test_saving(tmp_path: Path) -> None:
    path = jscale.draw(MeshShape(fsdp=2)).save(tmp_path / "mesh.svg")
    assert "fsdp = 2" in texts(path.read_text(encoding="utf-8"))
    with pytest.raises(ConfigError, match="ends in .svg"):
        draw(MeshShape()).save(tmp_path / "mesh.png")
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        draw(MeshShape()).save(tmp_path / "nowhere" / "mesh.svg")


def test_nothing_in_a_picture_reaches_out() -> None:
    for picture in (
        draw(Layout(make_mesh(fsdp=8))),
        Chart("a", [Series("b", [1], [1.0])]).picture(),
    ):
        assert isinstance(picture, Picture)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", picture.alone())


def test_a_live_plot_takes_numbers_and_is_silent_outside_of_notebooks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plot = jscale.LivePlot(("loss", "mfu"), clock=iter(range(100)).__next__)
    for step in (1, 2, 3):
        plot(Stepped(step, {"loss": 4.0 - step, "mfu": 0.5, "other": 1.0}))
    plot(Evaluated(3, {"loss": 2.5}))
    plot(Noted("hello"))
    plot(Saved(3, Path("3")))
    found = {s.name: (list(s.x), list(s.y)) for s in plot.chart().series}
    assert found == {
        "train loss": ([1, 2, 3], [3.0, 2.0, 1.0]),
        "train mfu": ([1, 2, 3], [0.5] * 3),
        "held out loss": ([3], [2.5]),
    }
    assert capsys.readouterr().out == ""


def test_a_live_plot_does_not_redraw_too_often() -> None:
    class Counting(LivePlot):
        drawn = 0

        def redraw(self) -> None:
            self.drawn += 1
            super().redraw()

    now = [0.0]
    plot = Counting(seconds=1.0, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] += 0.1
        plot(Stepped(step, {"loss": 1.0}))
    assert 9 <= plot.drawn <= 11
    plot(Saved(100, Path("100")))
    assert 10 <= plot.drawn <= 12, "the end of a run is drawn in any case"


NOTEBOOK = """
from pathlib import Path
from jscale.pictures import LivePlot, draw
from jscale.mesh import MeshShape
from jscale.run.events import Saved, Stepped
plot = LivePlot(seconds=1000.0)
for step in range(1, 21):
    plot(Stepped(step, {"loss": 1.0 / step}))
plot(Saved(20, Path("20")))
draw(MeshShape(fsdp=4))
"""


def test_a_notebook_shows_the_curves_once_and_as_they_are_in_the_end(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    curves, mesh = (output["data"] for output in book.cells[0]["outputs"])
    assert "loss: 20 value(s), step 1 to 20" in curves["image/svg+xml"]
    assert "fsdp = 4" in mesh["text/html"]


def test_pictures_start_no_notebook() -> None:
    code = (
        "import sys; from jscale.pictures import LivePlot; from jscale.run.events import *;"
        "LivePlot()(Stepped(1, {'loss': 1.0})); assert 'ipykernel' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
