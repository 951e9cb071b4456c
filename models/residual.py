"""How branches are added to the residual stream: where norms stand, and what is scaled.

A branch f is added as α · x + f(norm x) or as norm(α · x + f(x)). `gain` multiplies the first
weights of values, outputs and feed-forwards of a stack.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Stage:
    """One stack of a network: how many encoder and decoder layers there are, and which it is."""

    encoder: int = 0  # encoder layers of the network, 0 where it is a decoder only
    decoder: int = 0  # decoder layers of the network, 0 where it is an encoder only
    decodes: bool = False  # whether this stack is the decoder

    @property
    def layers(self) -> int:
        """How many layers this stack has."""
        return self.decoder if self.decodes else self.encoder

    @property
    def both(self) -> bool:
        return self.encoder > 0 and self.decoder > 0


@runtime_checkable
class Residual(Protocol):
    """A residual scheme.

    `before` says whether the norm stands before the branch (and one at the end of the stack), or
    after the sum; `inner` whether branches have norms within. Of cross-attention the gain is
    `cross`.
    """

    @property
    def before(self) -> bool: ...

    @property
    def inner(self) -> bool: ...

    def alpha(self, stage: Stage) -> float: ...

    def gain(self, stage: Stage) -> float: ...

    def cross(self, stage: Stage) -> float: ...


@dataclass(frozen=True)
class _Plain:
    @property
    def inner(self) -> bool:
        return False

    def alpha(self, stage: Stage) -> float:
        """What multiplies the stream before a branch is added."""
        return 1.0

    def gain(self, stage: Stage) -> float:
        """What multiplies the first weights of values, outputs and feed-forwards."""
        return 1.0

    def cross(self, stage: Stage) -> float:
        """`gain`, of cross-attention."""
        return self.gain(stage)


@dataclass(frozen=True)
class PreNorm(_Plain):
    """x + f(norm x), as in GPT-2."""

    @property
    def before(self) -> bool:
        return True


@dataclass(frozen=True)
class PostNorm(_Plain):
    """norm(x + f(x)), as in the Transformer of 2017 (arXiv 1706.03762)."""

    @property
    def before(self) -> bool:
        return False


@dataclass(frozen=True)
class DeepNorm(_Plain):
    """norm(α x + f(x)) with smaller first weights, which trains at a thousand layers.

    Source: Wang et al. 2022, arXiv 2203.00555.
    """

    @property
    def before(self) -> bool:
        return False

    def alpha(self, stage: Stage) -> float:
        if not stage.both:
            return (2 * stage.layers) ** 0.25
        if stage.decodes:
            return (3 * stage.decoder) ** 0.25
        return 0.81 * (stage.encoder**4 * stage.decoder) ** 0.0625

    def gain(self, stage: Stage) -> float:
        if not stage.both:
            return (8 * stage.layers) ** -0.25
        if stage.decodes:
            return (12 * stage.decoder) ** -0.25
        # The paper's 0.87, by the quotient that TorchScale has.
        return 1.15 * (stage.encoder**4 * stage.decoder) ** -0.0625


@dataclass(frozen=True)
class SubLN(_Plain):
    """x + f(norm x), with a norm before the last matrix of f and larger first weights (Magneto).

    Source: Wang et al. 2022, arXiv 2210.06423.
    """

    @property
    def before(self) -> bool:
        return True

    @property
    def inner(self) -> bool:
        return True

    def gain(self, stage: Stage) -> float:
        if not stage.both:
            return math.sqrt(math.log(2 * stage.layers))
        if stage.decodes:
            return math.sqrt(math.log(3 * stage.decoder))
        return math.sqrt(math.log(3 * stage.decoder) * math.log(2 * stage.encoder) / 3)

    def cross(self, stage: Stage) -> float:
        return 1.0
