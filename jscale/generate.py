"""Text from a model: a prompt read at once, then token by token with a cache, in one program."""

# B prompts, T prompt length, S cache length, V vocabulary.

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from jscale.errors import ConfigError
from jscale.mesh import Layout
from jscale.models.decoder import Answering, Continuing, Decoder, Seeing
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


class Sources(NamedTuple):
    """Whole texts that an encoder-decoder reads, and the token with which it begins to write."""

    texts: Sequence[Sequence[int]]
    start: int


class Shown(NamedTuple):
    """Prompts with images: those of a row stand, one after the other, at its image tokens."""

    prompts: Sequence[Sequence[int]]
    images: Shaped[np.ndarray, "B *I H W C"]  # as many of each row


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
    prompts: Sequence[Sequence[int]] | Sources | Shown,
    *,
    length: int,
    sampling: Sampling = Sampling(),
    stop: int | None = None,
    layout: Layout | None = None,
    key: PRNGKeyArray | None = None,
) -> list[list[int]]:
    """Up to `length` tokens after each prompt, ending early after the token `stop`.

    An encoder-decoder's prompts are `Sources`, those with images `Shown`. Prompts may be of
    different lengths. The same key gives the same tokens. A row whose last is `UNKNOWN` ends there
    because the model's logits were not numbers.

    Raises:
        ConfigError: no prompt, an empty one, a length below 1, a network that writes no text, or
            one that has another kind of prompts.
    """
    if length < 1:
        raise ConfigError(f"generation needs a length of at least 1 token, not {length}")
    start = prompts.start if isinstance(prompts, Sources) else None
    texts: Any = prompts
    if isinstance(prompts, Sources | Shown):
        texts = prompts[0]
    images = prompts.images if isinstance(prompts, Shown) else None
    if answers(model) == (start is None):
        raise ConfigError(
            "an encoder-decoder begins a text of its own: give Sources(prompts, start)"
            if start is None
            else "a decoder goes on with its prompts: Sources are for encoder-decoders"
        )
    tokens, lengths = pad(texts, layout.batch_ways if layout else 1)
    key = jax.random.key(0) if key is None else key
    where = layout.decoding if layout else None
    program = decode(model, where, sampling, length, stop, start)
    if images is not None:
        check_shown(model, texts, images)
        images = np.concatenate([images, *[images[-1:]] * (len(tokens) - len(images))])
    out = np.asarray(program(params, tokens, lengths, key, images))
    return [until(stop, row) for row in out[: len(texts)].tolist()]


def check_shown(model: Model, prompts: Sequence[Any], images: np.ndarray) -> None:
    """Raises ConfigError where images cannot be read, or are not as many as prompts."""
    if not isinstance(model.bind(model.shapes), Seeing):
        raise ConfigError(f"a {type(model.config).__name__} reads no images: give prompts alone")
    if len(images) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts are shown images of {len(images)} rows")


def writes(model: Model) -> bool:
    """Whether a model writes text, in going on with its prompt or in answer to it."""
    return isinstance(model.bind(model.shapes), Answering | Decoder)


def answers(model: Model) -> bool:
    """Whether what a model writes is a text of its own, and not what follows in its prompt.

    Raises:
        ConfigError: it writes none.
    """
    return not isinstance(writer(model, model.shapes), Continuing)


def writer(
    model: Model, params: Params, shown: dict[str, Any] | None = None
) -> Answering | Continuing:
    """The network with these weights as one that writes, token after token, of what it is shown.

    Raises:
        ConfigError: it cannot.
    """
    network = model.bind(params)
    if isinstance(network, Answering):
        return network
    if isinstance(network, Decoder):
        return Continuing(network, shown)
    raise ConfigError(
        f"{type(model.config).__name__} writes no text: that needs a decoder or an encoder-decoder."
        " What it makes of whole texts is measured on held-out ones, and is its network's output:"
        " model(params, tokens).hidden"
    )


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
    model: Model,
    layout: Layout | None,
    sampling: Sampling,
    length: int,
    stop: int | None,
    start: int | None = None,
) -> Callable[..., Array]:
    """The jitted program that continues right-padded prompts by `length` tokens."""

    def run(
        params: Params,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        key: PRNGKeyArray,
        images: Array | None = None,
    ) -> Int[Array, "B length"]:
        with layout.active() if layout else nullcontext():
            network: Any = writer(model, params, None if images is None else {"images": images})
            hidden, position, begun = network.begin(tokens, lengths, start, length)
            first = sampling.draw(network.unembed(hidden)[:, 0], jax.random.fold_in(key, 0))

            def step(carry: tuple[Any, Array], i: Array) -> tuple[tuple[Any, Array], Array]:
                begun, token = carry
                out = network.further(token[:, None], (position + i)[:, None], begun)
                logits = network.unembed(out.hidden)[:, 0]
                new = sampling.draw(logits, jax.random.fold_in(key, i + 1))
                # Once a row has stopped it goes on stopping.
                over = (token == UNKNOWN) | (False if stop is None else token == stop)
                new = jnp.where(over, token, new)
                return (out.cache, new), token

            (_, end), tokens = jax.lax.scan(step, (begun, first), jnp.arange(length - 1))
            return jnp.concatenate([tokens, end[None]]).T

    return jax.jit(run, out_shardings=layout.replicated() if layout else None)
