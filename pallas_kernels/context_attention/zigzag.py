"""The order of a sequence in which a causal mask gives every device the same work."""

# B batch, T the whole sequence's length.

from typing import Any

import numpy as np
from jaxtyping import Int

from jscale.errors import ConfigError


def zigzag(x: Any, ways: int) -> Any:
    """An array [B, T, ...] in the order in which device d's part is the chunks d and 2·ways−1−d.

    T is cut into 2·ways chunks. Give the positions the same order, that masks are right. NumPy
    arrays stay in the host's memory: a loader can reorder what it reads.

    Raises:
        ConfigError: a length that does not divide into 2·ways chunks.
    """
    return _reorder(x, order(ways))


def unzigzag(x: Any, ways: int) -> Any:
    """The inverse of `zigzag`. Raises as it does."""
    return _reorder(x, np.argsort(order(ways)))


def order(ways: int) -> Int[np.ndarray, " chunks"]:
    """Which of the 2·ways chunks stands at each place."""
    first = np.arange(ways)
    return np.stack([first, 2 * ways - 1 - first], 1).reshape(-1)


def _reorder(x: Any, chunks: np.ndarray) -> Any:
    B, T, *rest = x.shape
    if T % chunks.size:
        raise ConfigError(
            f"zigzag: a length of {T} does not divide into {chunks.size} chunks, two for each of"
            f" {chunks.size // 2} devices"
        )
    return x.reshape(B, chunks.size, T // chunks.size, *rest)[:, chunks].reshape(x.shape)
