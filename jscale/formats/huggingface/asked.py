"""What a network and its release are asked, so that what both say can be compared."""

# B rows, T length.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LENGTH = 32  # tokens of a row, where the network is made for so many

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """`inputs` are arguments of theirs, drawn at random for a config of ours and so many rows.

    `says` is what our network makes of them, by the names that outputs have there.
    """

    inputs: Callable[[Any, int, np.random.Generator], Inputs]
    says: Callable[[Any, Any], dict[str, Any]]


def tokens(config: Any, rows: int, draw: np.random.Generator) -> Inputs:
    """Rows of random tokens."""
    return {"input_ids": draw.integers(0, config.vocab, (rows, LENGTH))}


def _logits(network: Any, inputs: Any) -> dict[str, Any]:
    return {"logits": network.unembed(network(inputs["input_ids"]).hidden)}


CAUSAL = Asked(tokens, _logits)


def images(patches: Any, rows: int, draw: np.random.Generator) -> np.ndarray:
    """Random images as theirs are, channels first."""
    shape = (rows, patches.channels, patches.image, patches.image)
    return draw.standard_normal(shape, np.float32)


def turned(pixels: Any) -> Any:
    """Images as ours are, channels last."""
    return pixels.transpose(0, 2, 3, 1)
