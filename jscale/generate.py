"""Text from a model: a prompt read at once, then token by token with a cache, in one program."""

# B prompts, T prompt length, S cache length, V vocabulary.

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jscale.errors import ConfigError
from jscale.mesh import Layout
from jscale.models.model import Model, Params
from jscale.rows import width_of

UNKNOWN = -1  # in a token's place, where logits leave none: argmax would call a NaN the likeliest


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: `temperature` 0 takes the likeliest; `top` keeps that many.

    Raises:
        ConfigError: a negative temperature, or fewer than one token kept.
    """

    temperature: float = 0.8  # 0: the likeliest token; higher: more surprising
    top: int | None = 50  # so many likeliest tokens are drawn from; None: all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be 0 or a positive number, not {self.temperature}")
        if self.top is not None and self.top < 1:
            raise ConfigError(f"top must keep at least 1 token, not {self.top}; None keeps all")

    def draw(self, logits: Float[Array, "B V"], key: PRNGKeyArray) -> Int[Array, "B"]:
        """One token for each row; `UNKNOWN` where a logit is NaN, or all are minus infinity."""
        logits = logits.astype(jnp.float32)
        known = logits.max(-1) > -jnp.inf  # the largest of numbers and a NaN is NaN
        return jnp.where(known, self._draw(logits, key), UNKNOWN)

    def _draw(self, logits: Float[Array, "B V"], key: PRNGKeyArray) -> Int[Array, "B"]:
        if self.temperature == 0:
            return logits.argmax(-1).astype(jnp.int32)
        if self.top is not None and self.top < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(key, logits / self.temperature).astype(jnp.int32)


def pad(prompts: Sequence[Sequence[int]], ways: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one array, filled with 0 on the right to one of few widths, and their lengths.

    The last prompt is repeated until the rows divide over `ways` devices.
    """
    if not prompts or not all(len(p) for p in prompts):
        raise ConfigError("generation needs at least one prompt, each of at least one token")
    prompts = [*prompts, *[prompts[-1]] * (-len(prompts) % ways)]
    lengths = np.asarray([len(p) for p in prompts], np.int32)
    tokens = np.zeros((len(prompts), width_of(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    length: int,
    sampling: Sampling = Sampling(),
    stop: int | None = None,
    layout: Layout | None = None,
    key: PRNGKeyArray | None = None,
) -> list[list[int]]:
    """Up to `length` tokens after each prompt, ending early after the token `stop`.

    Prompts may be of different lengths. The same key gives the same tokens. A row whose last is
    `UNKNOWN` ends there because the model's logits were not numbers.

    Raises:
        ConfigError: no prompt, an empty one, or a length below 1.
    """
    if length < 1:
        raise ConfigError(f"generation needs a length of at least 1 token, not {length}")
    tokens, lengths = pad(prompts, layout.batch_ways if layout else 1)
    key = jax.random.key(0) if key is None else key
    program = decode(model, layout.decoding if layout else None, sampling, length, stop)
    out = np.asarray(program(params, tokens, lengths, key))
    return [until(stop, row) for row in out[: len(prompts)].tolist()]


def until(stop: int | None, row: list[int]) -> list[int]:
    """The row before its `stop`, or up to its first `UNKNOWN`.

    >>> until(3, [1, 2, 3, 3]), until(3, [1, -1, -1])
    ([1, 2], [1, -1])
    """
    if UNKNOWN in row:
        return row[: row.index(UNKNOWN) + 1]
    return row[: row.index(stop)] if stop in row else row


@lru_cache(maxsize=32)
def decode(
    model: Model, layout: Layout | None, sampling: Sampling, length: int, stop: int | None
) -> Callable[..., Array]:
    """The jitted program that continues right-padded prompts by `length` tokens."""

    def run(
        params: Params,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        key: PRNGKeyArray,
    ) -> Int[Array, "B length"]:
        with layout.active() if layout else nullcontext():
            network = model.bind(params)
            cache = network.cache(tokens.shape[0], tokens.shape[1] + length)
            # Padding writes into slots that no earlier position sees and later tokens overwrite.
            out = network(tokens, cache=cache)
            last = jnp.take_along_axis(out.hidden, (lengths - 1)[:, None, None], 1)
            first = sampling.draw(network.unembed(last)[:, 0], jax.random.fold_in(key, 0))

            def step(carry: tuple[Any, Array], i: Array) -> tuple[tuple[Any, Array], Array]:
                cache, token = carry
                out = network(token[:, None], positions=(lengths + i)[:, None], cache=cache)
                logits = network.unembed(out.hidden)[:, 0]
                new = sampling.draw(logits, jax.random.fold_in(key, i + 1))
                # Once a row has stopped it goes on stopping.
                over = (token == UNKNOWN) | (False if stop is None else token == stop)
                new = jnp.where(over, token, new)
                return (out.cache, new), token

            (_, end), tokens = jax.lax.scan(step, (out.cache, first), jnp.arange(length - 1))
            return jnp.concatenate([tokens, end[None]]).T

    return jax.jit(run, out_shardings=layout.replicated() if layout else None)
