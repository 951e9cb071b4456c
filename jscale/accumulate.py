"""Gradients of a batch, computed all at once or microbatch by microbatch, to the same result."""

# B rows of a batch, A microbatches, R rows of one.

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from jscale.errors import ConfigError
from jscale.losses import Batch, Terms
from jscale.models.model import Params


class Sums(NamedTuple):
    """Sums over terms, from which means are exact however the batch was split."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    terms: Float[Array, ""]  # how many, those of weight 0 included
    metrics: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


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
    """The gradient of Σ losses · weights / Σ weights, and the sums.

    Weighted by tokens, not by microbatches: the mean over the batch is the one that counts. With a
    `scale` the gradient is so many times as large on its way back, so that float16 holds it.
    """

    def objective(params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Array, Sums]:
        sums = add(terms(params, batch, rng))
        return sums.loss, sums

    some = lambda weight: jnp.where(weight == 0, 1.0, weight)
    whole = 1.0 if scale is None else scale
    if microbatches == 1:
        # Σ weights is known before the way back: it starts from there, and no gradient is read
        # once more only to be divided.
        _, back, sums = jax.vjp(lambda p: objective(p, batch, rng), params, has_aux=True)
        (grads,) = back(whole / some(sums.weight))
        return grads if scale is None else times(1 / scale, grads), sums

    def differentiate(*inputs: Any) -> tuple[PyTree[Array], Sums]:
        _, back, sums = jax.vjp(lambda p: objective(p, *inputs[1:]), inputs[0], has_aux=True)
        # Divided by the number of terms, a constant, to keep float16 gradients in range.
        return back(whole / sums.terms)[0], sums

    grads, sums = add_up(differentiate, params, split(batch, microbatches), rng)
    return times(sums.terms / microbatches / (whole * some(sums.weight)), grads), sums


def times(factor: Float[Array, ""], grads: PyTree[Array]) -> PyTree[Array]:
    """Gradients multiplied by a number, in their own dtypes."""
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)


def add(terms: Terms) -> Sums:
    """The sums over the terms of one loss."""
    losses, weights, metrics = terms
    count = jnp.full((), weights.size, jnp.float32)
    return Sums((losses.astype(jnp.float32) * weights).sum(), weights.sum(), count, metrics)


def add_up(
    differentiate: Callable, params: Params, batches: Microbatches, rng: PRNGKeyArray
) -> tuple[PyTree[Array], Sums]:
    """Sum gradients and sums over the first axis of `batches`, one after the other."""
    count = jax.tree.leaves(batches)[0].shape[0]
    keys = jax.random.split(rng, count)
    first = jax.tree.map(lambda x: x[0], batches)
    shapes = jax.eval_shape(differentiate, params, first, keys[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(sums: PyTree, inputs: tuple[Batch, PRNGKeyArray]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, differentiate(params, *inputs)), None

    return jax.lax.scan(body, zeros, (batches, keys))[0]
