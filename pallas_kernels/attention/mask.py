"""Which keys a query may see, as a value."""

# B batch, T query length, S key length.

from dataclasses import dataclass

from jaxtyping import Array, Bool, Int

from jscale.errors import ConfigError


@dataclass(frozen=True)
class Mask:
    """Keys at or before the query's position (`causal`), and no further back than `window`.

    Positions, not indices, are compared, so that packed rows and caches need no other mask.

    Raises:
        ConfigError: a window below 1, or one that is not causal.
    """

    causal: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and (self.window < 1 or not self.causal):
            raise ConfigError(
                f"a sliding window must be causal and at least 1 token long, not {self}"
            )

    def allows(self, queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Bool[Array, "B T S"]:
        """Whether the query at one position may see the key at another."""
        back = queries[:, :, None] - keys[:, None, :]
        allowed = back >= 0 if self.causal else back == back
        return allowed if self.window is None else allowed & (back < self.window)


CAUSAL = Mask()
FULL = Mask(causal=False)
