"""Llama 4, its text part: its names, and what it says in its config.json."""

from dataclasses import replace
from typing import Any

from jscale.errors import ConfigError
from jscale.formats.huggingface import experts
from jscale.formats.huggingface.dense import BLOCK, MATRIX, Rows, sizes_of, table, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.fused import fused, in_turn
from jscale.formats.huggingface.keys import Keys
from jscale.formats.huggingface.layer_types import CHUNKS, kinds_of, types_of
from jscale.formats.table import Table
from jscale.models.gates import Balance, TopK
from jscale.models.llama4 import Chunks, Llama4, Sharper
from jscale.models.sparse import Experts, Shared
from jscale.models.windows import turns_of

# Theirs rotates the pairs (2i, 2i + 1) of a head, ours its halves: of queries and keys alike.
PAIRS = {"": "(n x t) d -> d n (t x)", "_bias": "(n x t) -> n (t x)"}
EXPERT = f"{experts.FEED}/expert"
ROWS: Rows = {
    **BLOCK,
    **{
        f"attend/{name}{what}": (f"self_attn.{name}_proj.{end}", PAIRS[what])
        for name in "qk"
        for what, end in (("", "weight"), ("_bias", "bias"))
    },
    f"{experts.FEED}/router/kernel": ("feed_forward.router.weight", "e d -> d e"),
    f"{EXPERT}/gate/kernel": ("feed_forward.experts.gate_up_proj", None),
    f"{EXPERT}/up/kernel": ("feed_forward.experts.gate_up_proj", None),
    f"{EXPERT}/down/kernel": ("feed_forward.experts.down_proj", None),
    **{
        f"feed/{part}{name}": (f"feed_forward.{theirs}{name}_proj.weight", MATRIX)
        for part, theirs in (("", ""), ("shared/", "shared_expert."))
        for name in ("gate", "up", "down")
    },
}
DEFAULTS = dict(  # what transformers takes where nothing is said
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    intermediate_size=8192,
    intermediate_size_mlp=16384,
)


def _table(c: Llama4) -> Table:
    rows = table(c, ROWS)
    heads = {"attend/q": c.heads, "attend/k": c.kv_heads}
    heads |= {f"{name}_bias": count for name, count in heads.items()}
    pairs = list(rows.pairs)
    for at, pair in enumerate(pairs):
        for name, count in heads.items():
            if pair.ours.endswith(f"/{name}"):
                pairs[at] = replace(pair, sizes={"n": count, "t": 2})
    inside = c.experts.hidden or c.hidden
    cuts = in_turn(2, {f"{EXPERT}/gate/kernel": inside, f"{EXPERT}/up/kernel": inside})
    return fused(replace(rows, pairs=tuple(pairs)), cuts)


def _experts(count: int, choices: int, hidden: int, balance: Balance) -> Experts:
    """Those that a Llama 4 can have."""
    choice = TopK(choices, "sigmoid", normalise=False)
    return Experts(count, choice, hidden, Shared(hidden), balance, weighs="inputs")


def _llama4(keys: Keys) -> Llama4:
    keys.unsaid(**DEFAULTS)
    inside = keys.take("intermediate_size")
    keys.values["intermediate_size"] = keys.take("intermediate_size_mlp")
    keys.must("router_jitter_noise", 0.0)
    choices = keys.take("num_experts_per_tok", 1)
    keys.unsaid(num_local_experts=16)
    sizes = sizes_of(keys)
    feeds = _feeds(keys, sizes["layers"])
    mixture = _experts(choices=choices, hidden=inside, **experts.routed(keys))
    return Llama4(**sizes, chunks=_chunks(keys, sizes["layers"]), feeds=feeds, experts=mixture)


def _feeds(keys: Keys, layers: int) -> tuple[str, ...]:
    step = keys.take("interleave_moe_layer_step", 1)
    sparse = {*keys.take("moe_layers", range(step - 1, layers, step))}
    if wrong := sparse - {*range(layers)}:
        raise ConfigError(f"{keys.where}: moe_layers name {min(wrong)}, of {layers} layers from 0")
    return turns_of(tuple("sparse" if i in sparse else "dense" for i in range(layers)))


def _chunks(keys: Keys, layers: int) -> Chunks:
    every = keys.take("no_rope_layer_interval", 4)
    rotates = keys.take("no_rope_layers", None) or [(i + 1) % every for i in range(layers)]
    if len(rotates) != layers:
        raise ConfigError(
            f"{keys.where}: {len(rotates)} no_rope_layers for num_hidden_layers={layers}"
        )
    usual = tuple("local" if rotate else "global" for rotate in rotates)
    if kinds_of(keys, usual, CHUNKS) != usual:
        raise ConfigError(
            f"{keys.where}: layer_types and no_rope_layers differ; in jscale's Llama4 layers with"
            " chunked_attention rotate, and those with full_attention do not"
        )
    sharper = Sharper(float(keys.take("attn_scale", 0.1)), keys.take("floor_scale", 8192))
    return Chunks(
        keys.take("attention_chunk_size", 8192),
        turns_of(usual),
        bool(keys.take("use_qk_norm", True)),
        sharper if keys.take("attn_temperature_tuning", True) else None,
        keys.take("attention_bias", False),
    )


def _tell_llama4(c: Llama4) -> dict[str, Any]:
    inside = c.experts.hidden or c.hidden
    can = _experts(c.experts.count, c.experts.choice.choices, inside, c.experts.balance)
    own = replace(c, experts=replace(c.experts, hidden=inside))
    attends, sharper = [kind for kind, _ in c.of], c.chunks.sharper
    return {
        **told_of(c),
        **experts.told_of(own, can),
        "intermediate_size": inside,
        "intermediate_size_mlp": c.hidden,
        "moe_layers": [i for i, (_, feeds) in enumerate(c.of) if feeds == "sparse"],
        "no_rope_layers": [int(kind == "local") for kind in attends],
        "layer_types": types_of(attends, CHUNKS),
        "attention_chunk_size": c.chunks.size,
        "use_qk_norm": c.chunks.normed,
        "attention_bias": c.chunks.biases,
        "attn_temperature_tuning": sharper is not None,
        "attn_scale": (sharper or Sharper()).rate,
        "floor_scale": (sharper or Sharper()).every,
    }


FAMILIES = (Family(Llama4, "Llama4ForCausalLM", "llama4_text", _llama4, _tell_llama4, _table),)
