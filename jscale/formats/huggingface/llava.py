"""LLaVA: CLIP's tower, a projector and a decoder, each with the names of its own release."""

from dataclasses import replace
from typing import Any

import numpy as np

from jscale.errors import ConfigError, did_you_mean
from jscale.formats.huggingface import dense
from jscale.formats.huggingface.asked import LENGTH, Asked, images, turned
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys, activation, activation_told
from jscale.formats.huggingface.towers import PATCH, blocks, patch_sizes, patches
from jscale.formats.table import Pair, Table
from jscale.models.llava import CLIPTower, LLaVA

IN, OUT, MATRIX = "(n h) d -> d n h", "d (n h) -> n h d", "o i -> i o"
TEXTS = {family.model_type: family for family in dense.FAMILIES}
# What is meant where a text_config does not say it: the first LLaVA's is a Llama 2 of 7 b.
LLAMA = dict(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    max_position_embeddings=2048,
)
NORMS = {"attend_norm": "layer_norm1", "feed_norm": "layer_norm2"}
BLOCK: dict[str, tuple[str, str | None]] = {
    **{
        f"{ours}/{part}": (f"{theirs}.{end}", None)
        for ours, theirs in NORMS.items()
        for part, end in (("scale", "weight"), ("bias", "bias"))
    },
    **{
        f"attend/{ours}{end}": (f"self_attn.{ours}_proj.{theirs}", pattern)
        for ours in "qkv"
        for end, theirs, pattern in (("", "weight", IN), ("_bias", "bias", "(n h) -> n h"))
    },
    "attend/o": ("self_attn.out_proj.weight", OUT),
    "attend/o_bias": ("self_attn.out_proj.bias", None),
    "feed/up/kernel": ("mlp.fc1.weight", MATRIX),
    "feed/up/bias": ("mlp.fc1.bias", None),
    "feed/down/kernel": ("mlp.fc2.weight", MATRIX),
    "feed/down/bias": ("mlp.fc2.bias", None),
}


def table(c: LLaVA) -> Table:
    """The names of the tower's weights, of the projector's, and of the decoder's own table."""
    tower, norms = "vision_tower.", ("pre_layrnorm", "post_layernorm")
    pairs = [
        Pair("vision/tower/patched/first", f"{tower}embeddings.class_embedding"),
        Pair("vision/tower/patched/places", f"{tower}embeddings.position_embedding.weight"),
        Pair(
            *("vision/tower/patched/kernel", f"{tower}embeddings.patch_embedding.weight", PATCH),
            patch_sizes(c.vision),
        ),
        *blocks(c.vision, "vision/tower/blocks/block", f"{tower}encoder.layers", BLOCK),
    ]
    for ours, theirs in zip(("vision/tower/before", "vision/norm"), norms, strict=True):
        pairs += [
            Pair(f"{ours}/scale", f"{tower}{theirs}.weight"),
            Pair(f"{ours}/bias", f"{tower}{theirs}.bias"),
        ]
    for ours, theirs in (("up", "linear_1"), ("down", "linear_2")):
        theirs = f"multi_modal_projector.{theirs}"
        pairs.append(Pair(f"projector/{ours}/kernel", f"{theirs}.weight", MATRIX))
        pairs += [Pair(f"projector/{ours}/bias", f"{theirs}.bias")] if c.bias else []
    text = _text(c).table(c.text)
    within = lambda pair: replace(
        pair, ours=f"text/{pair.ours}", theirs=f"language_model.{pair.theirs}"
    )
    pairs += map(within, text.pairs)
    ignored = *text.ignored, r"vision_tower\..*position_ids"
    older = {tower: f"{tower}vision_model."}  # of transformers before 5
    return Table(tuple(pairs), ignored, tuple(map(within, text.again)), older=older)


def _text(c: LLaVA) -> Family:
    """The family of the decoder.

    Raises:
        ConfigError: it is none that LLaVA can have here.
    """
    for family in TEXTS.values():
        if type(c.text) is family.config:
            return family
    known = ", ".join(family.config.__name__ for family in TEXTS.values())
    raise ConfigError(f"a LLaVA with a {type(c.text).__name__} cannot be exported: {known} can")


