"""Several sources in fixed proportions: at every moment each is within one row of its share.

Legend: n samples, K sources.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from jscale.data.source import Source
from jscale.errors import ConfigError

LONGEST = 1_000_000  # period of the schedule; finer weights are rounded to this


@dataclass(frozen=True)
class Mixture:
    """Sources with their weights in rows (hence, nearly, in tokens); weights need not sum to 1."""

    parts: tuple[tuple[Source, float], ...]  # each source with its weight

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("Mixture needs at least one part (source, weight)")
        for source, weight in self.parts:
            kind = type(source).__name__
            if not isinstance(source, Source):
                raise ConfigError(f"Mixture: {kind} is not a source; a part is (source, weight)")
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"Mixture: the weight {weight} of {kind} must be positive")
        shares = self.shares()
        if min(shares) == 0:
            lost = self.parts[shares.index(0)][1]
            raise ConfigError(f"Mixture: the weight {lost} is below a millionth of the whole")

    def shares(self) -> tuple[int, ...]:
        """The weights as whole numbers of rows in one period, exact up to a period of a million.

        >>> from jscale.data.files import Texts
        >>> Mixture(((Texts(("a",)), 0.7), (Texts(("b",)), 0.3))).shares()
        (7, 3)
        """
        exact = [Fraction(str(weight)) for _, weight in self.parts]  # 0.7 is meant as 7/10
        whole = math.lcm(*(weight.denominator for weight in exact))
        counts = [int(weight * whole) for weight in exact]
        counts = [count // math.gcd(*counts) for count in counts]
        if sum(counts) <= LONGEST:
            return tuple(counts)
        total = sum(exact)
        floors = [int(weight / total * LONGEST) for weight in exact]
        by_rest = sorted(range(len(exact)), key=lambda i: floors[i] - exact[i] / total * LONGEST)
        for i in by_rest[: LONGEST - sum(floors)]:
            floors[i] += 1
        return tuple(floors)


class Schedule:
    """Which source gives sample n, and which of its own samples that is: periodic, random access.

    Counts differ from share * n by less than 1 at every n (Tijdeman, "The chairman assignment
    problem", 1980: at most 1 - 1/(2K-2)).
    """

    def __init__(self, shares: tuple[int, ...]) -> None:
        """From positive whole numbers; the period is their sum."""
        self.shares = np.array(shares, np.int64)
        self.period = int(self.shares.sum())
        self._part = _tijdeman(shares)
        self._before = np.empty(self.period, np.int64)
        for part, share in enumerate(shares):
            self._before[self._part == part] = np.arange(share)

    def locate(
        self, samples: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """The source of each sample, and its number within that source."""
        turn, place = np.divmod(samples, self.period)
        part = self._part[place]
        return part, turn * self.shares[part] + self._before[place]


def _tijdeman(shares: tuple[int, ...]) -> Int64[np.ndarray, " period"]:
    """At each step, of the sources that may come now, the one whose time runs out first.

    With debt_i = share_i * n / period - count_i, a source may come when debt_i >= 1/(2K-2); its
    time runs out sooner, the smaller (1 - 1/(2K-2) - debt_i) / share_i. All kept in integers.
    """
    period, many = sum(shares), len(shares)
    if many == 1:
        return np.zeros(period, np.int64)
    scale = 2 * many - 2
    debts = [0] * many  # times period * scale
    out = np.empty(period, np.int64)
    for step in range(period):
        chosen, soonest, weight = -1, 0, 1  # time as the ratio soonest / weight
        for i, share in enumerate(shares):
            debts[i] += share * scale
            time = period * (scale - 1) - debts[i]
            if debts[i] >= period and (chosen < 0 or time * weight < soonest * share):
                chosen, soonest, weight = i, time, share
        assert chosen >= 0, "some source is always due"
        out[step] = chosen
        debts[chosen] -= period * scale
    return out
