"""BERT and RoBERTa: their names and config.json, and how sentence-transformers says the pooling."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jscale.errors import ConfigError
from jscale.formats.huggingface.asked import Asked, tokens
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys, activation, activation_told
from jscale.formats.huggingface.pooling import pooling, pooling_files
from jscale.formats.table import Pair, Table
from jscale.models.bert import BERT, RoBERTa
from jscale.models.feed import Drop
from jscale.models.transformer.head import Masked

IN, OUT, MATRIX = "(n h) d -> d n h", "d (n h) -> n h d", "o i -> i o"
LAYER = "encoder.layer.{layer}."
WHOLE = {
    "embedding/tokens/table": "embeddings.word_embeddings.weight",
    "embedding/places": "embeddings.position_embeddings.weight",
    "embedding/types": "embeddings.token_type_embeddings.weight",
    "embedding/norm/scale": "embeddings.LayerNorm.weight",
    "embedding/norm/bias": "embeddings.LayerNorm.bias",
}
BLOCK: dict[str, tuple[str, str | None]] = {
    **{
        f"attend/{ours[0]}{end}": (f"attention.self.{ours}.{theirs}", pattern)
        for ours in ("query", "key", "value")
        for end, theirs, pattern in (("", "weight", IN), ("_bias", "bias", "(n h) -> n h"))
    },
    "attend/o": ("attention.output.dense.weight", OUT),
    "attend/o_bias": ("attention.output.dense.bias", None),
    "attend_norm/scale": ("attention.output.LayerNorm.weight", None),
    "attend_norm/bias": ("attention.output.LayerNorm.bias", None),
    "feed/up/kernel": ("intermediate.dense.weight", MATRIX),
    "feed/up/bias": ("intermediate.dense.bias", None),
    "feed/down/kernel": ("output.dense.weight", MATRIX),
    "feed/down/bias": ("output.dense.bias", None),
    "feed_norm/scale": ("output.LayerNorm.weight", None),
    "feed_norm/bias": ("output.LayerNorm.bias", None),
}
HEADS = {  # the weights of `Masked`, by what the release begins with
    "bert.": {
        "head/before/dense/kernel": ("cls.predictions.transform.dense.weight", MATRIX),
        "head/before/dense/bias": ("cls.predictions.transform.dense.bias", None),
        "head/before/norm/scale": ("cls.predictions.transform.LayerNorm.weight", None),
        "head/before/norm/bias": ("cls.predictions.transform.LayerNorm.bias", None),
        "head/bias": ("cls.predictions.bias", None),
    },
    "roberta.": {
        "head/before/dense/kernel": ("lm_head.dense.weight", MATRIX),
        "head/before/dense/bias": ("lm_head.dense.bias", None),
        "head/before/norm/scale": ("lm_head.layer_norm.weight", None),
        "head/before/norm/bias": ("lm_head.layer_norm.bias", None),
        "head/bias": ("lm_head.bias", None),
    },
}
AGAIN = {
    "bert.": {
        "embedding/tokens/table": "cls.predictions.decoder.weight",
        "head/bias": "cls.predictions.decoder.bias",
    },
    "roberta.": {
        "embedding/tokens/table": "lm_head.decoder.weight",
        "head/bias": "lm_head.decoder.bias",
    },
}
OLDER = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def table(c: BERT) -> Table:
    """The names of an encoder's weights; all of them begin alike where it has a head."""
    begin = "" if c.head is None else "roberta." if isinstance(c, RoBERTa) else "bert."
    pairs = [Pair(ours, begin + theirs) for ours, theirs in WHOLE.items()]
    for ours, (theirs, pattern) in BLOCK.items():
        sizes = {"n": c.heads} if pattern and "n h" in pattern else {}
        over = {"layer": range(c.layers)}
        pairs.append(Pair(f"blocks/block/{ours}", begin + LAYER + theirs, pattern, sizes, over))
    if c.pooler:
        pairs += [
            Pair("pooler/kernel", f"{begin}pooler.dense.weight", MATRIX),
            Pair("pooler/bias", f"{begin}pooler.dense.bias"),
        ]
    if c.head is not None:
        pairs += [Pair(ours, *theirs) for ours, theirs in HEADS[begin].items()]
    again = tuple(Pair(*names) for names in AGAIN.get(begin, {}).items())
    # What was trained beside the head, and what it was fed by: transformers reads neither with it.
    beside = (r"cls\.seq_relationship\..*", r"bert\.pooler\..*") if begin == "bert." else ()
    return Table(tuple(pairs), (r".*embeddings\.position_ids", *beside), again, older=OLDER)


