"""Masked modelling of images with text: a part of one is hidden and guessed from the rest of both.

Tokens are guessed as BERT does. BEiT-3 guesses codes that another network has given to patches;
here patches are guessed by their pixels, which needs no other network (MAE).
Source: Wang et al. 2022, arXiv 2208.10442; He et al. 2021, arXiv 2111.06377.
"""

# B batch, T text tokens, P patches, X numbers of a patch, D model size.

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jscale.contrastive import FIELDS, check_batch
from jscale.errors import ConfigError
from jscale.losses import Batch, Terms
from jscale.masked_tokens import MaskedTokens, by_content, rows_of, vocab_of
from jscale.models.model import Model, Params


@runtime_checkable
class Painting(Protocol):
    """A network that reads text and images with hidden patches, and guesses pixels and tokens.

    It gives hidden states `image` [B, 1 + P, D] and `text` [B, T, D].
    """

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        images: Float[Array, "B H W C"],
        masked: Bool[Array, "B P"],
        segments: Int[Array, "B T"],
    ) -> Any: ...

    def cut(self, images: Float[Array, "B H W C"]) -> Float[Array, "B P X"]: ...

    def paint(self, hidden: Float[Array, "B Q D"]) -> Float[Array, "B P X"]: ...

    def logprobs(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], *more: Any
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]: ...


@dataclass(frozen=True)
class MaskedImageText:
    """Cross-entropy of hidden tokens, and squared errors of the pixels of hidden patches.

    Each row hides something of one kind, at even odds: tokens of its text, guessed from the others
    and the whole image; or patches of its image, guessed from the others and the whole text. The
    loss is the mean over hidden tokens and patches together, a patch's being its mean squared error
    times `pixels`. Training hides anew each time; evaluation by the text of a row, always the same.

    Raises:
        ConfigError: a rate that is not above 0 and below 1, or a weight that is not positive.
    """

    reads: ClassVar[tuple[str, ...]] = FIELDS

    text: MaskedTokens  # how tokens are hidden: MaskedTokens(mask_token=…, rate=0.4)
    patches: float = 0.4  # the part of the patches that is hidden
    pixels: float = 1.0  # what a patch's error is multiplied by beside a token's

    def __post_init__(self) -> None:
        if not 0 < self.patches < 1:
            raise ConfigError(f"patches must be above 0 and below 1, not {self.patches}")
        if not self.pixels > 0:
            raise ConfigError(f"pixels must be positive, not {self.pixels}")

    def __call__(self, model: Model, params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        check_batch(batch, "MaskedImageText")
        network = model.bind(params, jax.random.fold_in(rng, 1))
        if not isinstance(network, Painting):
            raise ConfigError(
                "MaskedImageText needs a model that guesses pixels, such as"
                f" BEiT3(pixels=Pixels()), not a {type(model.config).__name__}"
            )
        tokens, segments, images = batch["inputs"], batch["segments"], batch["images"]
        keys = rows_of(rng, tokens) if model.draws else by_content(tokens)
        wanted = network.cut(images)
        of_text, masked = self.turns(keys, segments > 0, wanted.shape[1])
        seen, chosen = self.text.hide(tokens, of_text, keys, vocab_of(model))
        out = network(seen, images, masked, segments)
        token_weights = chosen.astype(jnp.float32)
        logp, _ = network.logprobs(out.text, tokens, token_weights)
        errors = jnp.square(network.paint(out.image).astype(jnp.float32) - wanted).mean(-1)
        weights = jnp.concatenate([token_weights, masked.astype(jnp.float32)], 1)
        losses = jnp.concatenate([-logp, self.pixels * errors], 1)
        hit = lambda x, weights: ((x * weights).sum(), weights.sum())
        metrics = {"nll": hit(-logp, token_weights), "pixel_error": hit(errors, 1.0 * masked)}
        return Terms(losses, weights, metrics)

    def turns(
        self, keys: Any, real: Bool[Array, "B T"], count: int
    ) -> tuple[Bool[Array, "B T"], Bool[Array, "B P"]]:
        """The tokens that may be hidden and the patches that are: of each row, of one kind."""

        def row(key: Any) -> tuple[Array, Array]:
            which, where = jax.random.split(jax.random.fold_in(key, 1))
            return jax.random.bernoulli(which), jax.random.uniform(where, (count,)) < self.patches

        text, hidden = jax.vmap(row)(keys)
        there = real.any(1)
        return real & text[:, None], hidden & (there & ~text)[:, None]
