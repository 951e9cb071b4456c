"""How many bytes of text each token stands for, where that can be known of a tokenizer.

Bits per byte compare models whose tokenizers differ, so a wrong count is worse than none: only
byte-level tokenizers that keep every byte of a text are counted, any other is refused with its
reason.
"""

# V vocabulary.

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int32
from tokenizers import pre_tokenizers

from jscale.data.tokenizers import Tokenizer

KEEPS = {"Split", "Punctuation", "Digits"}  # these cut a text; some of them may also remove


class UnknownBytes(ValueError):
    """The tokens of this tokenizer stand for no known number of bytes; the argument says why."""


@lru_cache(maxsize=4)
def token_bytes(tokenizer: Tokenizer) -> Int32[np.ndarray, " V"]:
    """The UTF-8 bytes that each token stands for; 0 for those that mark beginning, end, padding.

    For every text, the bytes of its tokens add up to the bytes of the text.

    Raises:
        UnknownBytes: the tokenizer is not byte-level, or changes the text before it cuts it.
    """
    about = json.loads(tokenizer.text)
    _check_keeps_bytes(about)
    vocabulary = about["model"]["vocab"]
    lengths = np.zeros(tokenizer.vocab, np.int32)
    for letters, index in vocabulary.items():
        lengths[index] = len(letters)  # one letter of the alphabet is one byte
    for token in about.get("added_tokens") or ():
        lengths[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    marks = {"bos": tokenizer.bos, "eos": tokenizer.eos}
    for role, index in marks.items():
        if index is not None and lengths[index]:
            raise UnknownBytes(f"its {role} token {tokenizer.names[role]!r} is also text")
    return lengths


def _check_keeps_bytes(about: Mapping[str, Any]) -> None:
    """Refuse a tokenizer.json of which it is not certain that no byte is lost, added or changed."""
    model = about.get("model") or {}
    if about.get("normalizer"):
        raise UnknownBytes(f"its normalizer ({about['normalizer']['type']}) changes the text")
    if model.get("type") != "BPE":
        raise UnknownBytes(f"it is no byte-level BPE but {model.get('type') or 'another model'}")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnknownBytes("its tokens carry marks beside their text")
    steps = about.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers") or [steps]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    others = [step for step in steps if step.get("type") != "ByteLevel"]
    if len(levels) != 1 or levels[0].get("add_prefix_space", True):
        raise UnknownBytes("it is not byte-level, or adds a space before the text")
    for step in others:
        if step.get("type") not in KEEPS or step.get("behavior") == "Removed":
            raise UnknownBytes(f"its pre-tokenizer ({step.get('type')}) may change the text")
    lost = [x for x in pre_tokenizers.ByteLevel.alphabet() if x not in model["vocab"]]
    if lost:
        raise UnknownBytes(f"{len(lost)} of the 256 bytes are no token of it")
    for token in about.get("added_tokens") or ():
        if not token["special"] and (token["lstrip"] or token["rstrip"]):
            raise UnknownBytes(f"its token {token['content']!r} takes the spaces around it")
