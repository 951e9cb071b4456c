"""Training small models of claims: Adam at a constant rate, as one program that a rate enters."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from keep import tell

from jscale.data import StandardLibrary
from jscale.data.source import Report
from jscale.losses import NextToken
from jscale.models import Model

Batches = Callable[[Any], dict[str, Any]]  # a batch from a key


class Trained(NamedTuple):
    """Losses of all updates, and the weights after the last."""

    losses: np.ndarray
    params: Any


def loss_of(model: Model) -> Callable[[Any, dict[str, Any]], Any]:
    """The mean loss of a batch, as a function of weights and batch."""

    def loss(params: Any, batch: dict[str, Any]) -> Any:
        terms = NextToken()(model, params, batch, jax.random.key(0))
        return (terms.losses * terms.weights).sum() / terms.weights.sum()

    return loss


class Training:
    """A model's training on batches: compiled once, run at any rate from any seed.

    `warmup` updates come before the full rate; `at_once` updates are one call.
    """

    def __init__(self, model: Model, batches: Batches, warmup: int = 0, at_once: int = 10):
        self.model, self.warmup, self.at_once = model, warmup, at_once
        self.adam, self.batches = optax.scale_by_adam(), batches
        self.some = jax.jit(self._some, donate_argnums=0)
        self.init = jax.jit(model.init)

    def _some(self, state: Any, rate: Any, key: Any, first: Any) -> tuple[Any, Any]:
        gradient = jax.value_and_grad(loss_of(self.model))

        def update(state: Any, step: Any) -> tuple[Any, Any]:
            params, moments = state
            loss, grads = gradient(params, self.batches(jax.random.fold_in(key, step)))
            updates, moments = self.adam.update(grads, moments)
            now = -rate * jnp.minimum(1.0, (step + 1) / max(1, self.warmup))
            updates = jax.tree.map(lambda u: now * u, updates)
            return (optax.apply_updates(params, updates), moments), loss

        return jax.lax.scan(update, state, first + jnp.arange(self.at_once))

    def run(self, rate: float, steps: int, seed: int = 0, name: str = "") -> Trained:
        """Train for some updates; the seed is of weights and batches, the name for progress."""
        params = self.init(jax.random.key(seed))
        state, losses = (params, self.adam.init(params)), []
        key = jax.random.key(seed + 1000)
        for first in range(0, steps, self.at_once):
            state, some = self.some(state, jnp.float32(rate), key, jnp.int32(first))
            losses += np.asarray(some).tolist()
            if first // self.at_once % 2 == 0:
                tell(f"{name}: {len(losses)} of {steps} updates, loss {losses[-1]:.3f}")
        return Trained(np.asarray(losses), state[0])


def library() -> np.ndarray:
    """The bytes of Python's standard library, file after file."""
    texts = StandardLibrary().documents(Report())
    return np.frombuffer("\n".join(texts).encode(), np.uint8)


def windows(text: Any, rows: int, length: int, key: Any) -> dict[str, Any]:
    """A batch of rows that begin anywhere in a text of bytes."""
    starts = jax.random.randint(key, (rows, 1), 0, text.shape[0] - length)
    found = text[starts + jnp.arange(length + 1)].astype(jnp.int32)
    weights = jnp.ones((rows, length), jnp.float32)
    return {"inputs": found[:, :-1], "targets": found[:, 1:], "weights": weights}


def of_text(text: Any, rows: int, length: int) -> Batches:
    """Batches of a text."""
    return partial(windows, jnp.asarray(text), rows, length)
