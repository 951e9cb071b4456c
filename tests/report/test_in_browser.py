"""The page as a browser shows it: its numbers, no requests, room on a phone and on paper."""

import re
from pathlib import Path

import pytest
from report.browser import Browser
from report.runs import line, write_run
from report.test_report import EVIL
from run.tiny import written

from jscale.launch.cli import main
from jscale.report import report

WIDTHS = (375, 700, 1200)


@pytest.fixture(scope="module")
def pages(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page."""
    folder = tmp_path_factory.mktemp("pages")
    lines = [
        {"step": 1, "time": 1.0, "values": {"train/loss": 1.0, EVIL: 2.0}},
        {"step": 2, "time": 2.0, "values": {"train/loss": "NaN", EVIL: 3.0}},
        {"step": 2, "time": 2.0, "text": {f"sample/{EVIL}": EVIL + "x" * 3000}},
    ]
    evil = write_run(folder / "evil", lines, recipe={"name": EVIL + "n" * 300, "steps": 5})
    once = write_run(folder / "once", [line(1, train_loss=1.0)])
    mesh = ["mesh=MeshShape(data=4,fsdp=8,tensor=2)", "--devices", "64"]
    layout = folder / "layout.html"
    assert main(["explain", "llama_8b", *mesh, "--html", str(layout)]) == 0
    return {
        "one": report([trained / "one"], folder / "one.html"),
        "two": report([trained / "one", trained / "two"], folder / "two.html"),
        "once": report([once]),
        "evil": report([evil]),
        "layout": layout,
    }


NAMES = ("one", "two", "once", "evil", "layout")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_for_and_nothing_goes_wrong(
    name: str, pages: dict[str, Path], chromium: Browser
) -> None:
    chromium.open(pages[name], 1200)
    assert chromium.evaluate("document.querySelectorAll('h2').length") > 1
    assert chromium.requests == [] and chromium.complaints == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_no_page_is_wider_than_its_window(
    name: str, width: int, pages: dict[str, Path], chromium: Browser
) -> None:
    chromium.open(pages[name], width)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    chromium.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", NAMES)
def test_letters_on_a_phone_can_be_read(
    name: str, pages: dict[str, Path], chromium: Browser
) -> None:
    chromium.open(pages[name], 375)
    sizes = chromium.evaluate(
        "[...document.querySelectorAll('.charts svg, .hero svg, .placed svg')]"
        ".filter(s => s.getBoundingClientRect().width > 0)"
        ".map(s => 11 * s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
    )
    assert sizes and min(sizes) >= 9.5


def test_numbers_in_the_page_are_those_of_the_file(
    trained: Path, pages: dict[str, Path], chromium: Browser
) -> None:
    chromium.open(pages["one"], 1200)
    loss = written(trained / "one", "train/loss")
    code = "JSON.parse(document.getElementById('data').textContent).runs[0].series['train/loss']"
    found = chromium.evaluate(code)
    assert list(zip(found["step"], found["value"], strict=True)) == loss
    shown = chromium.evaluate("[...document.querySelectorAll('data')].map(d => d.value)")
    assert repr(loss[-1][1]) in shown
    words = chromium.evaluate("document.querySelector('.tiles data').textContent")
    assert words == f"{loss[-1][1]:.5g}"


def test_points_are_drawn_where_their_numbers_are(
    trained: Path, pages: dict[str, Path], chromium: Browser
) -> None:
    chromium.open(pages["one"], 1200)
    frame = chromium.evaluate("document.querySelector('.large [data-frame]').dataset.frame")
    left, _, right, _, first, last = map(float, frame.split())
    path = chromium.evaluate(
        "document.querySelector('.hero .large [data-series=training] path').getAttribute('d')"
    )
    x = [float(pair.split()[0]) for pair in re.split("[ML]", path)[1:]]
    steps = [step for step, _ in written(trained / "one", "train/loss")]
    assert x == pytest.approx(
        [left + (s - first) / (last - first) * (right - left) for s in steps], abs=0.051
    )


def test_values_can_be_read_off_a_curve(
    trained: Path, pages: dict[str, Path], chromium: Browser
) -> None:
    chromium.open(pages["one"], 1200)
    box = chromium.evaluate(
        "(() => { const b = document.querySelector('.hero .large svg').getBoundingClientRect();"
        " return [b.right, b.top, b.height] })()"
    )
    where = {"x": box[0] - 12, "y": box[1] + box[2] / 2}
    chromium.ask("Input.dispatchMouseEvent", type="mouseMoved", **where)
    text = chromium.evaluate("document.querySelector('.readout:not([hidden])').innerText")
    value = written(trained / "one", "train/loss")[-1][1]
    assert "step 12" in text and re.search(rf"training\s+{float(f'{value:.5g}')}", text), text
    chromium.ask("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert chromium.evaluate("document.querySelectorAll('.readout:not([hidden])').length") == 0
    chromium.evaluate("document.querySelector('figure').focus()")
    chromium.ask("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    text = chromium.evaluate("document.querySelector('.readout:not([hidden])').innerText")
    assert "step 1" in text


def test_the_axis_can_be_chosen(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages["two"], 1200)
    seen = (
        "[...new Set([...document.querySelectorAll('[data-x]')]"
        ".filter(d => d.getBoundingClientRect().height > 0).map(d => d.dataset.x))]"
    )
    assert chromium.evaluate(seen) == ["step"]
    for kind in ("tokens", "seconds", "step"):
        chromium.evaluate(f"document.querySelector('.choice button[value={kind}]').click()")
        assert chromium.evaluate(seen) == [kind]


def test_without_a_script_steps_are_shown(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(pages["one"], 1200)
        found = chromium.ask("DOM.getDocument")["root"]["nodeId"]
        shown = chromium.ask(
            "DOM.querySelectorAll", nodeId=found, selector="[data-x=step]:not([hidden]) svg"
        )
        others = chromium.ask(
            "DOM.querySelectorAll",
            nodeId=found,
            selector="[data-x]:not([data-x=step]):not([hidden])",
        )
        assert shown["nodeIds"] and not others["nodeIds"]
    finally:
        chromium.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_light_and_dark_have_contrast(pages: dict[str, Path], chromium: Browser) -> None:
    papers = []
    for scheme in ("light", "dark"):
        chromium.open(pages["one"], 1200, scheme=scheme)
        colours = chromium.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.body).color,"
            " getComputedStyle(document.querySelector('.note')).color,"
            " getComputedStyle(document.querySelector('.picture text')).fill]"
        )
        paper, *inks = (luminance(colour) for colour in colours)
        papers.append(paper)
        for ink in inks:
            assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5, colours
    assert papers[0] > 0.9 and papers[1] < 0.05


def luminance(colour: str) -> float:
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", NAMES)
def test_it_prints(name: str, pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages[name], 1200)
    pdf = chromium.pdf()
    assert pdf.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) < 30


def test_what_is_hostile_stays_text(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages["evil"], 1200)
    assert chromium.evaluate("document.querySelectorAll('img').length") == 0
    assert chromium.evaluate("document.scripts.length") == 2
    assert "alert(1)" in chromium.evaluate("document.body.innerText")


def test_the_policy_stops_what_should_get_into_a_page(
    pages: dict[str, Path], tmp_path: Path, chromium: Browser
) -> None:
    intruder = "<script>document.title = 'taken'</script><img src='http://jscale.invalid/a.png'>"
    text = pages["one"].read_text(encoding="utf-8").replace("</body>", f"{intruder}</body>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    chromium.open(tmp_path / "page.html", 1200)
    assert chromium.evaluate("document.title") == "tiny"
    said = " ".join(chromium.complaints)
    assert "script-src" in said and "img-src" in said or "default-src" in said, said
