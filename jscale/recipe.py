"""A recipe: everything a run needs, as one value."""

from dataclasses import dataclass
from typing import Literal

from jscale.checkpoint.policy import Checkpoints
from jscale.data.dataset import Data
from jscale.errors import ConfigError
from jscale.evaluation import EvaluationTask
from jscale.evaluation.examination import check_titles
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
    """The loss on held-out text, and tasks, every so many steps and after the last."""

    every: int = 100  # steps
    batches: int | None = 8  # of held-out text at most; None: all of them
    tasks: tuple[EvaluationTask, ...] = ()  # such as MultipleChoice("questions.jsonl")

    def __post_init__(self) -> None:
        if self.every < 1 or (self.batches is not None and self.batches < 1):
            raise ConfigError(f"evaluation needs every >= 1 and batches >= 1, not {self}")
        for task in self.tasks:
            if not isinstance(task, EvaluationTask):
                raise ConfigError(
                    f"evaluation.tasks holds {task!r:.80}, which is no task, such as"
                    ' MultipleChoice("questions.jsonl")'
                )
        check_titles(self.tasks)


@dataclass(frozen=True)
class Samples:
    """Continuations of prompts, written every so many steps."""

    prompts: tuple[str, ...]  # texts to continue
    every: int = 100  # steps
    length: int = 64  # tokens
    sampling: Sampling = Sampling()  # how tokens are drawn

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
    model: Config  # the network's sizes
    data: Data  # what it learns from
    optimizer: Optimizer  # how it learns
    steps: int  # of training in all
    loss: Loss = NextToken()  # what it learns
    mesh: MeshShape | Literal["auto"] = "auto"  # how devices are split; auto: as fits them
    rules: Rules = Rules()  # which dimension goes over which axis of the mesh
    precision: Precision = Precision()  # dtypes of weights, activations, gradients
    accumulate: int = 1  # microbatches whose gradients make one step
    guard: Guard = Guard()  # which steps are left out, and when to give up
    checkpoints: Checkpoints = Checkpoints()  # when to save, what to keep
    evaluation: Evaluation | None = Evaluation()  # what is measured on the way; None: nothing
    samples: Samples | None = None  # what is written on the way; None: nothing
    logging: Logging = Logging()  # which numbers go where
    seed: int = 0  # of weights, order and sampling

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
        # A file's are not known before it is read.
        tokens = getattr(self.data.tokenizer, "vocab", None)
        if isinstance(tokens, int):
            check_vocabulary(self.model, tokens)
        self._check_mesh()

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


def check_vocabulary(model: Config, tokens: int) -> None:
    """Check that a model tells so many tokens apart.

    Raises:
        ConfigError: it does not.
    """
    for field in ("vocab", "source_vocab"):
        vocab = getattr(model, field, None)
        if isinstance(vocab, int) and tokens > vocab:
            raise ConfigError(
                f"data.tokenizer has {tokens} tokens and model.{field}={vocab}: make model.{field}"
                f" at least {tokens}"
            )
