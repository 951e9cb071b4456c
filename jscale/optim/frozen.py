"""Some weights stay as they are, beside any optimizer."""

from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import PyTree

from jscale.errors import ConfigError
from jscale.optim import checks
from jscale.optim.optimizer import Optimizer


@dataclass(frozen=True)
class Frozen:
    """The optimizer `of` for all weights but these, which have no gradient and no moments.

    Names are as `jscale explain` shows them; `*` stands for anything, as in `*/router/*`.
    """

    of: Optimizer  # of all others
    weights: tuple[str, ...]  # patterns of the names of those that do not learn

    def __post_init__(self) -> None:
        checks.kind(self, "of", Optimizer)
        if isinstance(self.of, Frozen):
            raise ConfigError("Frozen.of is Frozen itself: name all weights in one")
        if not self.weights or not all(self.weights):
            raise ConfigError('Frozen.weights names what does not learn, as in ("*/router/*",)')

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation of the optimizer inside, which is given what learns alone."""
        return self.of.build(axes, shapes, steps)

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """Those of the optimizer inside."""
        return self.of.evaluation_params(params, state)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step` of the optimizer inside."""
        return self.of.rate(step, steps)


def frozen_by(optimizer: Any) -> tuple[str, ...]:
    """The patterns of what an optimizer leaves as it is, or one inside it does.

    >>> from jscale.optim import AdamW, Averaged
    >>> frozen_by(Averaged(Frozen(AdamW(1e-3), ("*/router/*",))))
    ('*/router/*',)
    """
    while optimizer is not None:
        if isinstance(optimizer, Frozen):
            return optimizer.weights
        optimizer = getattr(optimizer, "of", None)
    return ()
