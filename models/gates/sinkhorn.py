"""Tokens and experts matched as a whole: both sides of the assignment are even."""

# S tokens of a group, E experts.

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError
from jscale.models.gates.priced import Priced
from jscale.models.gates.topk import TopK


class Marginals(NamedTuple):
    """log u of tokens and log v of experts, how far rows are off, and after how many rounds."""

    rows: Float[Array, " S"]
    columns: Float[Array, " E"]
    error: Float[Array, ""]
    rounds: Int[Array, ""]


@dataclass(frozen=True)
class Sinkhorn(Priced):
    """In training, the best experts by diag(u) · exp(scores) · diag(v) with even rows and columns.

    In evaluation, which must not know later tokens, those of the best scores. Source: Clark et al.
    2022, S-BASE, arXiv 2202.01169; Lewis et al. 2021, BASE, arXiv 2103.16716; as in Megatron Core.

    Raises:
        ConfigError: as `Priced` says, or a tolerance or a number of rounds that is none.
    """

    by: TopK = TopK(1, "sigmoid", normalise=False)  # how many, and their weight
    tolerance: float = 1e-4  # of the sum of a row, relative to what it should be
    rounds: int = 100  # at most, where scores are so far apart that it takes many

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"Sinkhorn.tolerance must be from 0 to below 1: {self.tolerance}")
        if self.rounds < 1:
            raise ConfigError(f"Sinkhorn.rounds must be at least 1, not {self.rounds}")

    def prices(self, scores: Float[Array, "S E"], real: Bool[Array, " S"]) -> Float[Array, " E"]:
        """−log v. What multiplies a token's whole row changes nothing for it."""
        return -self.solve(scores, real).columns

    def solve(self, scores: Float[Array, "S E"], real: Bool[Array, " S"]) -> Marginals:
        """Factors by which rows sum to 1 / tokens, and columns, of tokens that count, to 1 / E."""
        S, E = scores.shape
        tokens = jnp.log(jnp.maximum(real.sum(), 1).astype(jnp.float32))
        some = real.any()

        def turn(now: Marginals) -> Marginals:
            rows = -tokens - logsumexp(scores + now.columns, 1)
            known = jnp.where(real[:, None], scores + rows[:, None], -jnp.inf)
            columns = jnp.where(some, -jnp.log(E) - logsumexp(known, 0), 0.0)
            sums = jnp.exp(logsumexp(scores + columns, 1) + rows + tokens)
            error = jnp.where(real, jnp.abs(sums - 1), 0.0).max(initial=0.0)
            return Marginals(rows, columns, error, now.rounds + 1)

        first = Marginals(jnp.zeros(S), jnp.zeros(E), jnp.array(jnp.inf), jnp.array(0))
        ends = lambda now: (now.error > self.tolerance) & (now.rounds < self.rounds)
        with jax.named_scope("sinkhorn"):
            return lax.while_loop(ends, turn, first)
