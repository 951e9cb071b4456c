"""gpt-oss: its names, gates and values of experts in one array, and what its config.json says."""

from typing import Any

from jscale.errors import ConfigError
from jscale.formats.cut import Cut
from jscale.formats.huggingface import experts
from jscale.formats.huggingface.dense import BLOCK, Rows, sizes_of, table, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.fused import fused
from jscale.formats.huggingface.keys import Keys
from jscale.formats.huggingface.layer_types import kinds_of, types_of
from jscale.formats.table import Table
from jscale.models.feed import Clamp
from jscale.models.gates import TopK
from jscale.models.gpt_oss import GptOss
from jscale.models.sparse import Experts
from jscale.models.windows import Windows, turns_of

EXPERT = f"{experts.FEED}/expert"
ROWS: Rows = {
    **BLOCK,
    "attend/sinks": ("self_attn.sinks", None),
    f"{experts.FEED}/router/kernel": ("mlp.router.weight", "e d -> d e"),
    f"{experts.FEED}/router/bias": ("mlp.router.bias", None),
    **{
        f"{EXPERT}/{name}/{ours}": (f"mlp.experts.{theirs}_proj{end}", None)
        for name, theirs in (("gate", "gate_up"), ("up", "gate_up"), ("down", "down"))
        for ours, end in (("kernel", ""), ("bias", "_bias"))
    },
}
YARN = dict(  # what transformers takes where nothing is said of rotation
    rope_type="yarn",
    factor=32.0,
    beta_fast=32.0,
    beta_slow=1.0,
    truncate=False,
    original_max_position_embeddings=4096,
)


def _table(c: GptOss) -> Table:
    inside = c.experts.hidden or c.hidden
    cuts = {  # gate 0, value 0, gate 1, value 1, …
        f"{EXPERT}/{name}/{ours}": Cut(axis, first, inside, 2 * inside, 2)
        for first, name in enumerate(("gate", "up"))
        for axis, ours in ((2, "kernel"), (1, "bias"))
    }
    return fused(table(c, ROWS), cuts)


def _gpt_oss(keys: Keys) -> GptOss:
    packed = keys.take("quantization_config", {"quant_method": "mxfp4"}).get("quant_method")
    if packed != "mxfp4":  # those are unpacked as they are read
        raise ConfigError(f"{keys.where} says quant_method={packed!r}; jscale reads only 'mxfp4'")
    _usual(keys)
    clamp = Clamp(float(keys.take("swiglu_limit", 7.0)), float(keys.take("swiglu_alpha", 1.702)))
    choice = TopK(keys.take("num_experts_per_tok", 4), "softmax_of_chosen")
    keys.must("experts_per_token", choice.choices)  # the same, as the first releases say it
    mixture = Experts(choice=choice, biases=True, clamp=clamp, **experts.routed(keys))
    sizes, window = sizes_of(keys), keys.take("sliding_window")
    kinds = kinds_of(keys, Windows(window).of(sizes["layers"]))
    return GptOss(
        **sizes,
        biases=keys.take("attention_bias", True),
        windows=Windows(window, turns_of(kinds)),
        experts=mixture,
    )


def _usual(keys: Keys) -> None:
    """What transformers takes where nothing is said."""
    usual = dict(head_dim=64, rms_norm_eps=1e-5, rope_theta=150_000.0, sliding_window=128)
    keys.unsaid(**usual)
    if not keys.values.get("rope_parameters") and not keys.values.get("rope_scaling"):
        keys.values["rope_parameters"] = YARN
    keys.take("initial_context_length", None)  # that of rotation, once more


def _tell_gpt_oss(c: GptOss) -> dict[str, Any]:
    clamp, choice = c.experts.clamp or Clamp(), c.experts.choice
    can = Experts(
        c.experts.count,
        TopK(choice.choices, "softmax_of_chosen"),
        biases=True,
        clamp=clamp,
    )
    if c.windows.rope is not None:
        raise ConfigError("a gpt-oss of transformers rotates all layers alike: windows.rope is set")
    said = told_of(c)
    return {
        **said,
        **experts.told_of(c, can),
        "rope_scaling": said["rope_scaling"] or {"rope_type": "default"},
        "swiglu_limit": clamp.limit,
        "swiglu_alpha": clamp.gain,
        "attention_bias": c.biases,
        "sliding_window": c.windows.window,
        "layer_types": types_of(c.of),
    }


FAMILIES = (Family(GptOss, "GptOssForCausalLM", "gpt_oss", _gpt_oss, _tell_gpt_oss, _table),)
