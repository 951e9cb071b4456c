"""The seam: what the loop asks of an optimizer, and the parts that all of them share."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jscale.optim import checks
from jscale.optim.matrices import decays
from jscale.optim.schedules import Schedule

MOMENTS = ("float32", "bfloat16", "float16")


@runtime_checkable
class Optimizer(Protocol):
    """A recipe's optimizer: a frozen value that builds an optax transformation."""

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation for weights of these logical axes and shapes, over `steps` updates.

        `axes` holds a `PartitionSpec` of logical names for every weight, `shapes` something with
        `.shape` and `.dtype`, in the same nested dictionary. Raises `ConfigError` when the schedule
        does not fit into `steps`.
        """
        ...

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """The parameters to evaluate and to release, which may differ from those being trained."""
        ...

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step` (from 0), computed on the host."""
        ...


def check_common(optimizer: Any) -> None:
    """Check the fields that every optimizer here has: peak, schedule, weight_decay, clip."""
    checks.positive(optimizer, "peak")
    checks.kind(optimizer, "schedule", Schedule)
    checks.not_negative(optimizer, "weight_decay")
    if optimizer.clip is not None:
        checks.positive(optimizer, "clip")


def clipped(
    clip: float | None, *parts: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The parts in a chain, behind global-norm clipping of the gradients unless `clip` is None."""
    if clip is None:
        return optax.chain(*parts)
    return optax.chain(clip_by_global_norm(clip), *parts)


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """Gradients times min(1, most / norm), as Pascanu et al. 2013, arXiv 1211.5063.

    One factor for all, so that the product joins whatever reads the gradients next; optax divides
    and selects, and XLA writes all clipped gradients to memory first. Whoever knows the norm
    already gives it to `update` as `norm`.
    """

    def update(
        updates: PyTree, state: Any, params: Any = None, *, norm: Any = None, **others: Any
    ) -> tuple[PyTree, Any]:
        norm = optax.tree.norm(updates) if norm is None else norm
        factor = jnp.where(norm > most, most / norm, 1.0)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decay_after(
    weight_decay: float, schedule: optax.Schedule, axes: PyTree
) -> optax.GradientTransformation:
    """Subtract rate x weight_decay x weight from every matrix, after the learning rate.

    For optax optimizers whose own decay has no mask or is not scaled by the learning rate, so that
    `weight_decay` means the same in every optimizer of this package (decoupled, 1711.05101).
    """
    return optax.add_decayed_weights(lambda step: -weight_decay * schedule(step), decays(axes))
