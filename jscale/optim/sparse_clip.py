"""Clipping for mixtures of experts, beside any optimizer."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from jscale.errors import ConfigError
from jscale.optim import checks
from jscale.optim.matrices import STACKS
from jscale.optim.optimizer import Optimizer


@dataclass(frozen=True)
class SparseClip:
    """The optimizer `of` behind clipping by a global norm in which experts count for less.

    Each expert sees few tokens, so that its gradient is noisy: in the norm, gradients of E experts
    are divided by √max(devices, E). If the norm is above `most`, all gradients are scaled by the
    one factor that brings it there. An expert's weights are those that the logical axis `experts`
    stacks; a router, whose outputs it names, is none. The optimizer inside clips nothing itself.
    Source: fairseq's and TorchScale's clipping for experts, which by mistake left these unscaled.
    """

    of: Optimizer  # what follows, with clip=None
    most: float = 1.0  # the largest norm
    devices: int = 1  # counts where it is more than there are experts, as in the original

    def __post_init__(self) -> None:
        checks.kind(self, "of", Optimizer)
        checks.positive(self, "most")
        checks.count(self, "devices", least=1)
        inner: Any = self.of
        while hasattr(inner, "of"):
            inner = inner.of
        if isinstance(self.of, SparseClip) or getattr(inner, "clip", None) is not None:
            raise ConfigError(
                f"SparseClip.of is a {type(self.of).__name__} that clips by itself; give"
                f" {type(inner).__name__} clip=None"
            )

    def build(self, axes: PyTree, shapes: PyTree, steps: int) -> optax.GradientTransformation:
        """The transformation of the optimizer inside, behind the clipping."""
        inner = optax.with_extra_args_support(self.of.build(axes, shapes, steps))
        shares = jax.tree.map(lambda shape, spec: self._share(spec, shape.shape), shapes, axes)

        def update(
            updates: PyTree, state: Any, params: PyTree = None, *, norm: Any = None, **more: Any
        ) -> tuple[PyTree, Any]:
            norm = sparse_norm(updates, shares)  # not the plain norm, which the loop knows
            factor = jnp.where(norm > self.most, self.most / norm, 1.0)
            clipped = jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)
            return inner.update(clipped, state, params, **more)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    def _share(self, axes: PartitionSpec, shape: tuple[int, ...]) -> float:
        """What the square of a gradient counts in the norm."""
        experts = experts_of(axes, shape)
        return 1.0 if experts is None else 1 / max(self.devices, experts)

    def evaluation_params(self, params: PyTree, state: Any) -> PyTree:
        """Those of the optimizer inside."""
        return self.of.evaluation_params(params, state)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update number `step` of the optimizer inside."""
        return self.of.rate(step, steps)


def experts_of(axes: PartitionSpec, shape: tuple[int, ...]) -> int | None:
    """How many experts' weights are stacked in a weight; None if they are nobody's.

    >>> from jax.sharding import PartitionSpec as P
    >>> experts_of(P("layers", "experts", "embed", "mlp"), (2, 8, 16, 32))
    8
    >>> experts_of(P("layers", "embed", "experts"), (2, 16, 8))
    """
    for name, size in zip(axes, shape, strict=True):
        if name == "experts":
            return size
        if name not in STACKS:
            return None
    return None


def sparse_norm(grads: PyTree[Array], shares: PyTree[float]) -> Float[Array, ""]:
    """√(Σ share · |g|²) over all gradients, in float32."""
    squares = jax.tree.map(
        lambda g, share: share * jnp.square(g.astype(jnp.float32)).sum(), grads, shares
    )
    return jnp.sqrt(sum(jax.tree.leaves(squares), jnp.float32(0)))
