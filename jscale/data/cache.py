"""Text tokenized once: a folder of arrays, found by what is in it, verified when it is opened.

    <cache>/tokens/<key>/tokens.bin      uint16 (uint32 above 65,536 ids): every document, in order
                         documents.npy   int64, N+1 offsets into it
                         hashes.npy      uint64, one per document: who is held out
                         report.json     counts; bad lines as path:line
                         manifest.json   sizes and digests of the others; written last

The key covers the source's content, the tokenizer and this format. A folder appears by one rename,
so it is whole or absent; a damaged one is set aside and built again, never used.

Legend: N documents.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int64, Integer, UInt64

from jscale.data.heldout import document_hash
from jscale.data.source import Report, Source, digest_values, documents_with_text
from jscale.data.tokenizers import Tokenizer
from jscale.errors import DataError

log = logging.getLogger("jscale.data")

FORMAT = 1
BATCH = 1 << 21  # bytes of text tokenized together: bounds the memory of a build
VERIFIED = 1 << 28  # bytes of tokens.bin up to which its digest is checked at every opening
STALE = 24 * 3600  # seconds after which an unfinished build is taken for dead
FILES = ("tokens.bin", "documents.npy", "hashes.npy", "report.json")

Progress = Callable[[int, int, str], None]
"""Told (bytes done, bytes in all, phase) now and then."""


def ignore_progress(done: int, total: int, phase: str) -> None:
    """The progress callback of those who do not want one."""


@dataclass(frozen=True, eq=False)
class TokenCache:
    """An opened cache. `notices` says what was done about damage, for people to see."""

    folder: Path
    key: str
    tokens: Integer[np.ndarray, " tokens"]
    hashes: UInt64[np.ndarray, " N"]
    offsets: Int64[np.ndarray, " N+1"]
    report: dict[str, Any]
    notices: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers map the files again instead of receiving a copy of the tokens."""
        return _reopen, (self.folder, self.key)

    def document(self, index: int) -> Integer[np.ndarray, " length"]:
        """The token ids of one document."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def cache_folder(named: str | None) -> Path:
    """The folder that data name as their cache, or ~/.cache/jscale."""
    return Path(named).expanduser() if named else Path.home() / ".cache" / "jscale"


class _Damaged(Exception):
    """The folder is not what was written; the argument says how."""


def open_tokens(
    source: Source,
    digest: str,
    tokenizer: Tokenizer,
    cache: Path,
    progress: Progress = ignore_progress,
) -> TokenCache:
    """The source's tokens: read where they are kept and whole, else made now.

    `digest` is the source's own, taken before. Raises `DataError` where the source cannot be read
    or the cache cannot be written; what was there before stays as it was.
    """
    key = digest_values(FORMAT, digest, tokenizer.fingerprint)
    folder = cache / "tokens" / key
    kept, _ = _try_open(folder, key)
    if kept is not None:
        return kept
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / f"{key}.lock"):
            kept, damage = _try_open(folder, key)  # somebody else may have built it meanwhile
            if kept is None:
                kept = _build(source, digest, tokenizer, folder, damage, progress)
            return kept
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write the token cache {folder.parent}: {reason}") from error


def _try_open(folder: Path, key: str) -> tuple[TokenCache | None, str]:
    """The cache, or None and what is wrong with it ("" where it is merely absent)."""
    if not folder.exists():
        return None, ""
    try:
        _verify(folder, key)
        return _reopen(folder, key), ""
    except (_Damaged, OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{folder} was damaged ({error}) and has been built again"


def _verify(folder: Path, key: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    if manifest["key"] != key or set(manifest["files"]) != set(FILES):
        raise _Damaged("its manifest belongs to another cache")
    for name, recorded in manifest["files"].items():
        size = os.path.getsize(folder / name)
        if size != recorded["size"]:
            raise _Damaged(f"{name} has {size} bytes instead of {recorded['size']}")
        if name == "tokens.bin" and size > VERIFIED:
            continue
        if _digest(folder / name) != recorded["digest"]:
            raise _Damaged(f"{name} has other bytes than were written")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _reopen(folder: Path, key: str) -> TokenCache:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return TokenCache(
        folder,
        key,
        np.memmap(folder / "tokens.bin", np.dtype(manifest["dtype"]), mode="r"),
        np.load(folder / "hashes.npy", allow_pickle=False),
        np.load(folder / "documents.npy", allow_pickle=False),
        json.loads((folder / "report.json").read_bytes()),
    )


def _build(
    source: Source,
    digest: str,
    tokenizer: Tokenizer,
    folder: Path,
    damage: str,
    progress: Progress,
) -> TokenCache:
    _clear_stale(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        whole = temporary / "whole"
        whole.mkdir()
        _write_arrays(source, tokenizer, whole, progress)
        if source.digest() != digest:
            raise DataError(f"the corpus changed while it was read; start again: {_name(source)}")
        _write_manifest(whole, folder.name)
        if damage:
            log.warning(damage)
            os.rename(folder, temporary / "damaged")
        try:
            os.rename(whole, folder)
        except OSError:  # without a lock, somebody else may have been first: theirs is as good
            if _try_open(folder, folder.name)[0] is None:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    built = _reopen(folder, folder.name)
    return replace(built, notices=(damage,) if damage else ())


def _clear_stale(folder: Path) -> None:
    """Remove what killed builders left. By age, because a lock may not reach to other hosts."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


