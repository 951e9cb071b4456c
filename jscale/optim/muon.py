"""Muon: orthogonalised momentum for matrices, AdamW for everything else."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import optax
import optax.contrib
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from jscale.optim import checks
from jscale.optim.matrices import sides
from jscale.optim.optimizer import MOMENTS, check_common, clipped, decay_after
from jscale.optim.schedules import Cosine, Schedule


@dataclass(frozen=True)
class Muon:
    """Momentum made orthogonal by Newton-Schulz steps (Jordan, 2024), scaled as in 2502.16982.

    A weight is a matrix when its logical axes leave two sides (`jscale.optim.matrices`) and none of
    them is in `elsewhere`; AdamW with `b1`, `b2` and the same learning rate takes the others. `rms`
    is the root mean square of a matrix's update per unit of learning rate: 0.2 matches AdamW's, so
    that one peak serves both.
    """

    peak: float  # the highest learning rate
    schedule: Schedule = Cosine()  # the share of the peak at each update
    momentum: float = 0.95  # decay of the moment that is made orthogonal
    iterations: int = 5  # Newton-Schulz steps
    rms: float = 0.2  # root mean square of an update at learning rate 1
    b1: float = 0.9  # AdamW's, for what is no matrix
    b2: float = 0.95  # AdamW's, for what is no matrix
    eps: float = 1e-8  # AdamW's, for what is no matrix
    weight_decay: float = 0.1  # of matrices, per unit of learning rate
    clip: float | None = 1.0  # the largest global norm of the gradient; None: any
    moments: str = "float32"  # dtype of the first moment
    elsewhere: tuple[str, ...] = ("vocab",)  # logical axes whose weights AdamW takes

    def __post_init__(self) -> None:
        check_common(self)
        checks.rate_of_decay(self, "momentum", "b1", "b2")
        checks.count(self, "iterations", least=1)
        checks.positive(self, "rms", "eps")
        checks.one_of(self, "moments", MOMENTS)
        checks.kind(self, "elsewhere", tuple)

    def matrices(self, axes: PyTree) -> PyTree:
        """For every weight its `MuonDimensionNumbers`, or None where AdamW takes it."""
        return jax.tree.map(self._matrix, axes)

    def _matrix(self, axes: PartitionSpec) -> optax.contrib.MuonDimensionNumbers | None:
        found = sides(axes)
        if len(found) != 2 or set(axes) & set(self.elsewhere):
            return None
        return optax.contrib.MuonDimensionNumbers(*found)

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` updates."""
        schedule = self.schedule.build(self.peak, steps)
        elsewhere = {"b1": self.b1, "b2": self.b2, "eps": self.eps, "mu_dtype": self.moments}
        kinds = jax.tree.map(lambda a: "muon" if self._matrix(a) else "adam", axes)
        parts = optax.partition(
            {
                # In the places, and so under the names in checkpoints, that optax's `muon` has.
                "muon": optax.chain(
                    self._orthogonalised(axes),
                    *(optax.identity(), optax.identity()),
                    optax.scale_by_learning_rate(schedule),
                ),
                "adam": optax.adamw(schedule, **elsewhere, weight_decay=0.0, nesterov=True),
            },
            kinds,
        )
        return clipped(self.clip, parts, decay_after(self.weight_decay, schedule, axes))

    def _orthogonalised(self, axes: PyTree) -> optax.GradientTransformation:
        """Nesterov's momentum, each matrix of it made orthogonal."""
        own = jax.tree.map(lambda a: a if self._matrix(a) else optax.MaskedNode(), axes)
        start = optax.contrib.scale_by_muon(mu_dtype=self.moments).init

        def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
            count, beta = optax.safe_increment(state.count), self.momentum
            mu = optax.tree.update_moment(updates, state.mu, beta, 1)
            ahead = optax.tree.bias_correction(mu, beta, optax.safe_increment(count))
            now = optax.tree.bias_correction(updates, beta, count)
            both = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now)
            new = jax.tree.map(self._orthogonal, both, own)
            mu = optax.tree.cast(mu, self.moments)
            return new, state._replace(count=count, mu=mu)

        return optax.GradientTransformation(start, update)

    def _orthogonal(self, x: Float[Array, "..."], axes: PartitionSpec) -> Float[Array, "..."]:
        """Every matrix of a stack made orthogonal, at the root mean square of an update.

        Stacks are mapped over one by one: optax puts them together, and where one of them is split
        over devices (experts), these would all gather, and compute, the matrices of all.
        """
        before, after = sides(axes)
        deep, within = before[0], lambda side: tuple(place - before[0] for place in side)
        one = optax.contrib.scale_by_muon(
            ns_steps=self.iterations,
            beta=0.0,
            eps=self.eps,
            nesterov=False,
            weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(*map(within, sides(axes))),
        )
        turned = lambda matrix: one.update(matrix, one.init(matrix))[0]
        for _ in range(deep):
            turned = jax.vmap(turned)
        longer = max(math.prod(x.shape[place] for place in side) for side in (before, after))
        return self.rms * longer**0.5 * turned(x)

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """The parameters themselves."""
        return params

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step`."""
        return self.schedule.rate(self.peak, step, steps)
