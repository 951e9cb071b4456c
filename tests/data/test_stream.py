"""Streams: batch k is a function of k; any hosts and stops give the same global batches."""

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.data.corpus import Corpus, TextData
from jscale.data.files import Texts
from jscale.data.mixture import Mixture
from jscale.data.packing import Whole
from jscale.data.stream import Stream, TokenStream
from jscale.data.tokenizers import Bytes

OTHERS = Texts(tuple(f"other {i} " * (i % 7) for i in range(20)))


def opened(words: Texts, folder, seed: int = 3, **changes) -> Corpus:
    settings = {"length": 16, "batch": 6, "heldout": 0.1, "cache": str(folder)} | changes
    source = settings.pop("source", words)
    return TextData(source, Bytes(), **settings).open(seed)


@pytest.fixture(scope="module")
def corpora(words, tmp_path_factory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("cache")
    mixed = Mixture(((words, 0.7), (OTHERS, 0.3)))
    return {
        "split": opened(words, folder),
        "whole": opened(words, folder, packing=Whole()),
        "in order": opened(words, folder, shuffle=False),
        "mixture": opened(words, folder, source=mixed),
        "one row": opened(words, folder, length=10**6),
        "tiny rows": opened(words, folder, source=OTHERS, length=1, batch=7),
    }


KINDS = ["split", "whole", "in order", "mixture", "one row", "tiny rows"]


def joined(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def digest(batches: list[dict[str, np.ndarray]]) -> str:
    out = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            out.update(np.ascontiguousarray(batch[name]).tobytes())
    return out.hexdigest()


@pytest.mark.parametrize("kind", ["split", "whole", "mixture"])
def test_any_hosts_and_stops_give_one_stream(corpora, kind):
    stream, steps = corpora[kind].train, 24
    expected = digest([stream.global_batch(k) for k in range(steps)])

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def check(data):
        batches, k = [], 0
        while k < steps:  # run, stop, go on elsewhere with other hosts
            hosts = data.draw(st.sampled_from([1, 2, 3, 6]))
            alone = pickle.loads(pickle.dumps(stream))
            share = stream.batch // hosts
            stop = min(k + data.draw(st.integers(1, 9)), steps)
            for now in range(k, stop):
                rows = [alone.rows_of(now, h * share, (h + 1) * share) for h in range(hosts)]
                batches.append(joined(rows))
            k = stop
        assert digest(batches) == expected

    check()


def pairs_of(rows: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    """Each piece of the rows as (inputs.., last target), in order."""
    out = []
    for row in range(len(rows["inputs"])):
        for segment in range(1, rows["segments"][row].max() + 1):
            here = rows["segments"][row] == segment
            inputs, targets = rows["inputs"][row][here], rows["targets"][row][here]
            assert np.array_equal(inputs[1:], targets[:-1])
            assert np.array_equal(rows["positions"][row][here], np.arange(len(inputs)))
            out.append((*inputs.tolist(), int(targets[-1])))
    return sorted(out)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mixture"])
def test_an_epoch_is_every_row_once(corpora, kind):
    stream = corpora[kind].train
    assert isinstance(stream, TokenStream)
    (part,) = stream.parts
    everything = pairs_of(part.read(np.arange(len(part))))
    assert sum(len(piece) - 1 for piece in everything) == stream.tokens
    for epoch in range(3):
        assert pairs_of(epoch_of(stream, epoch)) == everything


def epoch_of(stream: TokenStream, epoch: int) -> dict[str, np.ndarray]:
    """The rows of one epoch, which may begin and end within a batch."""
    first, last = epoch * stream.rows, (epoch + 1) * stream.rows
    k = first // stream.batch
    rows = joined([stream.global_batch(j) for j in range(k, -(-last // stream.batch))])
    here = slice(first - k * stream.batch, last - k * stream.batch)
    return {name: values[here] for name, values in rows.items()}


@pytest.mark.parametrize("kind", ["split", "whole"])
def test_the_rows_are_the_documents(corpora, words, kind):
    corpus = corpora[kind]
    tokenizer = corpus.tokenizer
    told: dict[str, int] = {}
    for stream in (corpus.train, corpus.heldout):
        assert isinstance(stream, TokenStream)
        for index in range(len(stream.parts[0].documents)):
            plan, runs = stream.parts[0].plan, []
            for piece in np.flatnonzero(plan.document == index):
                row = np.searchsorted(plan.rows, piece, side="right") - 1
                rows = stream.parts[0].read(np.array([row]))
                here = rows["segments"][0] == piece - plan.rows[row] + 1
                runs.append((plan.start[piece], rows["inputs"][0][here], rows["targets"][0][here]))
            runs.sort(key=lambda run: run[0])
            ids = [int(i) for _, inputs, _ in runs for i in inputs] + [int(runs[-1][2][-1])]
            assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos
            text = tokenizer.decode(ids)
            told[text] = told.get(text, 0) + 1
    expected: dict[str, int] = {}
    for text in words.texts:
        if text:
            expected[text] = expected.get(text, 0) + 1
    assert told == expected


def test_a_mixture_gives_each_source_its_share_and_its_own_epochs(corpora):
    stream = corpora["mixture"].train
    owners = [
        {tuple(row) for row in part.read(np.arange(len(part)))["inputs"].tolist()}
        for part in stream.parts
    ]
    assert not owners[0] & owners[1]
    rows = joined([stream.global_batch(k) for k in range(250)])["inputs"].tolist()
    first = np.array([tuple(row) in owners[0] for row in rows])
    moments = np.arange(1, len(rows) + 1)
    assert np.abs(np.cumsum(first) - 0.7 * moments).max() <= 1
    for part, owner, mine in zip(stream.parts, owners, (first, ~first), strict=True):
        seen = [tuple(row) for row, is_mine in zip(rows, mine, strict=True) if is_mine]
        assert len(seen) >= len(part) and set(seen[: len(part)]) == owner


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_reads_each_row_once(corpora, kind):
    stream = corpora[kind].heldout
    assert stream is not None
    rows = joined([stream.evaluation_batch(k) for k in range(stream.epoch_batches())])
    assert len(rows["inputs"]) % stream.batch == 0
    assert rows["weights"].sum() == stream.tokens
    assert not rows["segments"][stream.rows :].any()
    everything = [pairs_of(part.read(np.arange(len(part)))) for part in stream.parts]
    assert pairs_of(rows) == sorted(piece for pieces in everything for piece in pieces)
    again = [stream.evaluation_rows_of(0, i, i + 1) for i in range(stream.batch)]
    assert digest([joined(again)]) == digest([stream.evaluation_batch(0)])


def test_epochs_and_seeds_have_orders_of_their_own(corpora, words, tmp_path):
    stream = corpora["split"].train
    per_epoch = [digest([epoch_of(stream, epoch)]) for epoch in range(3)]
    assert len(set(per_epoch)) == 3
    other = opened(words, tmp_path, seed=4).train
    assert digest([other.global_batch(0)]) != digest([stream.global_batch(0)])
    again = opened(words, tmp_path).train
    assert digest([again.global_batch(9)]) == digest([stream.global_batch(9)])


def test_the_fingerprint_covers_what_the_batches_depend_on(words, tmp_path):
    base = opened(words, tmp_path)
    changes = [
        {"length": 17}, {"batch": 7}, {"heldout": 0.2}, {"packing": Whole()}, {"shuffle": False},
        {"seed": 4}, {"source": Texts(words.texts[1:])},
        {"source": Mixture(((words, 1.0), (OTHERS, 1.0)))},
        {"source": Mixture(((words, 1.0), (OTHERS, 2.0)))},
    ]  # fmt: skip
    marks = [opened(words, tmp_path, **change).fingerprint for change in changes]
    assert len({base.fingerprint, *marks}) == len(changes) + 1
    same = [
        {"workers": 2},
        {"cache": str(tmp_path / "elsewhere")},
        {"source": Mixture(((words, 5.0),))},
    ]
    for change in same:
        assert opened(words, tmp_path, **change).fingerprint == base.fingerprint
    quiet = [opened(words, tmp_path, seed=seed, shuffle=False).fingerprint for seed in (1, 2)]
    assert quiet[0] == quiet[1]  # a seed that changes nothing
    assert base.heldout is not None and base.train.fingerprint != base.heldout.fingerprint


def test_the_first_batch_never_changes(corpora):
    # Written down once: a change here breaks the resuming of every run.
    told = {
        kind: digest([corpora[kind].train.global_batch(k) for k in range(3)])[:16]
        for kind in KINDS[:4]
    }
    assert told == {
        "split": "33866c851e77ff4c",
        "whole": "7829617863e0fe8b",
        "in order": "6769359f440e4f26",
        "mixture": "39ddd2ca82d70853",
    }


def test_a_stream_is_a_stream(corpora):
    stream = corpora["split"].train
    batch = stream.global_batch(0)
    shapes = {name: (array.shape, array.dtype) for name, array in stream.shapes.items()}
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == shapes
    assert isinstance(stream, Stream)
    assert len(pickle.dumps(stream)) < 3000  # workers get paths, not tokens
