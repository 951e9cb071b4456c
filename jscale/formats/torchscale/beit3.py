"""TorchScale's `BEiT3`: which of its weights are which of ours.

Its copies A and B are ours for images and for text.
"""

from collections.abc import Iterator
from typing import Any

from jscale.checkpoint.names import named_leaves
from jscale.errors import ConfigError
from jscale.formats.table import Pair, Table
from jscale.formats.torchscale.transformer import BUCKETS, LAYER
from jscale.models.model import Model

WAYS = {"image": "A", "text": "B"}
BESIDE = {
    "embed/table": ("text_embed.weight", None),
    "patches/bias": ("vision_embed.proj.bias", None),
    "patches/mask": ("vision_embed.mask_token", "1 1 d -> d"),
    "patches/first": ("vision_embed.cls_token", "1 1 d -> d"),
    "biases/0/table": (f"encoder.relative_position.{BUCKETS}", None),
    "head/kernel": ("encoder.output_projection.weight", "v d -> d v"),
}
TWICE = {  # {way} is A or B in theirs
    "places/0/{way}/table": "encoder.embed_positions.{way}.weight",
    "embed_norm/{way}/scale": "encoder.layernorm_embedding.{way}.weight",
    "embed_norm/{way}/bias": "encoder.layernorm_embedding.{way}.bias",
    "norm/{way}/scale": "encoder.layer_norm.{way}.weight",
    "norm/{way}/bias": "encoder.layer_norm.{way}.bias",
}


def table(config: Any) -> Table:
    """The table of a `BEiT3`.

    Raises:
        ConfigError: it has a weight that TorchScale has not, such as those of `joint` and `pixels`.
    """
    weights = named_leaves(Model(config).shapes)
    rows = [row for row in _rows(config) if row.ours in weights]
    if homeless := sorted(set(weights) - {row.ours for row in rows}):
        raise ConfigError(f"TorchScale's BEiT3 has no weight such as {homeless[0]!r}")
    return Table(tuple(rows), ignored=(r".*\.xpos\.scale",))


def _rows(config: Any) -> Iterator[Pair]:
    """The rows of all weights that a `BEiT3` may have."""
    patch = {"h": config.patches.size, "w": config.patches.size}
    yield Pair("patches/kernel", "vision_embed.proj.weight", "d c h w -> (h w c) d", patch)
    for ours, (theirs, pattern) in BESIDE.items():
        yield Pair(ours, theirs, pattern)
    for way, theirs_way in WAYS.items():
        for ours, theirs in TWICE.items():
            yield Pair(ours.format(way=way), theirs.format(way=theirs_way))
        yield from _layers(config, way, theirs_way)


def _layers(config: Any, way: str, its_way: str) -> Iterator[Pair]:
    """The rows of all layers, those of an encoder's with the copy's name among theirs."""
    over = {"layer": range(config.layers)}
    for ours, (theirs, pattern) in LAYER.items():
        part, weight = ours.split("/", 1)
        # Theirs copies a feed-forward as a whole, and attention projection by projection.
        before, after = theirs.split(".", 1) if part == "feed" else theirs.rsplit(".", 1)
        sizes = {"n": config.heads} if pattern and "n h" in pattern else {}
        name = f"encoder.layers.{{layer}}.{before}.{its_way}.{after}"
        yield Pair(f"blocks/block/{part}/{way}/{weight}", name, pattern, sizes, over)
