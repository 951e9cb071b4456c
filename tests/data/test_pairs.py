"""Pairs in rows: each once and whole, the same whatever hosts read; what is wrong is named."""

import gzip
import json
import pickle
import random
from typing import Any

import numpy as np
import pytest

from jscale.config.data import from_data, to_data
from jscale.data.pairdata import PairCorpus, PairData
from jscale.data.pairs import JsonPairs, Pairs
from jscale.data.source import Report
from jscale.data.tokenizers import BytePairs, Bytes, TokenizerFile
from jscale.errors import ConfigError, DataError

BOS, EOS, PAD = 257, 258, 256


def some(count: int = 60) -> Pairs:
    """Pairs of 1 to 9 letters and of 1 to 12, with a source that has two targets."""
    draw = random.Random(3)
    word = lambda most: "".join(draw.choices("abcdé", k=draw.randint(1, most)))
    texts = [(f"{word(9)}{number}", word(12)) for number in range(count)]
    return Pairs((*texts, (texts[0][0], "other")))


def opened(folder, source=None, seed: Any = 3, **changes: Any) -> PairCorpus:
    settings = {"length": 32, "source_length": 29, "batch": 6, "heldout": 0.2} | changes
    data = PairData(source or some(), Bytes(), cache=str(folder), **settings)
    return data.open(seed)


def pairs_of(rows: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """The pairs that stand in rows, each by the number that source and target share."""
    text = lambda ids: bytes(ids.astype(np.uint8)).decode()
    found = []
    for r in range(len(rows["source"])):
        for number in range(1, rows["source_segments"][r].max() + 1):
            here = rows["segments"][r] == number
            source = rows["source"][r][rows["source_segments"][r] == number]
            inputs, targets = rows["inputs"][r][here], rows["targets"][r][here]
            assert (source[0], source[-1]) == (BOS, EOS)
            assert (inputs[0], targets[-1]) == (BOS, EOS)
            np.testing.assert_array_equal(inputs[1:], targets[:-1])
            np.testing.assert_array_equal(rows["positions"][r][here], np.arange(here.sum()))
            found.append((text(source[1:-1]), text(targets[:-1])))
    return found


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_every_pair_is_in_an_epoch_once_and_on_one_side(tmp_path, packing):
    corpus = opened(tmp_path, packing=packing, batch=1)
    assert corpus.heldout is not None
    sides = {}
    for name, stream in corpus.sides.items():
        rows = [stream.global_batch(k) for k in range(stream.rows)]
        sides[name] = [pair for batch in rows for pair in pairs_of(batch)]
        assert sum(batch["weights"].sum() for batch in rows) == stream.tokens
        for batch in rows:
            np.testing.assert_array_equal(batch["weights"] > 0, batch["segments"] > 0)
            assert (batch["source"][batch["source_segments"] == 0] == PAD).all()
            assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
                name: (s.shape, s.dtype) for name, s in corpus.config.shapes.items()
            }
    assert sorted(sides["train"] + sides["heldout"]) == sorted(some().texts)
    assert not {a for a, _ in sides["train"]} & {a for a, _ in sides["heldout"]}
    packed = corpus.train.rows < len(sides["train"])
    assert packed == (packing == "packed")


def test_a_batch_is_a_function_of_its_number_on_any_hosts(tmp_path):
    stream = opened(tmp_path).train
    alone = pickle.loads(pickle.dumps(stream))
    for k in range(9):
        whole, parts = stream.global_batch(k), [alone.rows_of(k, a, a + 2) for a in (0, 2, 4)]
        for name, values in whole.items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), values)
    again, other = opened(tmp_path).train, opened(tmp_path, seed=4).train
    assert again.fingerprint == stream.fingerprint != other.fingerprint
    differ = lambda a, b: (a.global_batch(0)["source"] != b.global_batch(0)["source"]).any()
    assert differ(stream, other) and not differ(stream, again)
    for change in ({"batch": 3}, {"source_length": 30}, {"packing": "padded"}, {"long": "skip"}):
        assert opened(tmp_path, **change).train.fingerprint != stream.fingerprint


def test_evaluation_reads_each_pair_once_and_fills_with_nothing(tmp_path):
    stream = opened(tmp_path, batch=4, packing="padded").heldout
    assert stream is not None and stream.rows % 4
    batches = [stream.evaluation_batch(k) for k in range(stream.epoch_batches())]
    assert sum(batch["weights"].sum() for batch in batches) == stream.tokens
    last = batches[-1]
    empty = last["weights"].sum(1) == 0
    assert empty.sum() == -stream.rows % 4
    assert not last["segments"][empty].any() and not last["source_segments"][empty].any()


def test_a_pair_that_is_too_long_is_an_error_or_counted_and_never_cut(tmp_path):
    source = Pairs((*some().texts, ("x" * 40, "y"), ("x", "y" * 50)))
    with pytest.raises(DataError, match=r"pair 6[23] of Pairs has .*: make data.source_length 42"):
        opened(tmp_path, source)
    corpus = opened(tmp_path, source, long="skip")
    said = corpus.summary()
    assert said["sources"][0]["skipped"] == corpus.skipped == 2
    assert said["notices"] == ["2 of 63 pairs fit into no row of 29 and 32 places and are left out"]
    assert said["train"]["documents"] + said["heldout"]["documents"] == 61
    with pytest.raises(DataError, match="none of the train pairs of Pairs fits into a row"):
        opened(tmp_path, some(), length=1, long="skip", heldout=0.0)