def read(keys: Keys, kind: type[BERT], scores: bool) -> BERT:
    """A config of ours; `scores` says whether the release has a head.

    Raises:
        ConfigError: a key is missing, or has a value that cannot be had.
    """
    keys.must("position_embedding_type", "absolute")
    keys.must("is_decoder", False)
    keys.must("add_cross_attention", False)
    keys.must("tie_word_embeddings", True)
    for name in ("gradient_checkpointing", "classifier_dropout"):  # neither is of these networks
        keys.take(name, None)
    pooled = None if scores else pooling(keys)
    activates, rows = activation(keys), keys.take("max_position_embeddings", 512)
    padding = keys.take("pad_token_id", 1) if kind is RoBERTa else -1
    # RoBERTa's head has an activation of its own, whatever the blocks have.
    head = Masked(activation="gelu" if kind is RoBERTa else activates) if scores else None
    more: dict[str, Any] = {"padding": padding} if kind is RoBERTa else {}
    return kind(
        vocab=keys.take("vocab_size"),
        dim=keys.take("hidden_size"),
        layers=keys.take("num_hidden_layers"),
        heads=keys.take("num_attention_heads"),
        hidden=keys.take("intermediate_size"),
        longest=rows - padding - 1,
        types=keys.take("type_vocab_size", 2),
        activation=activates,
        eps=keys.positive("layer_norm_eps", 1e-12),
        drop=Drop(
            units=float(keys.take("hidden_dropout_prob", 0.1)),
            attention=float(keys.take("attention_probs_dropout_prob", 0.1)),
        ),
        head=head,
        pooler=not scores,
        pooling=pooled,
        **more,
    )


def told(c: BERT) -> dict[str, Any]:
    """The keys of config.json.

    Raises:
        ConfigError: a release has no such network.
    """
    wanted = "gelu" if isinstance(c, RoBERTa) else c.activation
    if c.head is not None and c.head != Masked(activation=wanted):
        raise ConfigError(
            f"a {type(c).__name__} of transformers has head=Masked(activation={wanted!r}), not"
            f" {c.head}: it cannot be exported"
        )
    if c.pooler == (c.head is not None):
        raise ConfigError(
            f"a {type(c).__name__} of transformers has either head=Masked() or pooler=True, and"
            " this one both or neither: it cannot be exported"
        )
    if c.drop.activation or c.drop.path:
        raise ConfigError("a release drops units and attention alone: drop=Drop(units, attention)")
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.hidden,
        "max_position_embeddings": c.first + c.longest,
        "type_vocab_size": c.types,
        "hidden_act": activation_told(c.activation),
        "layer_norm_eps": c.eps,
        "hidden_dropout_prob": c.drop.units,
        "attention_probs_dropout_prob": c.drop.attention,
        "tie_word_embeddings": True,
        **({"pad_token_id": c.padding} if isinstance(c, RoBERTa) else {}),
    }


def _rows(config: BERT, rows: int, draw: Any) -> dict[str, Any]:
    """Random tokens of random kinds, none of which is padding there."""
    padding = config.padding if isinstance(config, RoBERTa) else 0
    x = tokens(config, rows, draw)["input_ids"][:, : config.longest]
    x = np.where(x == padding, config.vocab - 1 if padding < config.vocab - 1 else 0, x)
    return {"input_ids": x, "token_type_ids": draw.integers(0, config.types, x.shape)}


def _hidden(network: Any, inputs: Any) -> Any:
    return network(inputs["input_ids"], types=inputs["token_type_ids"]).hidden


def _states(network: Any, inputs: Any) -> dict[str, Any]:
    hidden = _hidden(network, inputs)
    return {"last_hidden_state": hidden, "pooler_output": network.pooled(hidden[:, :1])[:, 0]}


def _scores(network: Any, inputs: Any) -> dict[str, Any]:
    return {"logits": network.unembed(_hidden(network, inputs))}


def _family(kind: type[BERT], name: str, scores: bool) -> Family:
    reads: Callable[[Keys], Any] = partial(read, kind=kind, scores=scores)
    return Family(
        *(kind, f"{name}{'ForMaskedLM' if scores else 'Model'}", name.lower(), reads, told, table),
        asked=Asked(_rows, _scores if scores else _states),
        fits=lambda c: (c.head is not None) == scores,
        beside=pooling_files,
    )


FAMILIES = tuple(
    _family(kind, name, scores)
    for kind, name in ((BERT, "Bert"), (RoBERTa, "Roberta"))
    for scores in (True, False)
)
