"""Layers in two copies, one for the tokens of images and one for those of text.

The two kinds of tokens are carried apart, and each goes through its own copy: nothing is computed
twice and nothing is cut, but where all tokens meet in attention.
Source: Bao et al. 2021 (VLMo), arXiv 2111.02358; Wang et al. 2022 (BEiT-3), arXiv 2208.10442.
"""

# B batch, P image tokens, T text tokens, D model size.

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Halves(NamedTuple):
    """Something of image tokens and the same of text tokens; None where there are none."""

    image: Any = None  # Float[Array, "B P D"], or a tree of such
    text: Any = None  # Float[Array, "B T D"], or a tree of such

    def map(self, change: Callable[..., Any], *others: "Halves") -> "Halves":
        """`change` of the halves that are there, and of the same halves of others."""
        parts = zip(self, *others, strict=True)
        return Halves(*(None if part[0] is None else change(*part) for part in parts))

    @property
    def joined(self) -> Any:
        """All tokens, those of the image first."""
        there = [half for half in self if half is not None]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *there)

    def apart(self, x: Any) -> "Halves":
        """`x` of all tokens, cut where these halves meet."""
        if self.image is None or self.text is None:
            return self.map(lambda _: x)
        cut = self.image.shape[1]
        return Halves(x[:, :cut], x[:, cut:])


class Ways(nnx.Module):
    """Two copies of a layer."""

    def __init__(self, make: Callable[[], nnx.Module]):
        self.image: Any = make()
        self.text: Any = make()

    @property
    def both(self) -> Halves:
        return Halves(self.image, self.text)

    def __call__(self, halves: Halves) -> Halves:
        """Each half through its copy."""
        return halves.map(lambda x, layer: layer(x), self.both)
