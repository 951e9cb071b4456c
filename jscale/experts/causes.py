"""Why a layer's experts are used as they are, as far as counts and recipe tell, and what to change.

Each rule looks at one layer; the first that applies is told. A fix is an override of the recipe, or
several, that can be pasted after `jscale train RECIPE`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jscale.experts.figures import Figures
from jscale.experts.setting import Setting

STEER = 0.001  # of Wang et al. 2024, arXiv 2408.15664, and of DeepSeek-V3
WEIGHT = 0.001  # of balance over the whole batch: Qiu et al. 2025, arXiv 2501.11873
Z = 0.001  # of Zoph et al. 2022, arXiv 2202.08906
STRONGEST = 0.1  # a balance loss of more weighs as much as the loss that is to be learned
CERTAIN = 20.0  # a score: e^20 to 1, so that others get no gradient in float32
MARGIN = 8.0  # of the best score over the second, in the mean: e^8 to 1, 3,000 times as probable
SPENT = 0.8  # of the way that corrections can have gone in so many steps
FULL = 0.9  # of 1, the most by which sigmoids and softmaxes of scores differ
FASTER = 10.0
QUARTER = 4  # suggested room and capacity are multiples of a quarter


class Advice(NamedTuple):
    """The likely cause in a sentence, and the overrides that may cure it ("": none is known)."""

    cause: str
    fix: str

    @property
    def about(self) -> str:
        """The fields that it changes; the cause where there are none."""
        return " ".join(f.partition("=")[0] for f in self.fix.split()) or self.cause

    @property
    def size(self) -> float:
        """The number that it would set first, or 0."""
        try:
            return float(self.fix.partition("=")[2].partition(" ")[0])
        except ValueError:
            return 0.0


class Case(NamedTuple):
    """What rules look at: a layer's figures now, its recipe, how many steps it was trained.

    `busiest` is the largest load that a device had, over the mean of those that share the experts.
    """

    figures: Figures
    setting: Setting
    steps: int
    busiest: float = 1.0


Cause = Callable[[Case], Advice]
Rule = Callable[[Case], Advice | None]


def of_uneven_use(case: Case) -> Advice:
    """Why experts are used unevenly."""
    return next((found for rule in RULES if (found := rule(case))), UNKNOWN)


UNKNOWN = Advice("no setting stands out: look at the data, or try a lower optimizer.peak", "")


def _unlearned(case: Case) -> Advice | None:
    if case.setting.choice not in ("Forced", "Hash"):
        return None
    return Advice(
        f"{case.setting.choice} chooses without a router: this is as it was asked for", ""
    )


def _stays(case: Case) -> Advice | None:
    """Corrections that no step moves, where nothing else asks for even use."""
    asked = case.setting.of("balance", "steer", None)
    if case.figures.correction is None or asked != 0:
        return None
    return Advice(
        "corrections stay as they are (balance.steer=0)",
        case.setting.override("balance.steer", STEER),
    )


def _unasked(case: Case) -> Advice | None:
    if case.figures.correction is not None or case.setting.of("balance", "weight", None) != 0:
        return None
    fixes = [("balance.weight", WEIGHT), ("balance.scope", "global")]
    return Advice(
        "nothing asks for even use (balance.weight=0 and no correction)",
        " ".join(case.setting.override(*fix) for fix in fixes),
    )


def _certain(case: Case) -> Advice | None:
    f, z = case.figures, case.setting.of("balance", "z", None)
    if z is None or z >= Z or (f.highest < CERTAIN and not f.margin >= MARGIN):
        return None
    return Advice(
        f"the router's scores have grown (to {f.highest:.3g}, the best {f.margin:.3g} above the"
        " second in the mean), so that others hardly learn",
        case.setting.override("balance.z", Z),
    )


def _other_choices(case: Case) -> Advice | None:
    if case.setting.of("balance", "counted", None) != "likeliest" or not case.figures.correction:
        return None
    return Advice(
        "the balance loss counts the likeliest experts, not those that corrections choose",
        case.setting.override("balance.counted", "chosen"),
    )


def _full(case: Case) -> Advice | None:
    """Corrections as large as what they are added to can differ."""
    span = case.figures.correction
    steer = case.setting.of("balance", "steer", None)
    if span is None or not steer or span[1] - span[0] < FULL:
        return None
    if case.setting.of("choice", "weights", None) not in ("sigmoid", "softmax"):
        return None
    return Advice(
        f"corrections have come {span[1] - span[0]:.2g} apart, and what they are added to differs"
        " by 1 at most: they alone choose now",
        case.setting.override("balance.steer", f"{steer / FASTER:g}"),
    )


def _slow(case: Case) -> Advice | None:
    """Corrections that have gone nearly as far as so many steps let them."""
    span, steer = case.figures.correction, case.setting.of("balance", "steer", None)
    if span is None or not steer or not case.steps:
        return None
    furthest = max(-span[0], span[1])
    if furthest < SPENT * steer * case.steps:
        return None
    return Advice(
        f"corrections have moved by {furthest:.2g} in {case.steps:,} steps, as fast as"
        f" balance.steer={steer:g} lets them, and are not there yet: go on, or move them faster",
        case.setting.override("balance.steer", f"{steer * FASTER:g}"),
    )


def _narrow(case: Case) -> Advice | None:
    scope, weight = (case.setting.of("balance", name, None) for name in ("scope", "weight"))
    if scope not in ("microbatch", "sequence") or not weight:
        return None
    within = {"microbatch": "each microbatch", "sequence": "each row"}[scope]
    return Advice(
        f"even use is asked within {within} (balance.scope={scope}), which packed rows of one kind"
        " cannot give: those few tokens need few experts",
        case.setting.override("balance.scope", "global"),
    )


def _weak(case: Case) -> Advice | None:
    weight = case.setting.of("balance", "weight", None)
    if not weight or weight * FASTER > STRONGEST:
        return None
    return Advice(
        f"the balance loss is too weak for these data (balance.weight={weight:g})",
        case.setting.override("balance.weight", f"{weight * FASTER:g}"),
    )


RULES: Sequence[Rule] = (
    _unlearned,
    _stays,
    _unasked,
    _certain,
    _other_choices,
    _full,
    _slow,
    _narrow,
    _weak,
)


def of_drops(case: Case) -> Advice:
    """Why choices find no slot: experts take so many, and are chosen more often."""
    setting, most = case.setting, case.figures.most
    share = f"the busiest expert is chosen {most:.3g} times as often as the mean"
    factor = setting.of("choice", "training", "factor", None)
    if factor is not None:
        cause = f"experts have slots for {factor:g} of an even share, and {share}"
        return Advice(cause, setting.override("choice.training.factor", upwards(most, factor)))
    fraction = setting.of("choice", "training", "fraction", None)
    if fraction is not None:
        cause = f"an expert takes {fraction:g} of a group's tokens, and {share}"
        return Advice(cause, setting.override("choice.training", None))
    kept = setting.of("choice", "most", None)
    if isinstance(kept, int):
        cause = f"more than choice.most={kept} experts take the same token"
        return Advice(
            cause, setting.override("choice.most", min(2 * kept, setting.count or 2 * kept))
        )
    return Advice(share, "")


def of_overflow(case: Case) -> Advice:
    """Why choices found no room on their device, where so many even shares came to one."""
    room = case.setting.of("dispatch", "room", None)
    if room is None:
        return Advice("devices have too little room for what comes to them", "")
    cause = f"devices have room for {room:g} even shares (dispatch.room), and more came to one"
    return Advice(cause, case.setting.override("dispatch.room", upwards(case.busiest, room)))


def upwards(needed: float, at_least: float = 0.0) -> str:
    """The next quarter from `needed`, above `at_least`.

    >>> upwards(1.3), upwards(1.3, at_least=1.5)
    ('1.5', '1.75')
    """
    above = math.floor(at_least * QUARTER + 1) / QUARTER
    return f"{max(math.ceil(needed * QUARTER) / QUARTER, above):g}"
