"""The held-out side: by content, never empty, never a copy of what is trained on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jscale.data.heldout import document_hash, held_out, training_documents
from jscale.errors import DataError

TEXTS = st.lists(st.text("abc", max_size=3), min_size=1, max_size=30)
SHARES = st.sampled_from([0.001, 0.01, 0.3, 0.5, 0.9, 0.999])


def hashes(texts: list[str]) -> np.ndarray:
    return np.array([document_hash(text) for text in texts], np.uint64)


@given(texts=TEXTS.filter(lambda texts: len(set(texts)) > 1), fraction=SHARES)
def test_both_sides_have_documents_and_share_none(texts, fraction):
    mask = held_out(hashes(texts), fraction)
    out = {text for text, is_out in zip(texts, mask, strict=True) if is_out}
    kept = {text for text, is_out in zip(texts, mask, strict=True) if not is_out}
    assert out and kept and not out & kept


@given(texts=TEXTS.filter(lambda texts: len(set(texts)) > 1), fraction=SHARES)
def test_one_pass_gives_the_same_training_documents(texts, fraction):
    mask = held_out(hashes(texts), fraction)
    kept = [text for text, is_out in zip(texts, mask, strict=True) if not is_out]
    assert sorted(training_documents(texts, fraction)) == sorted(kept)


def test_nothing_is_held_out_at_zero():
    assert not held_out(hashes(["a"]), 0.0).any()
    assert list(training_documents(["a", "a"], 0.0)) == ["a", "a"]


@pytest.mark.parametrize("texts", [["only"], ["same", "same"]])
def test_one_distinct_document_cannot_be_divided(texts):
    with pytest.raises(DataError, match="TextFiles has just one distinct document"):
        held_out(hashes(texts), 0.01, "TextFiles")


def test_growing_the_corpus_moves_nothing_across():
    texts = [str(i) for i in range(2000)]
    few, many = held_out(hashes(texts[:1000]), 0.1), held_out(hashes(texts), 0.1)
    assert np.array_equal(many[:1000], few)
    assert 0.07 < many.mean() < 0.13
