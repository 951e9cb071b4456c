"""TorchScale's `RetNetDecoder`: which of its weights are which of ours."""

from typing import Any

from jscale.checkpoint.names import named_leaves
from jscale.errors import ConfigError
from jscale.formats.table import Pair, Table
from jscale.formats.torchscale.layers import kinds
from jscale.formats.torchscale.moe import mixture
from jscale.models.model import Model

# Theirs rotates neighbours, lanes 2i and 2i + 1 of a head; ours its halves, lanes i and H/2 + i.
TURNED, PLAIN = "(n i two) d -> d n (two i)", "(n v) d -> d n v"
MATRIX = "f d -> d f"
# Their `fc1` goes through the activation: our `gate`. Their `gate` is what it multiplies.
LAYER: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "retain_norm/scale": ("retention_layer_norm", None, ()),
    "retain/q": ("retention.q_proj", TURNED, ("n", "two")),
    "retain/k": ("retention.k_proj", TURNED, ("n", "two")),
    "retain/v": ("retention.v_proj", PLAIN, ("n",)),
    "retain/g": ("retention.g_proj", PLAIN, ("n",)),
    "retain/o": ("retention.out_proj", "d (n v) -> n v d", ("n",)),
    "feed_norm/scale": ("final_layer_norm", None, ()),
    "feed/gate/kernel": ("ffn.fc1", MATRIX, ()),
    "feed/up/kernel": ("ffn.gate", MATRIX, ()),
    "feed/down/kernel": ("ffn.fc2", MATRIX, ()),
}


def table(config: Any) -> Table:
    """The table of a `RetNet` whose feed-forwards are `GLU`s, or experts that are `MLP`s.

    Raises:
        ConfigError: it has a weight that TorchScale has not.
    """
    weights, sizes = named_leaves(Model(config).shapes), {"n": config.heads, "two": 2}
    rows = [Pair("embed/table", "embed_tokens.weight")]
    for kind in kinds(weights, "blocks/block/"):
        for ours, (theirs, pattern, letters) in LAYER.items():
            if ours in kind.weights:
                its = f"layers.{{layer}}.{theirs}.weight"
                known = {letter: sizes[letter] for letter in letters}
                rows.append(Pair(kind.ours + ours, its, pattern, known, kind.over))
        rows += mixture(kind, "layers.{layer}.moe_layer.")
    if config.embed_norm:
        rows.append(Pair("embed_norm/scale", "layernorm_embedding.weight"))
    if config.residual.before:
        rows.append(Pair("norm/scale", "layer_norm.weight"))
    if config.tied:
        rows.append(Pair("embed/table", "output_projection.weight"))
    else:
        rows.append(Pair("head/kernel", "output_projection.weight", "w d -> d w"))
    if homeless := sorted(set(weights) - {row.ours for row in rows}):
        raise ConfigError(f"TorchScale's RetNet has no weight such as {homeless[0]!r}")
    return Table(tuple(rows), ignored=(r"retnet_rel_pos\.(angle|decay)",))
