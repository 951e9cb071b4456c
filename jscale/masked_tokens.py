"""The objective of BERT: tokens are hidden, and guessed from what stands on both sides.

Source: Devlin et al. 2019, arXiv 1810.04805.
"""

# B batch, T length.

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jscale.errors import ConfigError
from jscale.losses import Batch, Terms, token_logprobs, told
from jscale.models.decoder import Answering
from jscale.models.model import Model, Params


@dataclass(frozen=True)
class MaskedTokens:
    """Cross-entropy of a part of the inputs, most of which the network does not see.

    Of the chosen tokens 80 % are replaced by `mask_token`, 10 % by a random token, and 10 % are
    left. It reads the rows of packed text that `NextToken` reads, not their targets; padding
    (segment 0) and `never` are not chosen. Training chooses anew each time; evaluation chooses by
    the tokens of a row, always the same.

    Raises:
        ConfigError: a rate that is not above 0 and below 1, or a negative token.
    """

    reads: ClassVar[tuple[str, ...]] = ("inputs",)

    mask_token: int  # what hides a token
    rate: float = 0.15  # the part of the tokens that is guessed
    never: tuple[int, ...] = ()  # tokens that are not chosen, such as those that end documents

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"rate must be above 0 and below 1, not {self.rate}")
        for name, tokens in self._named():
            if any(token < 0 for token in tokens):
                raise ConfigError(f"{name} must be 0 or more, not {min(tokens)}")

    def _named(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The tokens that are given, by field."""
        return ("mask_token", (self.mask_token,)), ("never", self.never)

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        tokens, segments = batch["inputs"], batch.get("segments")
        may = jnp.ones(tokens.shape, bool) if segments is None else segments > 0
        keys = rows_of(rng, tokens) if model.draws else by_content(tokens)
        seen, chosen = self.hide(tokens, may, keys, vocab_of(model))
        network = model.bind(params, jax.random.fold_in(rng, 1))
        if isinstance(network, Answering):
            raise ConfigError(
                f"MaskedTokens is for an encoder, and {type(model.config).__name__} has a decoder:"
                " GivenSource is for that"
            )
        out = network(seen, batch.get("positions"), segments)
        weights = chosen.astype(jnp.float32)
        logp, _ = token_logprobs(network, out.hidden, tokens, weights)
        nll, total = -(logp * weights).sum(), weights.sum()
        metrics = {"nll": (nll, total), **told(out.reports, total)}
        return Terms(-logp + out.penalty, weights, metrics, out.loads)

    def hide(
        self, tokens: Int[Array, "B T"], may: Bool[Array, "B T"], keys: Any, vocab: int
    ) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
        """What the network sees of the tokens, and which of those that may be it is to guess.

        Raises:
            ConfigError: `mask_token` or one of `never` is none of the vocabulary's.
        """
        for name, given in self._named():
            if (last := max(given, default=0)) >= vocab:
                raise ConfigError(
                    f"{name}={last} is none of the model's tokens: make its vocab at least"
                    f" {last + 1}, not {vocab}"
                )
        may &= ~jnp.isin(tokens, jnp.asarray(self.never, tokens.dtype))

        def row(key: Any, tokens: Array, may: Array) -> tuple[Array, Array]:
            which, how, what = jax.random.split(key, 3)
            chosen = may & (jax.random.uniform(which, tokens.shape) < self.rate)
            fate = jax.random.uniform(how, tokens.shape)
            other = jax.random.randint(what, tokens.shape, 0, vocab, tokens.dtype)
            mask = jnp.asarray(self.mask_token, tokens.dtype)
            hidden = jnp.where(fate < 0.8, mask, jnp.where(fate < 0.9, other, tokens))
            return jnp.where(chosen, hidden, tokens), chosen

        return jax.vmap(row)(keys, tokens, may)


def rows_of(key: PRNGKeyArray, tokens: Int[Array, "B T"]) -> Any:
    """A key for each row."""
    return jax.random.split(jax.random.fold_in(key, 0), tokens.shape[0])


def by_content(tokens: Int[Array, "B T"]) -> Any:
    """A key for each row that depends on its tokens alone, however rows are batched."""
    steps = jnp.arange(1, 2 * tokens.shape[1], 2, dtype=jnp.uint32) * jnp.uint32(2654435761)
    marks = (tokens.astype(jnp.uint32) * steps).sum(1, dtype=jnp.uint32)
    return jax.vmap(lambda mark: jax.random.fold_in(jax.random.key(0), mark))(marks)


def vocab_of(model: Model) -> int:
    """How many tokens a model tells apart.

    Raises:
        ConfigError: its config does not say.
    """
    vocab = getattr(model.config, "vocab", None)
    if vocab is None:
        raise ConfigError("masked tokens need a model whose config has a vocab")
    return vocab
