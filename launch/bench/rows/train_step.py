"""A whole train step of a small Llama, with attention by ours or by JAX's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jscale import train
from jscale.compiled import memory_of
from jscale.launch.bench.subject import Contender, Program, Ready, Subject, Values, Work
from jscale.losses import NextToken
from jscale.mesh import Layout, make_mesh
from jscale.models import Llama, Model
from jscale.optim import AdamW, Constant
from jscale.pallas_kernels.attention import Mask, Places, Scores
from jscale.pallas_kernels.attention.choice import OPERATION
from jscale.pallas_kernels.implementation import Implementation, instead
from jscale.precision import Precision

OURS, THEIRS = "jscale", "jax.nn xla"


@dataclass(frozen=True)
class Case:
    """A model and a batch; activations are kept."""

    length: int = 512
    batch: int = 4
    dim: int = 512
    layers: int = 4
    heads: int = 8
    hidden: int = 1408
    vocabulary: int = 8192
    dtype: str = "float32"

    def __str__(self) -> str:
        return (
            f"{self.batch} × {self.length:,} tokens, {self.layers} layers of {self.dim},"
            f" {self.heads} heads, vocabulary {self.vocabulary:,}, {self.dtype}"
        )

    @property
    def model(self) -> Llama:
        sizes = self.vocabulary, self.dim, self.layers, self.heads, self.heads, self.hidden
        return Llama(*sizes, remat="none")


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """The same 2,048 tokens in short and in long rows; more of them on accelerators."""
    if quick:
        return [Case(256, 1, 32, 2, 2, 64, 256)]
    if platform == "cpu":
        return [Case(512, 4), Case(2048, 1)]
    return [Case(8192, 1, 2048, 8, 16, 5632, 32_000, "bfloat16")]


def inputs(case: Case) -> dict[str, Any]:
    """Tokens."""
    shape = case.batch, case.length + 1
    tokens = np.random.default_rng(0).integers(0, case.vocabulary, shape, np.int32)
    weights = np.ones((case.batch, case.length), np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def work(case: Case) -> dict[str, Work]:
    """Six FLOPs for each weight of a product and token, and attention's."""
    block = 4 * case.dim**2 + 3 * case.dim * case.hidden
    weights = case.layers * block + case.dim * case.vocabulary
    pairs = case.batch * case.length * (case.length + 1) / 2
    attention = 3.5 * 4 * case.layers * pairs * case.dim
    return {"training": Work(6.0 * weights * case.batch * case.length + attention, 0.0)}


def task(case: Case) -> train.Task:
    """What is trained, on one device."""
    model = Model(case.model)
    optimizer = AdamW(1e-3, Constant()).build(model.axes, model.shapes, 1000)
    mesh = make_mesh(devices=jax.devices()[:1])
    precision = Precision(compute=case.dtype)
    return train.Task(model, optimizer, NextToken(), Layout(mesh), precision)


def by_jax(q: Any, k: Any, v: Any, mask: Mask, scores: Scores, places: Places) -> tuple[Any, None]:
    """JAX's public function, for the causal rows of this model."""
    assert mask == Mask() and places == Places()
    out = jax.nn.dot_product_attention(
        q, k, v, scale=scores.of(q.shape[-1]), is_causal=True, implementation="xla"
    )
    return out, None


def step(case: Case, other: Implementation | None) -> Contender:
    """The step, with attention by another than jscale would choose."""

    def ready(inputs: Mapping[str, Any], passes: Sequence[str]) -> Ready:
        here = task(case)
        where = train.sharding_of(here.layout)
        batch = {n: jax.device_put(x, where(n, x.shape)) for n, x in inputs.items()}
        with instead({} if other is None else {"attention": other}):
            state = train.init(here, jax.random.key(0))
            program = train.make_step(here).lower(state, batch).compile()
        held: list[Any] = [state]

        def call() -> Any:
            held[0], metrics = program(held[0], batch)
            return metrics, held[0]

        def values() -> Values:  # of the first step: the first moment is its gradient
            (metrics, state), name = call(), jax.tree_util.keystr
            flat = jax.tree_util.tree_leaves_with_path(state.optimizer[1][0].mu)
            found = {f"gradient of {name(path)}": np.asarray(x) for path, x in flat}
            return {"loss": np.asarray(metrics["loss"]), **found}

        memory = memory_of(program)
        size = None if memory is None else memory.temporaries
        return Ready({"training": Program(call, jax.block_until_ready, size)}, values)

    return ready


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """Of the step with attention by its reference."""
    return step(case, OPERATION.implementations["reference"])(given, ["training"]).values()


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ours as it comes."""
    return {OURS: step(case, None)}


def rivals(case: Case) -> dict[str, Contender | str]:
    """With JAX's public function for attention."""
    return {THEIRS: step(case, Implementation(by_jax))}


SUBJECT = Subject(
    "train_step",
    Case,
    cases,
    inputs,
    work,
    values,
    contenders,
    chosen=lambda case: OURS,
    rivals=rivals,
    limits={"float32": 1e-4, "bfloat16": 5e-2},  # of a whole model, with AdamW's moments
)
