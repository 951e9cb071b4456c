"""Which keys a query may see, as a value."""

# B batch, T query length, S key length.

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Bool, Int

from jscale.errors import ConfigError


@dataclass(frozen=True)
class Mask:
    """Keys near enough to the query's position and, if `causal`, not after it.

    Positions, not indices, are compared, so that packed rows and caches need no other mask.

    Attributes:
        causal: only keys at or before the query.
        window: only keys fewer than so many positions away: of a causal mask the last `window`
            keys, the query's own among them.
        chunk: only keys of the same run of so many positions (chunked-local attention).
        prefix: keys at the first so many positions are seen by all (prefix-LM). Where rows have
            prefixes of their own length, give equal positions to the tokens of each prefix.

    Raises:
        ConfigError: a window or chunk below 1, or a prefix below 0.
    """

    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    prefix: int = 0

    def __post_init__(self) -> None:
        for name in ("window", "chunk"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigError(f"a mask's {name} must be at least 1 token long, not {size}")
        if self.prefix < 0:
            raise ConfigError(f"a mask's prefix must be 0 tokens or more, not {self.prefix}")

    def allows(self, queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Bool[Array, "B T S"]:
        """Whether the query at one position may see the key at another."""
        return self.sees(queries[:, :, None], keys[:, None, :])

    def sees(self, query: Any, key: Any) -> Any:
        """Whether the query at a position sees the key at one, elementwise."""
        back = query - key
        seen = back >= 0 if self.causal else back == back
        if self.window is not None:
            seen &= back < self.window
            if not self.causal:
                seen &= back > -self.window
        if self.chunk is not None:
            seen &= query // self.chunk == key // self.chunk
        return seen | (key < self.prefix) if self.prefix else seen

    def some(self, low: Any, high: Any, least: Any, most: Any) -> Any:
        """False only where no query in [low, high] sees any key in [least, most], elementwise."""
        seen = high >= least if self.causal else high == high
        if self.window is not None:
            seen &= low - most < self.window
            if not self.causal:
                seen &= least - high < self.window
        if self.chunk is not None:
            seen &= (low // self.chunk <= most // self.chunk) & (
                high // self.chunk >= least // self.chunk
            )
        return seen | (least < self.prefix) if self.prefix else seen

    def every(self, low: Any, high: Any, least: Any, most: Any) -> Any:
        """True only where all queries in [low, high] see all keys in [least, most], elementwise."""
        seen = low >= most if self.causal else low == low
        if self.window is not None:
            seen &= high - least < self.window
            if not self.causal:
                seen &= most - low < self.window
        if self.chunk is not None:
            first = low // self.chunk
            seen &= (
                (high // self.chunk == first)
                & (least // self.chunk == first)
                & (most // self.chunk == first)
            )
        return seen | (most < self.prefix) if self.prefix else seen


CAUSAL = Mask()
FULL = Mask(causal=False)
