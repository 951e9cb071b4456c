"""Tokenizers: text survives the round trip, files are self-contained, wrong ones are refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from jscale.data.tokenizers import BytePairs, Bytes, Tokenizer, TokenizerFile, Training
from jscale.errors import ConfigError, DataError

CORPUS = [
    str(list(range(200))),
    "the cat sat on the mat, " * 20,
    "def f(x):\n    return x + 1\n" * 20,
    "\u4e2d\u6587 \U0001f600",
]


def training(folder: Path, key: str = "k") -> Training:
    return Training(lambda: iter(CORPUS), sum(map(len, CORPUS)), key, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Tokenizer:
    return BytePairs(300).load(training(tmp_path_factory.mktemp("tokenizers")))


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_survives_bytes(text):
    tokenizer = BYTES
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(ids) == text
    assert bytes(ids) == text.encode()  # a byte is its own id


BYTES = Bytes().load()


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.text("the cat\n\t \r\x00"))
def test_any_text_survives_byte_pairs(trained, text):
    assert trained.decode(trained.encode_batch([text])[0]) == text


def test_specials_are_placed_by_us_and_never_read_from_the_text(trained):
    text = "a <|eos|> b<|bos|><|pad|>"
    for tokenizer in (trained, BYTES):
        specials = {tokenizer.pad, tokenizer.bos, tokenizer.eos}
        (ids,) = tokenizer.encode_documents([text])
        assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos
        assert not specials & set(ids[1:-1])
        assert tokenizer.decode(ids) == text
        assert len(specials) == 3 and max(specials) < tokenizer.vocab
        assert tokenizer.id_of("<|eos|>") == tokenizer.eos
    assert (trained.vocab, BYTES.vocab) == (300, 259)
    with pytest.raises(DataError, match=r"no token '<\|eoss\|>'; did you mean '<\|eos\|>'"):
        BYTES.id_of("<|eoss|>")


def test_training_is_repeatable_and_kept(trained, tmp_path):
    again = BytePairs(300).load(training(tmp_path))
    assert again.fingerprint == trained.fingerprint
    lazy = Training(lambda: iter(()), 1, "k", tmp_path)  # not read again: nothing to read
    assert BytePairs(300).load(lazy).fingerprint == trained.fingerprint
    assert BytePairs(290).load(training(tmp_path)).fingerprint != trained.fingerprint


@pytest.mark.parametrize(
    ("file", "grow"),
    [
        ("tokenizer.json", True),
        ("tokenizer.json", False),
        ("tokenizer_config.json", False),
        ("fingerprint", False),
    ],
)
def test_a_damaged_kept_tokenizer_is_trained_again(trained, file, grow, tmp_path, caplog):
    BytePairs(300).load(training(tmp_path))
    (victim,) = tmp_path.rglob(file)
    data = victim.read_bytes()
    victim.write_bytes(data + b" " if grow else data[: len(data) // 2])
    assert BytePairs(300).load(training(tmp_path)).fingerprint == trained.fingerprint
    assert "the kept tokenizer is damaged" in caplog.text
    caplog.clear()
    BytePairs(300).load(training(tmp_path))
    assert not caplog.text


def test_a_sample_of_a_large_corpus_is_learnt_from(tmp_path):
    texts = [f"document {i} " * 50 for i in range(400)]
    read: list[str] = []

    def documents() -> Iterator[str]:
        read.append("all")
        yield from texts

    whole = Training(documents, sum(map(len, texts)), "k", tmp_path)
    small = BytePairs(400, sample=20_000).load(whole)
    assert read == ["all"]
    assert small.fingerprint != BytePairs(400).load(whole).fingerprint
    assert small.fingerprint == BytePairs(400, sample=20_000).load(whole).fingerprint


def test_an_error_while_reading_stays_itself(tmp_path):
    def broken() -> Iterator[str]:
        yield "text"
        raise DataError("a.jsonl:3: bad")

    with pytest.raises(DataError, match="a.jsonl:3: bad"):
        BytePairs(300).load(Training(broken, 4, "k", tmp_path))
    assert not list(tmp_path.iterdir())


def test_save_and_load_are_the_same_tokenizer(trained, tmp_path):
    for tokenizer in (trained, BYTES):
        tokenizer.save(tmp_path)
        loaded = Tokenizer.load(tmp_path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode_documents(CORPUS) == tokenizer.encode_documents(CORPUS)
        assert (loaded.pad, loaded.bos, loaded.eos) == (tokenizer.pad, tokenizer.bos, tokenizer.eos)


def release(folder: Path, specials: list[str], config: dict | None = None) -> str:
    engine = hf.Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    engine.add_special_tokens(specials)
    engine.enable_truncation(1)
    engine.enable_padding(length=9)
    engine.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def test_names_come_from_the_config_then_from_what_is_well_known(tmp_path):
    path = release(tmp_path, ["<s>", "</s>", "<end>"])
    plain = TokenizerFile(path).load()
    assert plain.names == {"bos": "<s>", "eos": "</s>", "pad": None}
    assert plain.pad == plain.eos
    config = {"bos_token": None, "eos_token": {"content": "<end>"}, "add_bos_token": True}
    path = release(tmp_path, ["<s>", "</s>", "<end>"], config)
    assert TokenizerFile(path).load().names == {"bos": None, "eos": "<end>", "pad": None}
    named = TokenizerFile(path + "/tokenizer.json", bos="<s>", pad="b").load()
    assert named.names == {"bos": "<s>", "eos": "<end>", "pad": "b"}
    path = release(tmp_path, ["<|endoftext|>"], {"bos_token": "<|endoftext|>"})
    assert TokenizerFile(path).load().names["bos"] is None  # not twice between documents


@pytest.mark.parametrize("number", [4, [4, 3], [3]])
def test_a_release_s_config_may_give_the_number_of_the_end(tmp_path, number):
    path = release(tmp_path, ["<stop>", "<over>"])
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": number}))
    wanted = "<stop>" if number == [3] else "<over>"
    assert TokenizerFile(path).load().names["eos"] == wanted
    assert TokenizerFile(path, eos="a").load().names["eos"] == "a"


def test_settings_that_cut_or_fill_are_switched_off(tmp_path):
    tokenizer = TokenizerFile(release(tmp_path, ["</s>"])).load()
    assert tokenizer.encode_batch(["a", "b"]) == [[0], [1]]


WRONG = [
    ("not json", {}, "is not a tokenizer.json"),
    ('{"a": 1}', {}, "is not a tokenizer.json"),
    ("[]", {}, "is not a tokenizer.json"),
    ('{"added_tokens": [5]}', {}, "is not a tokenizer.json"),
]


@pytest.mark.parametrize(("text", "names", "sentence"), WRONG)
def test_another_file_is_refused(text, names, sentence, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        TokenizerFile(str(path), eos="x", **names).load()
    assert sentence in str(error.value) and str(path) in str(error.value)


def test_wrong_names_and_missing_files_are_told(tmp_path):
    with pytest.raises(DataError, match="cannot read .*no.json: No such file"):
        TokenizerFile(str(tmp_path / "no.json")).load()
    path = release(tmp_path, ["<stop>"])
    with pytest.raises(DataError, match="does not say which token ends a document: set eos"):
        TokenizerFile(path).load()
    with pytest.raises(DataError, match="has no token '<stp>' for eos; did you mean '<stop>'"):
        TokenizerFile(path, eos="<stp>").load()
    release(tmp_path, ["<stop>"], {})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer_config.json is damaged"):
        TokenizerFile(path).load()
    with pytest.raises(ConfigError, match="vocab=100 is below 259"):
        BytePairs(100)
