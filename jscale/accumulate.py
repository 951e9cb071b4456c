"""Gradients of a batch, computed all at once or microbatch by microbatch, to the same result."""

# B rows of a batch, A microbatches, R rows of one.

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from jscale.errors import ConfigError
from jscale.losses import Batch, Terms
from jscale.models.load import Loads, add_loads, asked, pulls
from jscale.models.model import Params


class Sums(NamedTuple):
    """Sums over terms, from which means are exact however the batch was split."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    terms: Float[Array, ""]  # how many, those of weight 0 included
    metrics: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
    loads: Loads

    @staticmethod
    def none(like: "Sums") -> "Sums":
        """The sums over no terms, in these shapes."""
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        return zeros._replace(loads={p: load.none() for p, load in zeros.loads.items()})

    def plus(self, other: "Sums") -> "Sums":
        """Those of both parts of a batch."""
        both = jax.tree.map(jnp.add, self._replace(loads={}), other._replace(loads={}))
        return both._replace(loads=add_loads(self.loads, other.loads))


Microbatches = Mapping[str, Shaped[Array, "A R ..."]]


def split(batch: Batch, microbatches: int) -> Microbatches:
    """The batch as `microbatches` of them, along a new first axis.

    Rows are dealt out in turn, so that where the batch is split over devices each keeps its rows.

    Raises:
        ConfigError: the rows cannot be dealt out evenly.
    """

    def deal(x: Array) -> Array:
        rows = x.shape[0]
        if rows % microbatches:
            raise ConfigError(
                f"a batch of {rows} rows cannot be accumulated over {microbatches} microbatches;"
                f" make the batch a multiple of accumulate={microbatches}"
            )
        return x.reshape(rows // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)

    return {name: deal(x) for name, x in batch.items()}


def gradients(
    terms: Callable[[Params, Batch, PRNGKeyArray], Terms],
    params: Params,
    batch: Batch,
    rng: PRNGKeyArray,
    microbatches: int,
    scale: Float[Array, ""] | None,
) -> tuple[PyTree[Array], Sums]:
    """The gradient of Σ losses · weights / Σ weights + `penalty` of the loads, and the sums.

    Weighted by tokens, not by microbatches: the mean over the batch is the one that counts. With a
    `scale` the gradient is so many times as large on its way back, so that float16 holds it.

    What is asked of the whole batch pulls by counts of the whole batch, which microbatches do not
    know: those are then counted first, in a pass forward.
    """

    def objective(params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Any, Sums]:
        sums = add(terms(params, batch, rng))
        return (sums.loss, asked(sums.loads)), sums

    some = lambda weight: jnp.where(weight == 0, 1.0, weight)
    whole = 1.0 if scale is None else scale
    if microbatches == 1:
        # Σ weights is known before the way back: it starts from there, and no gradient is read
        # once more only to be divided.
        _, back, sums = jax.vjp(lambda p: objective(p, batch, rng), params, has_aux=True)
        (grads,) = back((whole / some(sums.weight), times(whole, pulls(sums.loads))))
        return grads if scale is None else times(1 / scale, grads), sums

    batches, keys = split(batch, microbatches), jax.random.split(rng, microbatches)
    count = lambda batch, rng: add(terms(params, batch, rng))
    first = jax.tree.map(lambda x: x[0], (batches, keys))
    shapes, known = jax.eval_shape(count, *first), {}
    if asked(shapes.loads):
        total = fold(count, (batches, keys), Sums.none(shapes), Sums.plus)
        known = times(some(total.weight), pulls(total.loads))

    def differentiate(batch: Batch, rng: PRNGKeyArray) -> tuple[PyTree[Array], Sums]:
        _, back, sums = jax.vjp(lambda p: objective(p, batch, rng), params, has_aux=True)
        # Divided by the number of terms, a constant, to keep float16 gradients in range.
        return back((whole / sums.terms, times(whole / sums.terms, known)))[0], sums

    def both(one: Any, other: Any) -> Any:
        return jax.tree.map(jnp.add, one[0], other[0]), one[1].plus(other[1])

    none = jax.tree.map(jnp.zeros_like, params), Sums.none(shapes)
    grads, sums = fold(differentiate, (batches, keys), none, both)
    return times(sums.terms / microbatches / (whole * some(sums.weight)), grads), sums


def times(factor: float | Float[Array, ""], arrays: PyTree[Array]) -> PyTree[Array]:
    """Arrays multiplied by a number, in their own dtypes."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), arrays)


def add(terms: Terms) -> Sums:
    """The sums over the terms of one loss."""
    losses, weights, metrics, loads = terms
    count = jnp.full((), weights.size, jnp.float32)
    loss = (losses.astype(jnp.float32) * weights).sum()
    return Sums(loss, weights.sum(), count, metrics, dict(loads))


def fold(
    of: Callable[..., Any], inputs: PyTree[Array], none: Any, plus: Callable[[Any, Any], Any]
) -> Any:
    """`of(…)` of each part of the inputs, along their first axis, added to `none` in turn."""

    def body(sums: Any, part: Any) -> tuple[Any, None]:
        return plus(sums, of(*part)), None

    return jax.lax.scan(body, none, inputs)[0]
