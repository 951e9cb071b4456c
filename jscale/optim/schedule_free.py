"""Schedule-free AdamW: averaging in the place of a decaying learning rate."""

from dataclasses import dataclass
from typing import Any

import optax
import optax.contrib
from jaxtyping import PyTree

from jscale.optim import checks
from jscale.optim.matrices import decays
from jscale.optim.optimizer import check_common, clipped
from jscale.optim.schedules import Constant, Schedule


@dataclass(frozen=True)
class ScheduleFree:
    """AdamW with its momentum replaced by averaging (Defazio et al., 2405.15682).

    Training sees the point y; `evaluation_params` gives the average x, which is what should be
    evaluated and released. The learning rate needs a warm-up and no decay.
    """

    peak: float  # the highest learning rate
    schedule: Schedule = Constant()  # the share of the peak at each update
    b1: float = 0.9  # how much of the average is in the point of training
    b2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # of matrices, per unit of learning rate
    clip: float | None = 1.0  # the largest global norm of the gradient; None: any

    def __post_init__(self) -> None:
        check_common(self)
        checks.rate_of_decay(self, "b1", "b2")
        checks.positive(self, "b1", "eps")  # x = (y - (1 - b1) z) / b1

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` updates."""
        schedule = self.schedule.build(self.peak, steps)
        # Adam with b1 = 0, without storing a first moment of zeros.
        second = optax.scale_by_rms(
            decay=self.b2, eps=self.eps, eps_in_sqrt=False, bias_correction=True
        )
        inner = clipped(
            self.clip,
            second,
            optax.add_decayed_weights(self.weight_decay, decays(axes)),
            optax.scale_by_learning_rate(schedule),
        )
        return optax.contrib.schedule_free(inner, schedule, b1=self.b1)

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """The averaged point x."""
        return optax.contrib.schedule_free_eval_params(state, params)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step`."""
        return self.schedule.rate(self.peak, step, steps)
