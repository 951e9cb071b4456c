"""The bytes of a text's tokens add up to the text, or they are not given."""

import json
from typing import Any

import pytest
import tokenizers as hf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from jscale.data.tokenizers import BOS, EOS, PAD, Bytes, Tokenizer
from jscale.evaluation.token_bytes import UnknownBytes, token_bytes

CORPUS = ["the cat sat on the mat, 12345 times", "Ünïcödé und 漢字 🍾🍾", "a  b\n\n\tc"] * 3


def trained(*steps: Any, **more: Any) -> Tokenizer:
    """A byte-level tokenizer whose texts are cut by `steps` first, as the large releases do."""
    engine = hf.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not steps)
    engine.pre_tokenizer = pre_tokenizers.Sequence([*steps, level]) if steps else level
    engine.decoder = decoders.ByteLevel()
    special = [PAD, BOS, EOS]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS, trainer)
    engine.add_tokens(more.get("added", []))
    return Tokenizer(engine.to_str(), BOS, EOS, PAD, "the test's")


WORDS = pre_tokenizers.Split(hf.Regex(r"\p{L}+|\p{N}{1,3}|\s+"), "isolated")
KNOWN = {
    "bytes": Bytes().load(),
    "pairs": trained(),
    "split": trained(WORDS, pre_tokenizers.Digits(individual_digits=True)),
    "added": trained(added=["  ", "漢字", hf.AddedToken("mat", normalized=False)]),
}


@pytest.mark.parametrize("name", KNOWN)
@given(text=st.one_of(st.text(), st.sampled_from([*CORPUS, f"a{EOS}b", "  \n"])))
def test_the_bytes_of_its_tokens_are_those_of_a_text(name: str, text: str) -> None:
    tokenizer = KNOWN[name]
    lengths = token_bytes(tokenizer)
    assert lengths[tokenizer.encode_batch([text])[0]].sum() == len(text.encode())
    assert lengths[tokenizer.encode_documents([text])[0]].sum() == len(text.encode())


def test_marks_of_documents_stand_for_no_bytes() -> None:
    for tokenizer in KNOWN.values():
        assert tokenizer.bos is not None
        marks = [tokenizer.bos, tokenizer.eos, tokenizer.pad]
        assert token_bytes(tokenizer)[marks].tolist() == [0, 0, 0]


def changed(**parts: Any) -> Tokenizer:
    about = json.loads(KNOWN["pairs"].text)
    return Tokenizer(json.dumps({**about, **parts}), BOS, EOS, PAD, "the test's")


def model_of(**parts: Any) -> dict[str, Any]:
    return {**json.loads(KNOWN["pairs"].text)["model"], **parts}


def words(**letters: int) -> Tokenizer:
    marks = {PAD: 0, BOS: 1, EOS: 2, **letters}
    engine = hf.Tokenizer(models.WordLevel(marks, unk_token=PAD))
    engine.add_special_tokens([PAD, BOS, EOS])
    return Tokenizer(engine.to_str(), BOS, EOS, PAD, "the test's")


SPACED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
LEVEL = {**SPACED, "add_prefix_space": False}
GREEDY = hf.AddedToken(" mat", lstrip=True, normalized=False)
REMOVED = pre_tokenizers.Split(" ", "removed")
UNKNOWN = {
    "words": (lambda: words(a=3), "it is no byte-level BPE but WordLevel"),
    "normalizer": (lambda: changed(normalizer={"type": "Lowercase"}), "normalizer (Lowercase)"),
    "prefix space": (lambda: changed(pre_tokenizer=SPACED), "adds a space"),
    "no cutting": (lambda: changed(pre_tokenizer=None), "not byte-level"),
    "removed": (lambda: trained(REMOVED), "pre-tokenizer (Split) may change the text"),
    "metaspace": (
        lambda: changed(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
                    LEVEL,
                ],
            }
        ),
        "pre-tokenizer (Metaspace)",
    ),
    "suffix": (lambda: changed(model=model_of(end_of_word_suffix="</w>")), "marks beside"),
    "greedy token": (lambda: trained(added=[GREEDY]), "takes the spaces around it"),
    "eos that is text": (
        lambda: Tokenizer(KNOWN["pairs"].text, BOS, "a", PAD, "the test's"),
        "its eos token 'a' is also text",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_tokenizer_that_may_lose_bytes_is_refused_with_the_reason(name: str) -> None:
    make, said = UNKNOWN[name]
    with pytest.raises(UnknownBytes) as caught:
        token_bytes(make())
    assert said in str(caught.value)


def test_a_missing_byte_is_found() -> None:
    about = json.loads(Bytes().load().text)
    del about["model"]["vocab"]["Ā"]
    with pytest.raises(UnknownBytes, match="1 of the 256 bytes"):
        token_bytes(Tokenizer(json.dumps(about), BOS, EOS, PAD, "the test's"))
