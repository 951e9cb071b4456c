"""The token cache: built once, whole or absent, never used when damaged or of something else."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jscale.data import cache as cache_module
from jscale.data.cache import TokenCache, open_tokens
from jscale.data.files import TextFiles, Texts
from jscale.data.jsonl import JsonLines
from jscale.data.source import Report, Source, digest_values
from jscale.data.tokenizers import Bytes, Tokenizer
from jscale.errors import DataError

BYTES = Bytes().load()


def opened(source: Source, folder: Path, tokenizer: Tokenizer = BYTES) -> TokenCache:
    return open_tokens(source, source.digest(), tokenizer, folder)


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "tokens").iterdir() if path.suffix != ".lock"}


def test_a_cache_holds_every_document(words, tmp_path):
    cache = opened(words, tmp_path)
    kept = [text for text in words.texts if text]
    assert [BYTES.decode(cache.document(i)) for i in range(len(kept))] == kept
    assert cache.offsets[-1] == len(cache.tokens) == cache.report["tokens"]
    assert cache.tokens.dtype == np.uint16
    counts = {name: cache.report[name] for name in ("documents", "empty", "bad", "bytes")}
    total = sum(len(text.encode()) for text in kept)
    assert counts == {"documents": 59, "empty": 1, "bad": 0, "bytes": total}


def test_batches_of_any_size_give_the_same_cache(words, tmp_path, monkeypatch):
    first = opened(words, tmp_path / "a")
    monkeypatch.setattr(cache_module, "BATCH", 1)
    second = opened(words, tmp_path / "b")
    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.offsets, second.offsets)
    assert np.array_equal(first.hashes, second.hashes)


def test_it_is_built_once_and_again_for_other_content(words, tmp_path):
    cache = opened(words, tmp_path)
    stamp = os.stat(cache.folder / "tokens.bin").st_mtime_ns
    assert os.stat(opened(words, tmp_path).folder / "tokens.bin").st_mtime_ns == stamp
    assert not opened(words, tmp_path).notices
    other = opened(Texts((*words.texts, "more")), tmp_path)
    BYTES.save(tmp_path / "tokenizer")
    text = (tmp_path / "tokenizer" / "tokenizer.json").read_text()
    renamed = Tokenizer(text, None, "<|eos|>", "<|pad|>", "test")  # without bos
    third = opened(words, tmp_path, renamed)
    assert len({cache.key, other.key, third.key}) == 3
    assert third.document(0)[0] == cache.document(0)[1]
    assert names(tmp_path) == {cache.key, other.key, third.key}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILES = [*cache_module.FILES, "manifest.json"]


@pytest.mark.parametrize("harm", [flip, cut, empty, swap, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_cache_is_built_again_with_a_notice(file, harm, tmp_path, caplog):
    source = Texts(("one", "two"))
    before = opened(source, tmp_path)
    expected = before.tokens.tolist()
    harm(before.folder / file)
    after = opened(source, tmp_path)
    if (file, harm) == ("manifest.json", cut):  # only the newline at its end
        return
    assert after.tokens.tolist() == expected
    assert "has been built again" in after.notices[0] and str(after.folder) in caplog.text
    assert names(tmp_path) == {after.key}
    assert not opened(source, tmp_path).notices


def test_a_large_cache_is_still_checked_for_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "VERIFIED", 4)
    cache = opened(Texts(("one", "two")), tmp_path)
    cut(cache.folder / "tokens.bin")
    assert "tokens.bin has" in opened(Texts(("one", "two")), tmp_path).notices[0]


def test_a_manifest_of_another_cache_is_refused(tmp_path):
    first, second = opened(Texts(("one",)), tmp_path), opened(Texts(("two",)), tmp_path)
    expected = second.tokens.tolist()
    shutil.rmtree(second.folder)
    shutil.copytree(first.folder, second.folder)
    again = opened(Texts(("two",)), tmp_path)
    assert again.tokens.tolist() == expected and "another cache" in again.notices[0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the corpus has no documents: JsonLines"),
        (b'{"text": ""}\n{"text": " "}\n', r"the corpus has no documents \(2 were empty\)"),
        (b'{"text": "a"}\noops\n', "a.jsonl:2: Expecting value"),
    ],
)
def test_bad_input_leaves_nothing_behind(content, sentence, tmp_path):
    kept = opened(Texts(("kept",)), tmp_path)
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        opened(JsonLines((str(tmp_path / "a.jsonl"),)), tmp_path)
    assert names(tmp_path) == {kept.key}
    assert not opened(Texts(("kept",)), tmp_path).notices


def test_quarantined_lines_are_in_the_report(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 9 + b"oops\n")
    cache = opened(JsonLines((str(tmp_path / "a.jsonl"),), max_bad=0.1), tmp_path)
    report = json.loads((cache.folder / "report.json").read_text())
    assert report["bad"] == 1 and f"{tmp_path}/a.jsonl:10: " in report["bad_lines"][0]


class Liar(Tokenizer):
    """Gives ids that its vocabulary does not have."""

    wrong = 0

    def encode_batch(self, texts):
        return [[5] if text == "fine" else [self.wrong] for text in texts]


@pytest.mark.parametrize("wrong", [259, 2**31 - 1, -1])
def test_ids_outside_the_vocabulary_are_refused(wrong, tmp_path):
    liar = Liar(BYTES.text, None, "<|eos|>", None, "test")
    liar.wrong = wrong
    with pytest.raises(DataError, match=f"gave id {wrong} in document 1, .* vocabulary of 259"):
        opened(Texts(("fine", "not")), tmp_path, liar)
    assert not names(tmp_path)


@dataclass(frozen=True)
class Meddled:
    """A file that grows while it is read."""

    path: str

    def documents(self, report: Report) -> Iterator[str]:
        yield from TextFiles((self.path,)).documents(report)
        with open(self.path, "a") as file:
            file.write("more")

    def digest(self) -> str:
        return TextFiles((self.path,)).digest()

    def size(self) -> int:
        return 1


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="the corpus changed while it was read"):
        opened(Meddled(str(tmp_path / "a.txt")), tmp_path)
    assert not names(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match="cannot write the token cache .*file/tokens"):
        opened(Texts(("a",)), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_what_a_killed_builder_left_is_cleared_in_a_day(tmp_path):
    source = Texts(("one",))
    key = opened(source, tmp_path / "first").key
    old, young = (tmp_path / "tokens" / f".{key}.{name}" for name in ("old", "young"))
    for left in (old, young):
        left.mkdir(parents=True)
        (left / "tokens.bin").write_bytes(b"half")
    os.utime(old, (0, 0))
    assert opened(source, tmp_path).report["documents"] == 1
    assert names(tmp_path) == {key, young.name}  # it may be another host's, at work


@dataclass(frozen=True)
class Overtaken:
    """A source during whose reading another builder, with no lock between, finishes the cache."""

    folder: str

    def documents(self, report: Report) -> Iterator[str]:
        yield "one"
        yield "two"
        theirs = opened(Texts(("one", "two")), Path(self.folder) / "theirs")
        key = digest_values(cache_module.FORMAT, self.digest(), BYTES.fingerprint)
        folder = Path(self.folder) / "tokens" / key
        if not folder.exists():
            shutil.copytree(theirs.folder, folder)
            manifest = (folder / "manifest.json").read_text().replace(theirs.key, key)
            (folder / "manifest.json").write_text(manifest)

    def digest(self) -> str:
        return "overtaken"

    def size(self) -> int:
        return 6


def test_without_locks_the_first_builder_wins(tmp_path):
    cache = opened(Overtaken(str(tmp_path)), tmp_path)
    assert [BYTES.decode(cache.document(i)) for i in range(2)] == ["one", "two"]
    assert names(tmp_path) == {cache.key}


BUILDER = """
import sys
from pathlib import Path
from jscale.data.cache import open_tokens
from jscale.data.files import Texts
from jscale.data.tokenizers import Bytes
source = Texts(tuple(f"document {i}" for i in range(300)))
cache = open_tokens(source, source.digest(), Bytes().load(), Path(sys.argv[1]))
print(cache.key, cache.tokens.sum(), cache.notices)
"""


def test_builders_at_once_agree(tmp_path):
    command = [sys.executable, "-c", BUILDER, str(tmp_path)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = {builder.communicate()[0] for builder in builders}
    assert len(told) == 1
    key, _, notices = told.pop().split()
    assert names(tmp_path) == {key} and notices == "()"


def test_a_cache_travels_to_workers_as_its_folder(words, tmp_path):
    cache = opened(words, tmp_path)
    sent = pickle.dumps(cache)
    assert len(sent) < 500
    assert np.array_equal(pickle.loads(sent).tokens, cache.tokens)
