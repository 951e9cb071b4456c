"""ViT: its names and config.json; what image towers have in common."""

from collections.abc import Mapping
from typing import Any

from jscale.errors import ConfigError
from jscale.formats.huggingface.asked import Asked, images, turned
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys, activation, activation_told
from jscale.formats.table import Pair, Table
from jscale.models.beit3.patches import Patches
from jscale.models.feed import Drop
from jscale.models.vit import ViT

IN, OUT, MATRIX = "(n h) d -> d n h", "d (n h) -> n h d", "o i -> i o"
PATCH = "d c p q -> (p q c) d"
BLOCK: Mapping[str, tuple[str, str | None]] = {
    "attend_norm/scale": ("layernorm_before.weight", None),
    "attend_norm/bias": ("layernorm_before.bias", None),
    **{
        f"attend/{ours[0]}{end}": (f"attention.attention.{ours}.{theirs}", pattern)
        for ours in ("query", "key", "value")
        for end, theirs, pattern in (("", "weight", IN), ("_bias", "bias", "(n h) -> n h"))
    },
    "attend/o": ("attention.output.dense.weight", OUT),
    "attend/o_bias": ("attention.output.dense.bias", None),
    "feed_norm/scale": ("layernorm_after.weight", None),
    "feed_norm/bias": ("layernorm_after.bias", None),
    "feed/up/kernel": ("intermediate.dense.weight", MATRIX),
    "feed/up/bias": ("intermediate.dense.bias", None),
    "feed/down/kernel": ("output.dense.weight", MATRIX),
    "feed/down/bias": ("output.dense.bias", None),
}


def blocks(c: Any, ours: str, theirs: str, names: Mapping[str, tuple[str, str | None]]) -> Any:
    """The rows of a tower's blocks: what both names begin with, and how they go on."""
    for name, (ending, pattern) in names.items():
        sizes = {"n": c.heads} if pattern and "n h" in pattern else {}
        over = {"layer": range(c.layers)}
        yield Pair(f"{ours}/{name}", f"{theirs}.{{layer}}.{ending}", pattern, sizes, over)


def patch_sizes(c: Any) -> dict[str, int]:
    """The letters of `PATCH` that shapes alone do not tell."""
    return {"p": c.patches.size, "q": c.patches.size}


def table(c: ViT) -> Table:
    """The names of a ViT's weights; all but the head's begin alike where it has one."""
    begin = "" if c.classes is None else "vit."
    embed = f"{begin}embeddings."
    pairs = [
        Pair("tower/patched/first", f"{embed}cls_token", "a b d -> (a b d)", {"a": 1, "b": 1}),
        Pair("tower/patched/places", f"{embed}position_embeddings", "a n d -> (a n) d", {"a": 1}),
        Pair(
            *("tower/patched/kernel", f"{embed}patch_embeddings.projection.weight", PATCH),
            patch_sizes(c),
        ),
        Pair("tower/patched/bias", f"{embed}patch_embeddings.projection.bias"),
        *blocks(c, "tower/blocks/block", f"{begin}encoder.layer", BLOCK),
        Pair("norm/scale", f"{begin}layernorm.weight"),
        Pair("norm/bias", f"{begin}layernorm.bias"),
    ]
    ours, theirs = ("pooler", "pooler.dense") if c.classes is None else ("head", "classifier")
    pairs += [
        Pair(f"{ours}/kernel", f"{theirs}.weight", MATRIX),
        Pair(f"{ours}/bias", f"{theirs}.bias"),
    ]
    return Table(tuple(pairs))


def patches(keys: Keys, image: int, size: int) -> Patches:
    """How a config.json cuts images; with the sizes that are meant where it says none.

    Raises:
        ConfigError: images or patches that are not square.
    """
    found = {
        "image_size": keys.take("image_size", image),
        "patch_size": keys.take("patch_size", size),
    }
    for name, value in found.items():
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ConfigError(f"{keys.where} says {name}={value}; jscale has only squares")
            found[name] = value[0]
    return Patches(found["image_size"], found["patch_size"], keys.take("num_channels", 3))


def _read(keys: Keys, classes: bool) -> ViT:
    keys.must("qkv_bias", True)
    keys.take("encoder_stride", None)  # of a decoder that these networks do not have
    dim = keys.take("hidden_size", 768)
    keys.must("pooler_output_size", dim)
    keys.must("pooler_act", "tanh")
    labels = keys.take("id2label", None)
    count = keys.take("num_labels", 2 if labels is None else len(labels))
    keys.take("label2id", None)
    return ViT(
        dim=dim,
        layers=keys.take("num_hidden_layers", 12),
        heads=keys.take("num_attention_heads", 12),
        hidden=keys.take("intermediate_size", 3072),
        patches=patches(keys, 224, 16),
        classes=count if classes else None,
        activation=activation(keys),
        eps=keys.positive("layer_norm_eps", 1e-12),
        drop=Drop(
            units=float(keys.take("hidden_dropout_prob", 0.0)),
            attention=float(keys.take("attention_probs_dropout_prob", 0.0)),
        ),
    )


def _told(c: ViT) -> dict[str, Any]:
    """The keys of config.json.

    Raises:
        ConfigError: a release has no such network.
    """
    if c.drop.activation or c.drop.path:
        raise ConfigError("a release drops units and attention alone: drop=Drop(units, attention)")
    names = [f"LABEL_{i}" for i in range(c.classes or 0)]
    labels = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return {
        "hidden_size": c.dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.hidden,
        "image_size": c.patches.image,
        "patch_size": c.patches.size,
        "num_channels": c.patches.channels,
        "qkv_bias": True,
        "hidden_act": activation_told(c.activation),
        "layer_norm_eps": c.eps,
        "hidden_dropout_prob": c.drop.units,
        "attention_probs_dropout_prob": c.drop.attention,
        **(labels if c.classes else {"pooler_output_size": c.dim, "pooler_act": "tanh"}),
    }


def _pixels(config: ViT, rows: int, draw: Any) -> dict[str, Any]:
    return {"pixel_values": images(config.patches, rows, draw)}


def _classes(network: Any, inputs: Any) -> dict[str, Any]:
    return {"logits": network.classify(turned(inputs["pixel_values"]))}


def _states(network: Any, inputs: Any) -> dict[str, Any]:
    hidden = network(turned(inputs["pixel_values"])).hidden
    return {"last_hidden_state": hidden, "pooler_output": network.pooled(hidden)}


FAMILIES = (
    Family(
        *(ViT, "ViTForImageClassification", "vit", lambda keys: _read(keys, True), _told, table),
        asked=Asked(_pixels, _classes),
        fits=lambda c: c.classes is not None,
    ),
    Family(
        *(ViT, "ViTModel", "vit", lambda keys: _read(keys, False), _told, table),
        asked=Asked(_pixels, _states),
        fits=lambda c: c.classes is None,
    ),
)
