"""Perplexity and bits per byte are what one gets by hand, however they are computed."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from close import LAYOUT
from evaluation.subjects import VOCAB, opened, random_params, uniform_params
from run.tiny import MODEL

from jscale.data import BytePairs, Split, Texts, Whole
from jscale.data.corpus import Corpus
from jscale.data.heldout import document_hash
from jscale.evaluation.heldout import heldout_means, why_no_bytes
from jscale.evaluation.token_bytes import UnknownBytes, token_bytes
from jscale.mesh import MeshShape
from jscale.score import score


def heldout_texts(corpus: Corpus) -> list[str]:
    """The documents that are held out, by their hash and not by the stream."""
    texts = corpus.config.source
    assert isinstance(texts, Texts)
    share = corpus.config.heldout * 2**64
    return [text for text in texts.texts if document_hash(text) < share]


def test_bits_per_byte_are_those_computed_by_hand(tmp_path: Path) -> None:
    task, corpus = opened(tmp_path)
    params, texts = random_params(task), heldout_texts(corpus)
    assert 5 < len(texts) < 35
    found = heldout_means(task, params, corpus)
    # The bos is no target; the eos counts as a token and adds no byte.
    logprobs = score(task.model, params, corpus.tokenizer.encode_documents(texts), task.layout)
    nats = -sum(float(row.astype(np.float64).sum()) for row in logprobs)
    in_bytes = sum(len(text.encode()) for text in texts)
    assert found["bytes"] == in_bytes
    assert found["tokens"] == in_bytes + len(texts)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / in_bytes, rel=LAYOUT)
    assert found["perplexity"] == pytest.approx(math.exp(nats / found["tokens"]), rel=LAYOUT)
    assert found["nll"] == found["loss"] == pytest.approx(nats / found["tokens"], rel=LAYOUT)


WIDER = {"tokenizer": BytePairs(300), "model": replace(MODEL, vocab=300)}


@pytest.mark.parametrize("data, vocab", [({}, VOCAB), (WIDER, 300)], ids=["bytes", "pairs"])
def test_a_uniform_model_has_the_known_value(
    tmp_path: Path, data: dict[str, Any], vocab: int
) -> None:
    task, corpus = opened(tmp_path, **data)
    found = heldout_means(task, uniform_params(task), corpus)
    texts = heldout_texts(corpus)
    tokens = sum(len(ids) + 1 for ids in corpus.tokenizer.encode_batch(texts))
    in_bytes = sum(len(text.encode()) for text in texts)
    assert (found["tokens"], found["bytes"]) == (tokens, in_bytes)
    assert found["perplexity"] == pytest.approx(vocab, rel=LAYOUT)
    assert found["bits_per_byte"] == pytest.approx(tokens * math.log2(vocab) / in_bytes, rel=LAYOUT)


def test_the_batch_and_the_mesh_change_nothing(tmp_path: Path) -> None:
    task, corpus = opened(tmp_path)
    wanted = heldout_means(task, random_params(task), corpus)
    for mesh, batch in (
        (MeshShape(), 3),
        (MeshShape(), 64),
        (MeshShape(fsdp=8), 8),
        (MeshShape(data=2, tensor=2, context=2), 4),
    ):
        task, corpus = opened(tmp_path, mesh, batch=batch)
        found = heldout_means(task, random_params(task), corpus)
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            assert value == pytest.approx(wanted[name], rel=LAYOUT), (mesh, batch, name)
        assert (found["bytes"], found["tokens"]) == (wanted["bytes"], wanted["tokens"])


def test_the_packing_changes_no_count_and_no_value_but_by_the_context_that_it_cuts(
    tmp_path: Path,
) -> None:
    found = []
    for packing, length in ((Whole(), 48), (Split(), 48), (Split(), 7), (Whole(), 96)):
        task, corpus = opened(tmp_path, packing=packing, length=length)
        uniform = heldout_means(task, uniform_params(task), corpus)
        found.append([uniform[x] for x in ("bytes", "tokens", "bits_per_byte", "perplexity")])
    np.testing.assert_allclose(found, [found[0]] * 4, rtol=LAYOUT)
    whole = [opened(tmp_path, packing=Whole(), length=length) for length in (48, 96)]
    values = [heldout_means(task, random_params(task), data) for task, data in whole]
    assert values[0]["bits_per_byte"] == pytest.approx(values[1]["bits_per_byte"], rel=LAYOUT)


def test_a_few_batches_count_their_own_bytes(tmp_path: Path) -> None:
    task, corpus = opened(tmp_path, batch=2)
    params = uniform_params(task)
    part, whole = heldout_means(task, params, corpus, 1), heldout_means(task, params, corpus)
    assert 0 < part["bytes"] < whole["bytes"] and part["tokens"] < whole["tokens"]
    bits = part["tokens"] * math.log2(VOCAB) / part["bytes"]
    assert part["bits_per_byte"] == pytest.approx(bits, rel=LAYOUT)


def test_without_known_bytes_there_are_no_bits_per_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, corpus = opened(tmp_path)
    strange = corpus.tokenizer.text.replace('"normalizer":null', '"normalizer":{"type":"NFC"}')
    assert strange != corpus.tokenizer.text
    corpus.tokenizer.text = strange  # as if it had been loaded so
    token_bytes.cache_clear()
    found = heldout_means(task, uniform_params(task), corpus)
    assert "perplexity" in found and not {"bits_per_byte", "bytes"} & found.keys()
    assert why_no_bytes(corpus).endswith("its normalizer (NFC) changes the text")
    with pytest.raises(UnknownBytes):
        token_bytes(corpus.tokenizer)
    token_bytes.cache_clear()