def test_a_tokenizer_without_a_beginning_begins_targets_by_the_end(tmp_path):
    tokenizer = Bytes().load()
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    kind = TokenizerFile(str(tmp_path))
    assert kind.load().bos is None and kind.load().start == EOS
    data = PairData(
        Pairs((("ab", "cd"),)), kind, length=4, batch=1, heldout=0.0, cache=str(tmp_path / "c")
    )
    batch = data.open(0).train.global_batch(0)
    assert batch["source"].tolist() == [[97, 98, EOS, PAD]]
    assert batch["inputs"].tolist() == [[EOS, 99, 100, PAD]]
    assert batch["targets"].tolist() == [[99, 100, EOS, PAD]]


def lines(folder, *objects, name="pairs.jsonl", opener=open) -> JsonPairs:
    path = folder / name
    with opener(path, "wb") as file:
        for found in objects:
            text = found if isinstance(found, str) else json.dumps(found)
            file.write(text.encode() + b"\n")
    return JsonPairs((str(path),), "de", "en", max_bad=0.0)


def test_json_lines_hold_pairs_plain_and_compressed(tmp_path):
    objects = [{"de": "eins", "en": "one", "id": 1}, {"en": "two", "de": "zwei"}]
    plain = lines(tmp_path, *objects)
    packed = lines(tmp_path, *objects, name="pairs.jsonl.gz", opener=gzip.open)
    for source in (plain, packed):
        report = Report()
        assert list(source.pairs(report)) == [("eins", "one"), ("zwei", "two")]
        assert report.read == source.size() and not report.bad
    assert from_data(to_data(plain)) == plain
    assert plain.digest() != JsonPairs(plain.paths, "en", "de").digest()


@pytest.mark.parametrize(
    "line, message",
    [
        ({"de": "drei"}, r"pairs.jsonl:2: no field 'en'"),
        ({"de": "drei", "eng": "three"}, r"pairs.jsonl:2: no field 'en'; did you mean 'eng'"),
        ({"de": "drei", "en": " "}, r"pairs.jsonl:2: field 'en' is blank: a pair is a source and"),
        ({"de": "", "en": "three"}, r"pairs.jsonl:2: field 'de' is blank"),
        ({"de": 3, "en": "three"}, r"pairs.jsonl:2: field 'de' holds int, not text"),
        (["drei", "three"], r"pairs.jsonl:2: a JSON object is wanted, found list"),
        ('{"de": "drei", "en": ', r"pairs.jsonl:2: Expecting value"),
    ],
)
def test_a_bad_line_is_named_or_set_aside(tmp_path, line, message):
    good = [{"de": word, "en": word.upper()} for word in "abc"]
    source = lines(tmp_path, good[0], line, *good[1:])
    with pytest.raises(DataError, match=message):
        list(source.pairs(Report()))
    report = Report()
    lenient = JsonPairs(source.paths, "de", "en", max_bad=0.5)
    assert len(list(lenient.pairs(report))) == 3 and report.bad == 1


def test_byte_pairs_are_learnt_from_the_training_pairs_of_both_texts(tmp_path):
    texts = tuple((f"ssssssss {i}", f"tttttttt {i}") for i in range(50))
    data = PairData(
        Pairs(texts), BytePairs(280), length=32, batch=2, heldout=0.2, cache=str(tmp_path)
    )
    assert len(data.open(0).tokenizer.encode_batch(["ssssssss", "tttttttt"])[1]) < 4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: JsonPairs(("a",), "x", "x"), "source and target are both the field 'x'"),
        (lambda: JsonPairs(("a",), max_bad=2.0), "share from 0 to 1"),
        (lambda: PairData(some(), Bytes(), 0, 1), "length=0 must be 1 or more"),
        (lambda: PairData(some(), Bytes(), 4, 1, source_length=0), "source_length=0 must be 1"),
        (lambda: PairData(some(), Bytes(), 4, 1, heldout=1.0), "share from 0 to below 1"),
    ],
)
def test_what_does_not_fit_is_said(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_no_pairs_and_one_source_are_named(tmp_path):
    with pytest.raises(DataError, match=r"^data.source has no pairs: Pairs\(texts=\(\)\)$"):
        opened(tmp_path, Pairs(()))
    with pytest.raises(DataError, match="data.source has no pairs: JsonPairs.*pairs.jsonl"):
        opened(tmp_path, lines(tmp_path))
    with pytest.raises(DataError, match=r"Pairs has just one distinct source.*set heldout=0.0$"):
        opened(tmp_path, Pairs((("a", "b"), ("a", "c"))))


@pytest.mark.parametrize("text", ["", " \n"])
def test_blank_texts_in_memory_are_named(tmp_path, text):
    with pytest.raises(DataError, match="the target of pair 2 is blank"):
        opened(tmp_path, Pairs((("a", "b"), ("a", text))))