def _write_arrays(source: Source, tokenizer: Tokenizer, folder: Path, progress: Progress) -> None:
    report = Report()
    dtype = np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)
    offsets, hashes = array("q", [0]), array("Q")
    with open(folder / "tokens.bin", "wb") as file:
        for texts in _text_batches(source, report, progress):
            hashes.extend(document_hash(text) for text in texts)
            _append(tokenizer.encode_documents(texts), file, offsets, dtype, tokenizer.vocab)
    if not report.documents:
        skipped = f" ({report.empty} were empty)" if report.empty else ""
        raise DataError(f"the corpus has no documents{skipped}: {_name(source)}")
    np.save(folder / "documents.npy", np.array(offsets, np.int64))
    np.save(folder / "hashes.npy", np.array(hashes, np.uint64))
    facts = asdict(report) | {"tokens": offsets[-1], "vocab": tokenizer.vocab, "dtype": dtype.name}
    (folder / "report.json").write_text(json.dumps(facts, indent=1) + "\n")


def _write_manifest(folder: Path, key: str) -> None:
    facts = json.loads((folder / "report.json").read_bytes())
    files = {
        name: {"size": os.path.getsize(folder / name), "digest": _digest(folder / name)}
        for name in FILES
    }
    manifest = {"format": FORMAT, "key": key, "dtype": facts["dtype"], "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _name(source: Source) -> str:
    text = repr(source)
    return text if len(text) <= 200 else text[:200] + "..."


def _text_batches(source: Source, report: Report, progress: Progress) -> Iterator[list[str]]:
    """Documents in lists of about BATCH bytes, counted in the report."""
    total = source.size()
    batch: list[str] = []
    pending = 0
    for text in documents_with_text(source, report):
        batch.append(text)
        length = len(text.encode())
        pending += length
        report.bytes += length
        if pending >= BATCH:
            yield batch
            progress(min(report.read, total), total, "tokenizing")
            batch, pending = [], 0
    if batch:
        yield batch
    progress(total, total, "tokenizing")


def _append(
    documents: list[list[int]], file: IO[bytes], offsets: array, dtype: np.dtype, vocab: int
) -> None:
    """Write the ids and their offsets; raises `DataError` for an id outside the vocabulary."""
    total = sum(map(len, documents))
    ids = np.fromiter(itertools.chain.from_iterable(documents), np.int64, total)
    if total and not 0 <= ids.min() <= ids.max() < vocab:
        wrong = int(ids.max() if ids.max() >= vocab else ids.min())
        first = next(i for i, document in enumerate(documents) if wrong in document)
        raise DataError(
            f"the tokenizer gave id {wrong} in document {len(offsets) - 1 + first}, "
            f"outside its vocabulary of {vocab}"
        )
    file.write(ids.astype(dtype).tobytes())
    for document in documents:
        offsets.append(offsets[-1] + len(document))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time; the lock dies with its process. Without locks, one rename wins."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            log.warning("%s cannot be locked; builders at the same time repeat work", path)
        yield
