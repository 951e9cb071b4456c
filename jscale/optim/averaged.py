"""A running average of the parameters, beside any optimizer."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jscale.errors import ConfigError
from jscale.optim import checks
from jscale.optim.optimizer import Optimizer
from jscale.optim.schedule_free import ScheduleFree


class AveragedState(NamedTuple):
    """The number of updates, the state of the optimizer inside, and the averaged parameters."""

    count: Int[Array, ""]
    inner: Any
    average: PyTree


@dataclass(frozen=True)
class Averaged:
    """The optimizer `of`, and an exponential moving average of the parameters for evaluation.

    The average starts at the initial parameters and forgets them quickly: update number t uses the
    smaller of `decay` and (1 + t) / (10 + t), as TensorFlow's ExponentialMovingAverage does.
    """

    of: Optimizer  # what is averaged
    decay: float = 0.999  # of the average, at each update

    def __post_init__(self) -> None:
        checks.kind(self, "of", Optimizer)
        checks.rate_of_decay(self, "decay")
        if isinstance(self.of, Averaged | ScheduleFree):
            raise ConfigError(
                f"Averaged.of is a {type(self.of).__name__}, which already averages; "
                "use it without Averaged"
            )

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation of the optimizer inside, with the average added to its state."""
        inner = optax.with_extra_args_support(self.of.build(axes, shapes, steps))

        def init(params: PyTree) -> AveragedState:
            # A copy, so that parameters and state can both be donated.
            average = jax.tree.map(jnp.copy, params)
            return AveragedState(jnp.zeros((), jnp.int32), inner.init(params), average)

        def update(
            updates: PyTree, state: Any, params: PyTree = None, **more: Any
        ) -> tuple[PyTree, AveragedState]:
            updates, held = inner.update(updates, state.inner, params, **more)
            keep = jnp.minimum(self.decay, (1.0 + state.count) / (10.0 + state.count))
            moved = optax.apply_updates(params, updates)
            mix = lambda old, new: (keep * old + (1.0 - keep) * new).astype(old.dtype)
            average = jax.tree.map(mix, state.average, moved)
            return updates, AveragedState(state.count + 1, held, average)

        return optax.GradientTransformationExtraArgs(init, update)

    def evaluation_params(self, params: PyTree, state: AveragedState) -> PyTree:
        """The averaged parameters."""
        return state.average

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step` of the optimizer inside."""
        return self.of.rate(step, steps)
