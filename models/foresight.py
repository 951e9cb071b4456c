"""Multi-token prediction: after the blocks, modules that each predict one token further ahead.

Source: DeepSeek-AI 2024, DeepSeek-V3, arXiv 2412.19437, section 2.2.
"""

# B batch, T length, D model size, K tokens ahead.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.mesh import constrain
from jscale.models.causal import Causal
from jscale.models.decoder import Context, Foreseen, context_of, places_of
from jscale.models.draws import stream
from jscale.models.feed import apart
from jscale.models.kinds import Kinds
from jscale.models.layers import RMSNorm, Stack, project, weight


def check_layers(layers: int, dense: int, ahead: int) -> None:
    """Raises ConfigError unless so many of the layers can be dense, and none or more follow."""
    if not 0 <= dense <= layers:
        raise ConfigError(f"dense must be from 0 to the {layers} layers, not {dense}")
    if ahead < 0:
        raise ConfigError(f"ahead must not be negative, not {ahead}")


class Depth(nnx.Module):
    """A token and what was known before it, brought together and sent through one more block."""

    def __init__(self, c: Any, rngs: nnx.Rngs):
        self.token_norm, self.hidden_norm = RMSNorm(c.dim, c.eps), RMSNorm(c.dim, c.eps)
        self.join = weight(rngs, 2 * c.dim, embed=2 * c.dim, head=c.dim)
        self.blocks = Stack(partial(c.block, "sparse"), 1, rngs, c.remat)
        self.norm = RMSNorm(c.dim, c.eps)

    def __call__(
        self, tokens: Float[Array, "B T D"], hidden: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
        """Normed hidden states from embedded tokens and those before them, and reports."""
        both = jnp.concatenate([self.token_norm(tokens), self.hidden_norm(hidden)], -1)
        x = constrain(project("bte,ed->btd", both, self.join[...]), "batch", "length", "embed")
        x, (reports, _) = self.blocks(x, context)
        return self.norm(x), reports


class Foresight(Causal):
    """A causal language model that can also look `c.ahead` tokens further than the next one."""

    def __init__(self, c: Any, kinds: Kinds, rngs: nnx.Rngs, compute: DTypeLike):
        super().__init__(c, kinds, rngs, compute)
        self.depths = nnx.List([Depth(c, rngs) for _ in range(c.ahead)])

    @jax.named_scope("foresee")
    def foresee(
        self,
        hidden: Float[Array, "B T D"],
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Foreseen:
        """As `Foreseeing` says: module k joins a token and what k tokens earlier was known of it.

        So the first k tokens of a segment have nothing to join. They count as padding.
        """
        key = stream(self.key, "foresee")
        context, embedded = context_of(tokens, positions, segments, key), self.embed(tokens)
        segments = jnp.ones_like(tokens) if segments is None else segments
        place, found, reports, penalty, loads = places_of(segments), [], {}, 0.0, {}
        for k, depth in enumerate(self.depths, 1):
            here = jnp.where(place < k, 0, segments)
            before = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
            mine = context._replace(segments=here, key=stream(key, str(k)))
            hidden, reported = depth(embedded, before, mine)
            told = apart(reported)
            reports |= {f"{name}_ahead_{k}": value for name, value in told.reports.items()}
            penalty, loads = penalty + told.penalty, loads | told.loads
            found.append((hidden, here != 0))
        return Foreseen(tuple(found), reports, penalty, loads)
