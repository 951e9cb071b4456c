"""Models of which it is known what they must score."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from run.tiny import MODEL

from jscale import train
from jscale.data import Bytes, TextData, Texts
from jscale.data.corpus import Corpus
from jscale.data.packing import Whole
from jscale.evaluation.subject import Subject
from jscale.mesh import MeshShape, make_mesh
from jscale.models.model import Model, Params
from jscale.optim import AdamW
from jscale.prepare import task_of
from jscale.recipe import Recipe

ALONE = MeshShape()
TEXTS = tuple(f"{n} grüne Flaschen an der Wand 🍾\n" for n in range(40))
VOCAB = MODEL.vocab


def recipe(cache: Path, mesh: MeshShape = ALONE, **data: Any) -> Recipe:
    """Short documents with letters of one, two and four bytes, half of them held out."""
    settings: dict[str, Any] = dict(
        tokenizer=Bytes(), length=48, batch=8, heldout=0.5, packing=Whole(), cache=str(cache)
    )
    model = data.pop("model", MODEL)
    text = TextData(Texts(TEXTS), **{**settings, **data})
    return Recipe("tiny", model, text, AdamW(peak=1e-2), steps=10, mesh=mesh)


def opened(cache: Path, mesh: MeshShape = ALONE, **data: Any) -> tuple[train.Task, Corpus]:
    about = recipe(cache, mesh, **data)
    corpus = about.data.open(seed=0)
    assert isinstance(corpus, Corpus)
    return task_of(about, make_mesh(mesh)), corpus


def random_params(task: train.Task, seed: int = 0) -> Params:
    return task.model.init(jax.random.key(seed), task.layout)


def uniform_params(task: train.Task) -> Params:
    """Weights of zero: every token is as likely as any other, whatever came before."""
    return jax.tree.map(lambda x: x * 0, random_params(task))


def subject(cache: Path, mesh: MeshShape = ALONE, places: int = 512, **data: Any) -> Subject:
    """A model that has learnt nothing, on a mesh."""
    task, corpus = opened(cache, mesh, **data)
    return Subject(task.model, random_params(task), corpus.tokenizer, task.layout, 128, places)


@lru_cache
def plain(model: Model) -> Any:
    """The network without a mesh, on one row; compiled for one width."""
    return jax.jit(lambda params, ids: (n := model.bind(params)).unembed(n(ids).hidden)[0])


def logits_after(who: Subject, ids: list[int]) -> np.ndarray:
    """What a plain call gives after each token; what stands to the right of one cannot matter."""
    row = np.zeros((1, 96), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(plain(who.model)(who.params, row), np.float64)[: len(ids)]


def by_hand(who: Subject, prompt: str, continuation: str) -> np.ndarray:
    """The log-probability of each byte of a continuation."""
    ids = who.tokenizer.encode_documents([prompt + continuation])[0][:-1]
    logits = logits_after(who, ids[:-1])
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = logp[np.arange(len(ids) - 1), ids[1:]]
    return each[-len(continuation.encode()) :]
