"""A recipe: everything a run needs, as one value."""

from dataclasses import dataclass
from typing import Literal

from jscale.checkpoint.policy import Checkpoints
from jscale.data.corpus import TextData
from jscale.errors import ConfigError
from jscale.generate import Sampling
from jscale.guard import Guard
from jscale.losses import Loss, NextToken
from jscale.mesh import MeshShape, Rules
from jscale.metrics import Logging
from jscale.models.model import Config
from jscale.optim import Optimizer
from jscale.precision import Precision


@dataclass(frozen=True)
class Evaluation:
    """The loss on held-out text, every so many steps, over at most so many batches."""

    every: int = 100
    batches: int | None = 8  # None: all of them

    def __post_init__(self) -> None:
        if self.every < 1 or (self.batches is not None and self.batches < 1):
            raise ConfigError(f"evaluation needs every >= 1 and batches >= 1, not {self}")


@dataclass(frozen=True)
class Samples:
    """Continuations of prompts, written every so many steps."""

    prompts: tuple[str, ...]
    every: int = 100
    length: int = 64  # tokens
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if self.every < 1 or self.length < 1 or not self.prompts or not all(self.prompts):
            raise ConfigError(f"samples need prompts, every >= 1 and length >= 1 token, not {self}")


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs. Each part checks itself; here it is checked that they fit together.

    Raises:
        ConfigError: two parts do not fit.
    """

    name: str  # of the run: it lives in runs/<name> unless another folder is asked for
    model: Config
    data: TextData
    optimizer: Optimizer
    steps: int  # of training in all
    loss: Loss = NextToken()
    mesh: MeshShape | Literal["auto"] = "auto"
    rules: Rules = Rules()
    precision: Precision = Precision()
    accumulate: int = 1  # microbatches whose gradients make one step
    guard: Guard = Guard()
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Evaluation | None = Evaluation()
    samples: Samples | None = None
    logging: Logging = Logging()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, not {self.steps}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 2**32 - 1, not {self.seed}")
        if self.accumulate < 1:
            raise ConfigError(f"accumulate must be at least 1, not {self.accumulate}")
        if not self.name or set(self.name) & set('/\\:*?"<>|') or self.name.startswith("."):
            raise ConfigError(f"name={self.name!r} cannot be the name of a folder")
        if self.data.batch % self.accumulate:
            raise ConfigError(
                f"data.batch={self.data.batch} must be a multiple of accumulate={self.accumulate}"
            )
        self._check_vocabulary()
        self._check_mesh()

    def _check_vocabulary(self) -> None:
        tokens = getattr(self.data.tokenizer, "vocab", None)
        vocab = getattr(self.model, "vocab", None)
        if isinstance(tokens, int) and isinstance(vocab, int) and tokens > vocab:
            raise ConfigError(
                f"data.tokenizer has {tokens} tokens and model.vocab={vocab}: make model.vocab at"
                f" least {tokens}"
            )

    def _check_mesh(self) -> None:
        if self.mesh == "auto":
            return
        rows = self.data.batch // self.accumulate
        split = self.rules.activations.get("batch") or ()
        ways = 1
        for axis in (split,) if isinstance(split, str) else split:
            ways *= getattr(self.mesh, axis, 1)
        if rows % ways:
            raise ConfigError(
                f"data.batch={self.data.batch} over accumulate={self.accumulate} leaves {rows}"
                f" rows at a time, which do not divide over the {ways} ways in which mesh"
                f" ({self.mesh}) splits a batch"
            )
