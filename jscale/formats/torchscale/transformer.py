"""TorchScale's encoder, decoder and encoder-decoder: which of their weights are which of ours.

The rows follow from the names that a network's weights have: what TorchScale has no name for, such
as a gated feed-forward, is an error.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jscale.checkpoint.names import named_leaves
from jscale.errors import ConfigError
from jscale.formats.table import Pair, Table
from jscale.formats.torchscale.layers import kinds
from jscale.formats.torchscale.moe import mixture
from jscale.models.model import Model

IN, OUT, MATRIX = "(n h) d -> d n h", "d (n h) -> n h d", "o i -> i o"
Names = Mapping[str, tuple[str, str | None]]  # ours: theirs, and how it becomes ours


def _norm(ours: str, theirs: str) -> Names:
    return {f"{ours}/scale": (f"{theirs}.weight", None), f"{ours}/bias": (f"{theirs}.bias", None)}


def _attention(ours: str, theirs: str) -> Names:
    rows: dict[str, tuple[str, str | None]] = {
        f"{ours}/o": (f"{theirs}.out_proj.weight", OUT),
        f"{ours}/o_bias": (f"{theirs}.out_proj.bias", None),
        **_norm(f"{ours}/norm", f"{theirs}.inner_attn_ln"),
    }
    for name in ("q", "k", "v"):
        rows[f"{ours}/{name}"] = (f"{theirs}.{name}_proj.weight", IN)
        rows[f"{ours}/{name}_bias"] = (f"{theirs}.{name}_proj.bias", "(n h) -> n h")
    return rows


LAYER: Names = {
    **_norm("attend_norm", "self_attn_layer_norm"),
    **_attention("attend", "self_attn"),
    **_norm("cross_norm", "encoder_attn_layer_norm"),
    **_attention("cross", "encoder_attn"),
    **_norm("feed_norm", "final_layer_norm"),
    "feed/up/kernel": ("ffn.fc1.weight", MATRIX),
    "feed/up/bias": ("ffn.fc1.bias", None),
    "feed/down/kernel": ("ffn.fc2.weight", MATRIX),
    "feed/down/bias": ("ffn.fc2.bias", None),
    **_norm("feed/norm", "ffn.ffn_layernorm"),
}
BUCKETS = "relative_attention_bias.weight"
BESIDE: Names = {
    "places/0/table": ("embed_positions.weight", None),
    "cross/0/table": (f"cross_attn_relative_position.{BUCKETS}", None),
    **_norm("embed_norm", "layernorm_embedding"),
    **_norm("norm", "layer_norm"),
}
ENCODER: Names = {**BESIDE, "biases/0/table": (f"relative_position.{BUCKETS}", None)}
DECODER: Names = {**BESIDE, "biases/0/table": (f"self_attn_relative_position.{BUCKETS}", None)}


class Stack(NamedTuple):
    """One stack of blocks: what its weights' names begin with, and what stands beside layers."""

    ours: str
    theirs: str
    beside: Names


def table(config: Any) -> Table:
    """The table of a `TransformerEncoder`, a `TransformerDecoder` or an `EncoderDecoder`.

    Raises:
        ConfigError: it has a weight that TorchScale has not.
    """
    weights = named_leaves(Model(config).shapes)
    if any(name.startswith("encoder/") for name in weights):
        stacks = Stack("encoder/", "encoder.", ENCODER), Stack("decoder/", "decoder.", DECODER)
        rows = [*_embeddings(weights, "source_embed/table", "encoder.")]
        rows += _embeddings(weights, "embed/table", "decoder.")
        tied, head = config.share != "none", "decoder."
    else:
        # An encoder's and a decoder's weights differ in the name of their position bias alone.
        decodes = type(config).__name__ == "TransformerDecoder"
        stacks = (Stack("tower/", "", DECODER if decodes else ENCODER),)
        rows = [*_embeddings(weights, "embed/table", "")]
        tied, head = config.head is not None and config.head.tied, ""
    rows += [pair for stack in stacks for pair in _stack(stack, weights, config.heads)]
    name = f"{head}output_projection.weight"
    if tied:
        rows.append(Pair("embed/table", name))
    elif "head/kernel" in weights:
        rows.append(Pair("head/kernel", name, "v d -> d v"))
    if homeless := sorted(set(weights) - {row.ours for row in rows}):
        raise ConfigError(f"TorchScale's Transformers have no weight such as {homeless[0]!r}")
    return Table(tuple(rows), ignored=(r".*\.xpos\.scale",))


def _embeddings(weights: Mapping[str, Any], ours: str, theirs: str) -> Iterator[Pair]:
    ours = ours if ours in weights else "embed/table"  # of the source, where all share one
    yield Pair(ours, f"{theirs}embed_tokens.weight")


def _stack(stack: Stack, weights: Mapping[str, jax.ShapeDtypeStruct], heads: int) -> Iterator[Pair]:
    """The rows of a stack: those of its layers, by turns, and those beside them."""
    for mine, (its, pattern) in stack.beside.items():
        if f"{stack.ours}{mine}" in weights:
            yield Pair(f"{stack.ours}{mine}", f"{stack.theirs}{its}", pattern)
    for kind in kinds(weights, f"{stack.ours}blocks/block/"):
        its = f"{stack.theirs}layers.{{layer}}."
        for mine, (name, pattern) in LAYER.items():
            if mine in kind.weights:
                sizes = {"n": heads} if pattern and "n h" in pattern else {}
                yield Pair(f"{kind.ours}{mine}", its + name, pattern, sizes, kind.over)
        yield from mixture(kind, f"{its}moe_layer.")
