"""From text to token ids and back: Hugging Face `tokenizers` underneath, three ways to get one.

`BytePairs` is trained on the corpus, `TokenizerFile` is read from a release, `Bytes` needs neither.
Each loads to a `Tokenizer`, which is saved as the release format (`tokenizer.json`, and
`tokenizer_config.json` for the names of its special tokens), so a run folder stands by itself.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import tokenizers as hf
from jaxtyping import Integer
from tokenizers import decoders, models, pre_tokenizers, trainers

from jscale.data.source import digest_values, reading, write_text
from jscale.errors import ConfigError, DataError, did_you_mean

log = logging.getLogger("jscale.data")

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
# What well-known releases call them, for a tokenizer.json that comes without its config.
KNOWN = {
    "bos": (BOS, "<|begin_of_text|>", "<s>", "<bos>", "<｜begin▁of▁sentence｜>", "[CLS]"),
    "eos": (
        *(EOS, "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"),
        *("<｜end▁of▁sentence｜>", "[SEP]"),
    ),
    "pad": (PAD, "<pad>", "<|finetune_right_pad_id|>", "<|padding|>", "[PAD]"),
}


class Tokenizer:
    """Text to ids and back. `vocab` is the largest id plus one; `bos` is None where not used."""

    def __init__(self, text: str, bos: str | None, eos: str, pad: str | None, where: str) -> None:
        """From the text of a tokenizer.json and the names of its special tokens.

        Raises `DataError`, naming `where`, for a text or a name that cannot be used.
        """
        try:
            self._engine = hf.Tokenizer.from_str(text)
        except Exception as error:  # the library raises the bare class
            raise DataError(f"{where} is not a tokenizer.json: {error}") from error
        # A release may carry settings that cut or fill every text, and special tokens are for us to
        # place: a document that spells one out stays text.
        self._engine.no_truncation()
        self._engine.no_padding()
        self._engine.encode_special_tokens = True
        self.text = text
        self.names = {"bos": bos, "eos": eos, "pad": pad}
        vocabulary = self._engine.get_vocab(with_added_tokens=True)
        for role, name in self.names.items():
            if name is not None and name not in vocabulary:
                hint = did_you_mean(name, _special_tokens(self._engine))
                raise DataError(f"{where} has no token {name!r} for {role}; {hint}")
        self.vocab = max(vocabulary.values()) + 1
        self.eos = vocabulary[eos]
        self.bos = None if bos is None else vocabulary[bos]
        self.pad = self.eos if pad is None else vocabulary[pad]
        self.fingerprint = digest_values(text, self.names)

    @property
    def start(self) -> int:
        """The token with which a text of its own is begun: bos, or eos where there is none."""
        return self.eos if self.bos is None else self.bos

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without bos and eos, on all cores."""
        encodings = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text as training sees it: bos where there is one, the text, eos."""
        start = [] if self.bos is None else [self.bos]
        return [[*start, *ids, self.eos] for ids in self.encode_batch(texts)]

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, " n"]) -> str:
        """The text of the ids, without special tokens."""
        return self._engine.decode([int(i) for i in ids], skip_special_tokens=True)

    def id_of(self, token: str) -> int:
        """The id of one token by its exact name; raises `DataError` where there is none."""
        found = self._engine.token_to_id(token)
        if found is None:
            hint = did_you_mean(token, _special_tokens(self._engine))
            raise DataError(f"the tokenizer has no token {token!r}; {hint}")
        return found

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, each whole or not at all."""
        config = {f"{role}_token": name for role, name in self.names.items()}
        config["add_bos_token"] = self.bos is not None
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        os.makedirs(folder, exist_ok=True)
        write_text(Path(folder) / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")
        write_text(Path(folder) / "tokenizer.json", self.text)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """What `save` wrote, or the tokenizer of a release; raises `DataError`."""
        return TokenizerFile(str(folder)).load()


@dataclass(frozen=True)
class Training:
    """What a tokenizer may learn from: the training documents, read again on every call."""

    documents: Callable[[], Iterator[str]]
    size: int  # bytes of input
    key: str  # of the content
    folder: Path  # where trained tokenizers are kept


@runtime_checkable
class TokenizerSource(Protocol):
    """The part of a recipe that says which tokenizer."""

    def load(self, training: Training) -> Tokenizer:
        """The tokenizer; raises `DataError` where it cannot be had."""
        ...


def tokenizer_of(source: TokenizerSource, training: Training) -> Tokenizer:
    """The tokenizer, learned where it must be and is not kept yet.

    Raises:
        DataError: it cannot be read, learned or kept.
    """
    try:
        return source.load(training)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot keep the tokenizer in {training.folder}: {reason}") from error


@dataclass(frozen=True)
class BytePairs:
    """Byte-level byte-pair encoding of `vocab` tokens, trained on the corpus and kept by content.

    Above `sample` bytes of input, a fixed random share of the documents is learnt from.
    """

    vocab: int = 4096  # tokens, the three special ones included
    sample: int = 1 << 28  # bytes of the corpus that are learnt from at most

    def __post_init__(self) -> None:
        if self.vocab < 259:
            raise ConfigError(f"BytePairs: vocab={self.vocab} is below 259 (256 bytes, 3 specials)")
        if self.sample < 1:
            raise ConfigError(f"BytePairs: sample={self.sample} must be positive (bytes)")

    def load(self, training: Training) -> Tokenizer:
        """The tokenizer of this corpus, trained at the first call and read at later ones."""
        folder = training.folder / digest_values(
            "BytePairs 1", training.key, self.vocab, self.sample
        )
        if folder.is_dir():
            try:
                return _load_kept(folder)
            except DataError as error:
                log.warning("the kept tokenizer is damaged and is trained again: %s", error)
        tokenizer = self._train(training)
        tokenizer.save(folder)
        write_text(folder / "fingerprint", tokenizer.fingerprint)
        return tokenizer

    def _train(self, training: Training) -> Tokenizer:
        engine = hf.Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        engine.train_from_iterator(_sample(training, self.sample), trainer)
        return Tokenizer(engine.to_str(), BOS, EOS, PAD, "the trained tokenizer")


def _load_kept(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    with reading(folder / "fingerprint"):
        recorded = (folder / "fingerprint").read_bytes()
    if recorded != tokenizer.fingerprint.encode():
        raise DataError(f"{folder / 'tokenizer.json'} is not the file that was written")
    return tokenizer


def _sample(training: Training, wanted: int) -> Iterator[str]:
    """Every document, or the share of them that makes about `wanted` bytes, chosen by content."""
    share = wanted / max(1, training.size)
    for text in training.documents():
        if share >= 1 or _lot(text) < share:
            yield text


def _lot(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=7, person=b"sample").digest()
    return int.from_bytes(digest, "little") / 2**56


@dataclass(frozen=True)
class Bytes:
    """The 256 bytes as tokens 0 to 255, then pad, bos and eos: nothing to train or to miss."""

    vocab: ClassVar[int] = 259  # known before it is loaded, as that of `BytePairs`

    def load(self, training: Training | None = None) -> Tokenizer:
        """The tokenizer; the corpus does not matter."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of)
        engine = hf.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        engine.decoder = decoders.ByteLevel()
        engine.add_special_tokens([PAD, BOS, EOS])
        return Tokenizer(engine.to_str(), BOS, EOS, PAD, "the byte tokenizer")


def _byte_of(letter: str) -> int:
    """The byte that GPT-2's alphabet writes as this letter: itself, or the n-th unprintable."""
    if ord(letter) < 256:
        return ord(letter)
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [byte for byte in range(256) if byte not in printable][ord(letter) - 256]


@dataclass(frozen=True)
class TokenizerFile:
    """A Hugging Face tokenizer.json, or the folder that holds it; names override its config."""

    path: str  # of the file, or of its folder
    bos: str | None = None  # name of the token that begins a document
    eos: str | None = None  # name of the token that ends one
    pad: str | None = None  # name of the token that fills rows; None: eos

    def load(self, training: Training | None = None) -> Tokenizer:
        """The tokenizer; raises `DataError` for a missing file, another format, an unknown name."""
        path = Path(self.path).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        with reading(path):
            data = path.read_bytes()
        try:
            text = data.decode()
            added = json.loads(text).get("added_tokens", [])
            special = [token["content"] for token in added]
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a tokenizer.json: {error}") from error
        config = _read_config(path.parent / "tokenizer_config.json")
        eos = self.eos or _name(config, "eos", special) or _numbered(path, "eos", added)
        if eos is None:
            raise DataError(f"{path} does not say which token ends a document: set eos to its name")
        bos = self.bos or _name(config, "bos", special)
        if self.bos is None and (bos == eos or config.get("add_bos_token") is False):
            bos = None  # one token that does both would stand twice between documents
        return Tokenizer(text, bos, eos, self.pad or _name(config, "pad", special), str(path))


def _name(config: dict[str, object], role: str, special: Sequence[str]) -> str | None:
    """From the release's config where it has one, else the well-known name that is present."""
    if f"{role}_token" in config:
        token = config[f"{role}_token"]
        token = token.get("content") if isinstance(token, dict) else token
        return token if isinstance(token, str) else None
    return next((name for name in KNOWN[role] if name in special), None)


def _numbered(path: Path, role: str, added: Sequence[dict[str, object]]) -> str | None:
    """What the config.json beside a tokenizer gives the number of; of several, the first."""
    number = _read_config(path.parent / "config.json").get(f"{role}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return next((str(token["content"]) for token in added if token.get("id") == number), None)


def _read_config(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} is damaged: a JSON object is wanted")
    return config


def _special_tokens(engine: hf.Tokenizer) -> list[str]:
    return [token.content for token in engine.get_added_tokens_decoder().values()]
