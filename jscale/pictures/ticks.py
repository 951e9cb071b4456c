"""Where an axis has its marks, and how numbers are written beside them."""

import math
from collections.abc import Sequence

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about as many as wanted.

    >>> linear_ticks(0.0, 450.0), linear_ticks(0.13, 0.42)
    ([0.0, 100.0, 200.0, 300.0, 400.0], [0.15, 0.2, 0.25, 0.3, 0.35, 0.4])
    """
    if high <= low:
        return [low]
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((s * power for s in STEPS), key=lambda s: abs(math.log(s / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(k * step, digits) for k in range(first, last + 1)]


def log_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Powers of ten between two positive numbers; with 2 and 5 between them where they are few.

    >>> log_ticks(0.5, 20.0), log_ticks(1.0, 1e9)
    ([0.5, 1.0, 2.0, 5.0, 10.0, 20.0], [1.0, 100.0, 10000.0, 1000000.0, 100000000.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    inside = lambda t: low * (1 - 1e-9) <= t <= high * (1 + 1e-9)
    powers = [10.0**k for k in range(first, last + 1)]
    if last - first > wanted:
        powers = powers[:: math.ceil((last - first) / wanted)]
    elif last - first <= 3:
        powers = [float(f"{m * p:.1g}") for p in powers for m in (1.0, 2.0, 5.0)]
    found = [p for p in powers if inside(p)]
    return found if len(found) > 1 else linear_ticks(low, high, wanted)


def labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, alike in form and with as many digits as tell them apart.

    >>> labels([0.0, 0.5, 1.0]), labels([0.0, 10000.0, 20000.0]), labels([0.0001, 0.0002])
    (['0', '0.5', '1'], ['0', '10k', '20k'], ['1e-4', '2e-4'])
    """
    top = max((abs(t) for t in ticks), default=0.0)
    if top and (top < 1e-3 or top >= 1e15):
        return [scientific(t) for t in ticks]
    unit, letter = next(((u, x) for u, x in UNITS if top >= max(u, 1e4)), (1.0, ""))
    if any(0 < abs(t) < unit / 1e3 for t in ticks):  # decades: each in its own unit
        return [short(t) for t in ticks]
    return [f"{plain(t / unit)}{letter if t else ''}" for t in ticks]


def plain(value: float) -> str:
    """A number of everyday size in its fewest digits, up to six that count."""
    text = f"{value:.6g}"
    return "0" if text == "-0" else text


def scientific(value: float) -> str:
    """`3e-4`, without the zeros of a computer's exponents."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def short(value: float) -> str:
    """One number by itself, with a letter for its thousands.

    >>> short(1e9), short(2000.0), short(0.05), short(0.00002)
    ('1B', '2k', '0.05', '2e-5')
    """
    if value and abs(value) < 1e-3:
        return scientific(value)
    unit, letter = next(((u, x) for u, x in UNITS if abs(value) >= u), (1.0, ""))
    return f"{plain(value / unit)}{letter}"
