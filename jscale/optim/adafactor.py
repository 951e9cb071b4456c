"""Adafactor: second moments kept as rows and columns, layer by layer."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from jscale.optim import checks
from jscale.optim.optimizer import check_common, clipped, decay_after
from jscale.optim.schedules import Cosine, Schedule


@dataclass(frozen=True)
class Adafactor:
    """Adam's second moment in sublinear memory (Shazeer and Stern, 1804.04235).

    The learning rate is relative: an update has the root mean square of its weight times the rate,
    so peaks are near 1e-2. Weights whose two largest dimensions reach `factor_from` are factored.
    `momentum` None keeps no first moment.
    """

    peak: float  # the highest learning rate, relative to a weight's size
    schedule: Schedule = Cosine()  # the share of the peak at each update
    exponent: float = 0.8  # of the second moment's decay, 1 - t**-exponent
    momentum: float | None = None  # decay of a first moment; None: none is kept
    factor_from: int = 128  # sides of this size and above are factored
    weight_decay: float = 0.0  # of matrices, per unit of learning rate
    clip: float | None = 1.0  # the largest global norm of the gradient; None: any

    def __post_init__(self) -> None:
        check_common(self)
        checks.fraction(self, "exponent")
        if self.momentum is not None:
            checks.rate_of_decay(self, "momentum")
        checks.count(self, "factor_from", least=1)

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` updates."""
        schedule = self.schedule.build(self.peak, steps)
        adafactor = optax.adafactor(
            schedule,
            min_dim_size_to_factor=self.factor_from,
            decay_rate=self.exponent,
            momentum=self.momentum,
        )
        return clipped(
            self.clip,
            by_layer(adafactor, axes, shapes),
            decay_after(self.weight_decay, schedule, axes),
        )

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """The parameters themselves."""
        return params

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step`, relative to the size of each weight."""
        return self.schedule.rate(self.peak, step, steps)


def by_layer(
    tx: optax.GradientTransformation, axes: PyTree, shapes: PyTree
) -> optax.GradientTransformation:
    """`tx` applied to every layer of a stack on its own, as if the layers were not stacked.

    Adafactor looks at a weight as a whole (its largest dimensions, its root mean square), and a
    stack of layers is not one weight.
    """
    layers = lambda spec, shape: shape.shape[0] if tuple(spec)[:1] == ("layers",) else 0
    counts = jax.tree.map(layers, axes, shapes)
    label = lambda count: f"{count} layers" if count else "single"
    parts: dict[Hashable, optax.GradientTransformation] = {
        label(count): _each_layer(tx, count) if count else tx
        for count in sorted(set(jax.tree.leaves(counts)))
    }
    return optax.partition(parts, jax.tree.map(label, counts))


def _each_layer(tx: optax.GradientTransformation, layers: int) -> optax.GradientTransformation:
    def init(params: PyTree) -> PyTree:
        return jax.vmap(tx.init, axis_size=layers)(params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return jax.vmap(tx.update, axis_size=layers)(updates, state, params)

    return optax.GradientTransformation(init, update)
