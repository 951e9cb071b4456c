"""Settings are shown so that one can read them, and whole where a program does."""

import io
import re

import pytest

from jscale.config.show import short, show_settings
from jscale.config.why import Setting

VERSES = tuple(f"{n} green bottles hanging on the wall" for n in range(40))
SETTINGS = [
    Setting("name", "tiny", "set at a.py:1"),
    Setting("data.source.texts", VERSES, "set at a.py:2"),
    Setting("data.length", 32, "default of TextData"),
]


class File(io.TextIOWrapper):
    """What is written to it can be read again."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    @property
    def mode(self) -> str:
        """As a file that was opened has it."""
        return "w+"

    @property
    def name(self) -> str:
        """As a file that was opened has it."""
        return "file"


class Terminal(File):
    """What is written to it is seen by a person."""

    def isatty(self) -> bool:
        return True


def shown(file: File, full: bool = False) -> list[str]:
    show_settings(SETTINGS, file, full)
    file.seek(0)
    return re.sub(r"\x1b\[[\d;]*m", "", file.read()).splitlines()


def test_one_long_value_does_not_push_the_others_away() -> None:
    name, texts, length = shown(File())
    assert name == "name = 'tiny'     set at a.py:1"
    assert length == "data.length = 32  default of TextData"
    assert texts == f"data.source.texts = {VERSES!r}  set at a.py:2"


@pytest.mark.parametrize("width", ["80", "200"])
def test_a_terminal_is_shown_the_beginning(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    lines = shown(Terminal())
    assert 3 <= len(lines) <= 6 and all(len(line) <= int(width) for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "0 green bottles" in text and "40 in all" in text and "39 green" not in text
    assert text.count("set at a.py") == 2


def test_a_terminal_is_shown_all_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = "".join("".join(shown(Terminal(), full=True)).split())
    assert all("".join(verse.split()) in text for verse in VERSES)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e-4, "0.0001"),
        ((0.9, 0.95), "(0.9, 0.95)"),
        ("x" * 80, "'" + "x" * 46 + "…"),
        (("x" * 80,), "('" + "x" * 45 + "…"),
        (("y" * 80, "z"), "('" + "y" * 46 + "…, … 2 in all)"),
        (tuple(range(100)), "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, … 100 in all)"),
    ],
)
def test_short(value: object, said: str) -> None:
    assert short(value) == said
