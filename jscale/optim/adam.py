"""AdamW, Lion and SGD: a moment or two for every weight."""

from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import PyTree

from jscale.optim import checks
from jscale.optim.matrices import decays
from jscale.optim.optimizer import MOMENTS, check_common, clipped
from jscale.optim.schedules import Cosine, Schedule


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 1711.05101).

    `moments` is the dtype of the first moment; the second keeps the dtype of the weights.
    """

    peak: float  # the highest learning rate
    schedule: Schedule = Cosine()  # the share of the peak at each update
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # of matrices, per unit of learning rate
    clip: float | None = 1.0  # the largest global norm of the gradient; None: any
    moments: str = "float32"  # dtype of the first moment

    def __post_init__(self) -> None:
        check_common(self)
        checks.rate_of_decay(self, "b1", "b2")
        checks.positive(self, "eps")
        checks.one_of(self, "moments", MOMENTS)

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` updates."""
        adamw = optax.adamw(
            self.schedule.build(self.peak, steps),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decays(axes),
            mu_dtype=self.moments,
        )
        return clipped(self.clip, adamw)

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """The parameters themselves."""
        return params

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step`."""
        return self.schedule.rate(self.peak, step, steps)


@dataclass(frozen=True)
class Lion:
    """The sign of a moment, half the memory of Adam (Chen et al., 2302.06675).

    Its authors advise a peak 3 to 10 times below AdamW's, and a weight decay as many times above.
    """

    peak: float  # the highest learning rate
    schedule: Schedule = Cosine()  # the share of the peak at each update
    b1: float = 0.9  # of the moment in the update
    b2: float = 0.99  # decay of the moment
    weight_decay: float = 0.5  # of matrices, per unit of learning rate
    clip: float | None = 1.0  # the largest global norm of the gradient; None: any
    moments: str = "float32"  # dtype of the moment

    def __post_init__(self) -> None:
        check_common(self)
        checks.rate_of_decay(self, "b1", "b2")
        checks.one_of(self, "moments", MOMENTS)

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` updates."""
        lion = optax.lion(
            self.schedule.build(self.peak, steps),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            mask=decays(axes),
            mu_dtype=self.moments,
        )
        return clipped(self.clip, lion)

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """The parameters themselves."""
        return params

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step`."""
        return self.schedule.rate(self.peak, step, steps)


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum (None: without), and decoupled weight decay as in AdamW."""

    peak: float  # the highest learning rate
    schedule: Schedule = Cosine()  # the share of the peak at each update
    momentum: float | None = 0.9  # decay of the moment; None: no moment
    nesterov: bool = False  # whether the update looks one step ahead
    weight_decay: float = 0.0  # of matrices, per unit of learning rate
    clip: float | None = 1.0  # the largest global norm of the gradient; None: any
    moments: str = "float32"  # dtype of the moment

    def __post_init__(self) -> None:
        check_common(self)
        if self.momentum is not None:
            checks.rate_of_decay(self, "momentum")
        checks.kind(self, "nesterov", bool)
        checks.one_of(self, "moments", MOMENTS)

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` updates."""
        trace = []
        if self.momentum is not None:
            trace = [optax.trace(self.momentum, self.nesterov, self.moments)]
        return clipped(
            self.clip,
            *trace,
            optax.add_decayed_weights(self.weight_decay, decays(axes)),
            optax.scale_by_learning_rate(self.schedule.build(self.peak, steps)),
        )

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """The parameters themselves."""
        return params

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step`."""
        return self.schedule.rate(self.peak, step, steps)
