"""Numbers as a person reads them, in characters that every terminal has."""

import math
import re
from collections.abc import Mapping

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def count(value: float | int) -> str:
    """A number to three figures with a letter for its thousands.

    >>> [count(x) for x in (7, 1234, 56_789, 1.5e6, 2e9, 3e12, float("nan"))]
    ['7', '1.23k', '56.8k', '1.5M', '2B', '3T', 'nan']
    """
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if math.isfinite(value) and abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def size(count: float | int) -> str:
    """Bytes in decimal units.

    >>> [size(x) for x in (999, 1.5e6, 2e9)]
    ['999 B', '1.5 MB', '2.0 GB']
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


def duration(seconds: float | int) -> str:
    """Seconds in the two units that matter.

    >>> [duration(x) for x in (0.0123, 12.34, 75, 3725, 200_000)]
    ['12.3 ms', '12.3 s', '1 min 15 s', '1 h 2 min', '2 d 7 h']
    """
    if not math.isfinite(seconds):
        return f"{seconds} s"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, part, part_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {part_name}"
    raise AssertionError(seconds)


def figure(name: str, value: float | int) -> str:
    """A named number; the ending of the name tells its unit.

    >>> figure("train/loss", 2.34567), figure("tokens_per_second", 12345.0), figure("mfu", 0.412)
    ('loss 2.346', '12.3k tokens/s', 'MFU 41.2%')
    >>> figure("eta_seconds", 75.0), figure("learning_rate", 0.0003)
    ('ETA 1 min 15 s', 'learning rate 0.0003')
    """
    short = name.rpartition("/")[2]
    if short == "mfu":
        return f"MFU {100 * value:.1f}%"
    if short == "eta_seconds":
        return f"ETA {duration(value)}"
    if short.endswith("_per_second"):
        return f"{count(value)} {short.removesuffix('_per_second').replace('_', ' ')}/s"
    if short.endswith("_seconds"):
        return f"{short.removesuffix('_seconds').replace('_', ' ')} {duration(value)}"
    return f"{short.replace('_', ' ')} {value:.4g}"


def figures(values: Mapping[str, float | int]) -> str:
    """Named numbers in a row, in their order."""
    return "  ".join(figure(name, value) for name, value in values.items())


def printable(text: str, encoding: str | None) -> str:
    """The text with everything replaced that the encoding cannot say or that steers a terminal.

    >>> printable("naïve", "ascii"), printable("\\x1b[2J", "utf-8")
    ('na?ve', '?[2J')
    """
    text = CONTROLS.sub("?", text)
    encoding = encoding or "ascii"
    return text.encode(encoding, "replace").decode(encoding, "replace")