def _read(keys: Keys) -> LLaVA:
    vision = _part(keys, "vision_config", "clip_vision_model")
    kind = vision.take("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ConfigError(f"{vision.where} is a {kind}; jscale has only clip_vision_model")
    text = _part(keys, "text_config", "llama")
    kind = text.take("model_type", "llama")
    if kind not in TEXTS:
        raise ConfigError(f"{text.where}: no decoder {kind!r}; {did_you_mean(kind, TEXTS)}")
    tied = keys.take("tie_word_embeddings", text.values.get("tie_word_embeddings", False))
    defaults = LLAMA if kind == "llama" else {}
    text.values = {**defaults, **text.values, "tie_word_embeddings": tied}
    # How many tokens a processor writes for an image, and what it leaves unlearned.
    for name in ("image_seq_length", "ignore_index", "vocab_size"):
        keys.take(name, None)
    strategy = keys.must("vision_feature_select_strategy", "default", "full")
    layer = keys.take("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ConfigError(f"{keys.where} says vision_feature_layer={layer}; jscale reads one layer")
    config = LLaVA(
        text=TEXTS[kind].read(text),
        vision=_tower(vision),
        image_token=keys.take("image_token_index", keys.take("image_token_id", 32_000)),
        layer=layer,
        whole=strategy == "full",
        activation=activation(keys, "projector_hidden_act"),
        bias=keys.take("multimodal_projector_bias", True),
    )
    text.end()
    vision.end()
    return config


def _part(keys: Keys, name: str, kind: str) -> Keys:
    """The keys of a part of a config.json."""
    said = keys.take(name)
    if not isinstance(said, dict):
        raise ConfigError(f"{keys.where}: {name} is no object, such as that of a {kind}")
    return Keys(said, f"{keys.where}: {name}")


def _tower(keys: Keys) -> CLIPTower:
    keys.must("attention_dropout", 0.0)
    for name in ("dropout", "initializer_factor", "projection_dim", "vocab_size"):
        keys.take(name, None)  # of CLIP's other parts, or of first weights
    return CLIPTower(
        dim=keys.take("hidden_size", 768),
        layers=keys.take("num_hidden_layers", 12),
        heads=keys.take("num_attention_heads", 12),
        hidden=keys.take("intermediate_size", 3072),
        patches=patches(keys, 224, 32),
        activation=activation(keys, default="quick_gelu"),
        eps=keys.positive("layer_norm_eps", 1e-5),
    )


def _told(c: LLaVA) -> dict[str, Any]:
    """The keys of config.json.

    Raises:
        ConfigError: a release has no such network.
    """
    tower, text = c.vision, _text(c)
    if any(vars(tower.drop).values()):
        raise ConfigError(f"a release's tower drops nothing: vision.drop=Drop(), not {tower.drop}")
    return {
        "image_token_index": c.image_token,
        "image_seq_length": c.places,
        "vision_feature_layer": c.layer,
        "vision_feature_select_strategy": "full" if c.whole else "default",
        "projector_hidden_act": activation_told(c.activation),
        "multimodal_projector_bias": c.bias,
        "tie_word_embeddings": c.text.tied,
        "text_config": {"model_type": text.model_type, **text.told(c.text)},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": tower.dim,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "intermediate_size": tower.hidden,
            "image_size": tower.patches.image,
            "patch_size": tower.patches.size,
            "num_channels": tower.patches.channels,
            "hidden_act": activation_told(tower.activation),
            "layer_norm_eps": tower.eps,
            "attention_dropout": 0.0,
        },
    }


def _shown(c: LLaVA, rows: int, draw: Any) -> dict[str, Any]:
    """Random tokens, with two images in a row, each at another place."""
    x = draw.integers(0, c.vocab, (rows, LENGTH + 2 * c.places))
    x = [[t if t != c.image_token else (t + 1) % c.vocab for t in row] for row in x.tolist()]
    for n, row in enumerate(x):
        for at in (1 + n % 7, 12 + c.places):
            row[at : at + c.places] = [c.image_token] * c.places
    pixels = images(c.vision.patches, 2 * rows, draw)
    return {"input_ids": np.asarray(x), "pixel_values": pixels}


def _logits(network: Any, inputs: Any) -> dict[str, Any]:
    tokens, pixels = inputs["input_ids"], turned(inputs["pixel_values"])
    by_row = pixels.reshape(tokens.shape[0], -1, *pixels.shape[1:])
    return {"logits": network.unembed(network(tokens, images=by_row).hidden)}


FAMILIES = (
    Family(
        *(LLaVA, "LlavaForConditionalGeneration", "llava", _read, _told, table),
        asked=Asked(_shown, _logits),
    ),
)
