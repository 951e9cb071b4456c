"""The data part of a recipe: sound settings, clear refusals, counts that add up."""

import subprocess
import sys

import numpy as np
import pytest

from jscale.data.corpus import TextData
from jscale.data.files import StandardLibrary, TextFiles, Texts
from jscale.data.mixture import Mixture
from jscale.data.stream import TokenStream
from jscale.data.tokenizers import BytePairs, Bytes, Tokenizer
from jscale.errors import ConfigError, DataError

SETTINGS = [
    ({"length": 0}, "length=0 must be 1 or more"),
    ({"batch": 0}, "batch=0 must be 1 or more"),
    ({"workers": -1}, "workers=-1 must be 0 or more"),
    ({"heldout": 1.0}, "heldout=1.0 is a share"),
    ({"heldout": -0.1}, "heldout=-0.1 is a share"),
    ({"heldout": float("nan")}, "heldout=nan is a share"),
]


@pytest.mark.parametrize(("change", "sentence"), SETTINGS)
def test_settings_out_of_range_are_refused(words, change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TextData(words, Bytes(), **({"length": 8, "batch": 2} | change))


UNCHECKED = """
from jscale.data import Bytes, Split, TextData, TextFiles, Texts
from jscale.errors import ConfigError
words = Texts(("a", "b"))
for make in (
    lambda: TextData("book.txt", Bytes(), 8, 2),
    lambda: TextData(words, "bpe", 8, 2),
    lambda: TextData(words, Bytes(), 8, 2, packing="split"),
    lambda: TextFiles("book.txt"),
):
    try:
        make()
    except ConfigError as error:
        print(error)
"""


def test_a_part_of_another_kind_is_refused():
    # In a process of its own: here the annotations are checked before our sentence is reached.
    command = [sys.executable, "-c", UNCHECKED]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [
        "TextData: 'book.txt' is not a source, such as TextFiles(('books/*.txt',))",
        "TextData: 'bpe' is not a tokenizer, such as BytePairs(4096)",
        "TextData: 'split' is not a packing, such as Split()",
        "TextFiles takes a tuple of paths: write TextFiles(('book.txt',))",
    ]


def test_counts_add_up(words, tmp_path):
    told: list[tuple[int, int, str]] = []
    data = TextData(words, BytePairs(300), length=16, batch=4, heldout=0.2, cache=str(tmp_path))
    corpus = data.open(0, lambda *progress: told.append(progress))
    summary = corpus.summary()
    (source,) = summary["sources"]
    train, heldout = summary["train"], summary["heldout"]
    assert train["documents"] + heldout["documents"] == source["documents"] == 59
    assert train["tokens"] + heldout["tokens"] == source["tokens"] - 59
    assert source["empty"] == 1 and source["share"] == 1
    assert summary["vocab"] == corpus.tokenizer.vocab == 300
    assert "tokenizing" in {phase for _, _, phase in told}
    assert all(0 <= done <= total for done, total, _ in told)
    assert told[-1][0] == told[-1][1]


def test_training_never_sees_the_held_out_documents(words, tmp_path):
    corpus = TextData(words, Bytes(), 16, 4, heldout=0.3, cache=str(tmp_path)).open(0)
    assert isinstance(corpus.heldout, TokenStream)
    cache = corpus.caches[0]
    sides = [
        {corpus.tokenizer.decode(cache.document(i)) for i in stream.parts[0].documents.tolist()}
        for stream in (corpus.train, corpus.heldout)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_the_tokenizer_learns_from_training_documents_only(tmp_path):
    texts = [f"{i} plain words " * 5 for i in range(30)]
    whole = TextData(Texts(tuple(texts)), BytePairs(280), 8, 2, heldout=0.3, cache=str(tmp_path))
    corpus = whole.open(0)
    kept = [texts[i] for i in corpus.train.parts[0].documents]
    assert len(kept) < 30
    alone = TextData(Texts(tuple(kept)), BytePairs(280), 8, 2, heldout=0.0, cache=str(tmp_path))
    assert alone.open(0).tokenizer.text == corpus.tokenizer.text


def test_tiny_corpora_hold_one_document_out_or_say_why_not(tmp_path):
    two = TextData(Texts(("one", "two")), Bytes(), 8, 2, cache=str(tmp_path)).open(0)
    assert two.heldout is not None
    assert [len(s.parts[0].documents) for s in (two.train, two.heldout)] == [1, 1]
    with pytest.raises(DataError, match="Texts has just one distinct document"):
        TextData(Texts(("one",)), Bytes(), 8, 2, cache=str(tmp_path)).open(0)
    one = TextData(Texts(("one",)), Bytes(), 8, 2, heldout=0.0, cache=str(tmp_path)).open(0)
    assert one.heldout is None and one.train.rows == 1
    assert "heldout" not in one.summary()


def test_one_file_can_be_divided(tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(f"paragraph {i}" for i in range(100)))
    source = TextFiles((str(tmp_path / "book.txt"),), separator="\n\n")
    corpus = TextData(source, Bytes(), 32, 4, cache=str(tmp_path / "cache")).open(0)
    assert corpus.summary()["sources"][0]["documents"] == 100


def test_documents_without_pairs_are_refused_when_nothing_is_left(tmp_path):
    class Mute(Tokenizer):
        def encode_batch(self, texts):
            return [[] for _ in texts]

    class Silence:
        def load(self, training):
            return Mute(Bytes().load().text, None, "<|eos|>", None, "test")

    data = TextData(Texts(("a", "b")), Silence(), 8, 2, heldout=0.0, cache=str(tmp_path))
    with pytest.raises(DataError, match="the train documents of Texts hold no pair of tokens"):
        data.open(0)


def test_a_mixture_shows_its_shares(words, tmp_path):
    others = Texts(("a b c", "d e f", "g h i"))
    mixed = Mixture(((words, 3.0), (others, 1.0)))
    corpus = TextData(mixed, BytePairs(300), 16, 4, cache=str(tmp_path)).open(0)
    summary = corpus.summary()
    assert [source["share"] for source in summary["sources"]] == [0.75, 0.25]
    assert summary["heldout"]["documents"] >= 2
    assert len(corpus.train.parts) == 2


def test_a_damaged_cache_is_reported(words, tmp_path):
    data = TextData(words, Bytes(), 16, 4, cache=str(tmp_path))
    before = data.open(0)
    expected = before.train.global_batch(5)
    (before.caches[0].folder / "hashes.npy").write_bytes(b"")
    after = data.open(0)
    assert "hashes.npy has 0 bytes" in after.summary()["notices"][0]
    assert all(
        np.array_equal(after.train.global_batch(5)[name], expected[name]) for name in expected
    )


def test_home_is_the_default_and_no_variable_moves_it(words, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    corpus = TextData(words, Bytes(), 16, 4).open(0)
    assert corpus.caches[0].folder.is_relative_to(tmp_path / "home" / ".cache" / "jscale")
    assert not (tmp_path / "elsewhere").exists()


def test_a_tokenizer_that_cannot_be_kept_is_an_error_of_data(words, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match="cannot keep the tokenizer in .*file/tokenizers"):
        TextData(words, BytePairs(300), 16, 4, cache=str(tmp_path / "file")).open(0)


@pytest.mark.slow
def test_the_standard_library_at_full_size(tmp_path):
    data = TextData(StandardLibrary(), BytePairs(4096), 512, 16, 0.05, cache=str(tmp_path))
    corpus = data.open(0)
    assert corpus.tokenizer.vocab == 4096
    assert 1.5e6 < corpus.train.tokens < 4e6
    assert corpus.summary()["train"]["padding"] < 0.01
