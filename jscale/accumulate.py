"""Gradients of a batch, computed all at once or microbatch by microbatch, to the same result."""

# B rows of a batch, A microbatches, R rows of one.

from collections.abc import Callable, Mapping
from typing import NamedTuple

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
    scale: Float[Array, ""],
) -> tuple[PyTree[Array], Sums]:
    """The gradient of `scale` · Σ losses · weights / Σ weights, unscaled again, and the sums.

    Weighted by tokens, not by microbatches: the mean over the batch is the one that counts.
    """

    def objective(params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Array, Sums]:
        sums = add(terms(params, batch, rng))
        # Divided by the number of terms, a constant, only to keep float16 gradients in range.
        return sums.loss * scale / sums.terms, sums

    differentiate = jax.grad(objective, has_aux=True)
    if microbatches == 1:
        grads, sums = differentiate(params, batch, rng)
    else:
        grads, sums = add_up(differentiate, params, split(batch, microbatches), rng)
    factor = sums.terms / microbatches / (scale * jnp.where(sums.weight == 0, 1.0, sums.weight))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), sums


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
