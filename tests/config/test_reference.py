"""The reference is what the types say; `python tests/config/test_reference.py` writes it anew."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import pytest

from jscale.config.reference import candidates, holdable, reference, row, section, sentences
from jscale.launch.cli import main
from jscale.recipe import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
BEGIN, END = "<!-- made by `jscale config --reference` -->\n", "<!-- end of it -->"


def committed(page: str) -> str:
    """What the page holds between its two marks."""
    return page.split(BEGIN)[1].split(END)[0]


def test_the_page_is_what_the_types_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--reference"]) == 0
    made = capsys.readouterr().out
    assert made == reference(Recipe)
    assert committed(PAGE.read_text(encoding="utf-8")) == made, "write it anew, as said above"


WANTED = """
    Recipe Llama TextData TextFiles StandardLibrary Texts JsonLines Parquet ArrayRecord HuggingFace
    Mixture Bytes BytePairs TokenizerFile Split Whole AdamW Lion SGD Adafactor Muon ScheduleFree
    Averaged Constant Cosine Linear WarmupStableDecay InverseSquareRoot NextToken MeshShape Rules
    Override Precision Guard Spike Checkpoints Evaluation MultipleChoice GreedyMatch Samples
    Sampling Logging Jsonl TensorBoard WandB
""".split()


def test_everything_that_a_recipe_can_hold_is_there() -> None:
    names = [kind.__name__ for kind in holdable(Recipe)]
    assert set(WANTED) <= set(names) and len(names) == len(set(names))
    for kind in holdable(Recipe):
        assert kind.__doc__, kind


def test_every_field_is_explained() -> None:
    rows = [line for line in reference(Recipe).splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    unsaid = [line for line in rows if line.endswith("|  |")]
    assert not unsaid


class Color(Protocol):
    """What has a hue."""

    def hue(self, at: int) -> float: ...


@dataclass(frozen=True)
class Red:
    """Red | green.

    level: how much of it,
        from <0> to 1

    Raises:
        ValueError: no
    """

    level: float
    mode: Literal["a", "b"] = "a"  # one | other

    def hue(self, at: int) -> float:
        return self.level


@dataclass(frozen=True)
class Palette:
    """Colours, with `names` for people. Not more."""

    colors: tuple[Color, ...] = (Red(0.5), Red(1.0, "b"))
    names: dict[str, int | None] = field(default_factory=dict)

    def hue(self, at: int) -> float:  # like a colour, and none
        return self.colors[0].hue(at)


def test_a_section_says_what_source_and_types_say() -> None:
    assert holdable(Palette) == [Palette, Color, Red] and candidates(Color) == [Red]
    text = section(Red)
    assert text.startswith(f"### Red\n\n`{__name__}`. Red \\| green.\n")
    assert "| `level` | float | required | how much of it, from \\<0> to 1 |" in text
    assert "| `mode` | `'a' or 'b'` | `'a'` | one \\| other |" in text
    assert "Raises" not in text and "One of [Red](#red)" in section(Color)
    text = section(Palette)
    default = "`(Red(level=0.5), Red(level=1.0, mode='b'))`"
    assert f"| `colors` | tuple of [Color](#color) | {default} |  |" in text
    assert "mapping of str to int or None | `{}` | Colours, with `names` for people. |" in text


def test_sentences() -> None:
    assert sentences("One. Two `a`. It (3.) x") == ["One.", "Two `a`.", "It (3.) x"]
    assert row(Red, Red.__dataclass_fields__["level"]).count("|") == 5


def write() -> None:
    """Write the reference into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + reference(Recipe) + END + after, encoding="utf-8")


if __name__ == "__main__":
    write()
