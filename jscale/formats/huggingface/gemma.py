"""Gemma 2 and 3: their names, and what each says in its config.json."""

from functools import partial
from typing import Any

from jscale.errors import ConfigError
from jscale.formats.huggingface.dense import BLOCK, Rows, sizes_of, table, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys
from jscale.formats.huggingface.layer_types import kinds_of, types_of
from jscale.models.gemma import Gemma2, Gemma3, Sharpness
from jscale.models.windows import Windows, turns_of

FOUR_NORMS: Rows = {
    **BLOCK,
    "attended_norm/scale": ("post_attention_layernorm.weight", None),
    "feed_norm/scale": ("pre_feedforward_layernorm.weight", None),
    "fed_norm/scale": ("post_feedforward_layernorm.weight", None),
}
GELU = "gelu_pytorch_tanh"
DEFAULTS = dict(  # what transformers takes where nothing is said
    num_key_value_heads=4,
    head_dim=256,
    tie_word_embeddings=True,
    query_pre_attn_scalar=256,
    sliding_window=4096,
)


def _gemma(keys: Keys, every: int, rope: float | None) -> dict[str, Any]:
    """What both say; every so manieth layer is global where nothing is said of each."""
    keys.unsaid(**DEFAULTS)
    keys.must("hidden_activation", GELU)
    keys.must("use_bidirectional_attention", False)
    keys.take("cache_implementation", None)  # how text is written there
    sizes = sizes_of(keys, GELU)
    usual = tuple("global" if (i + 1) % every == 0 else "local" for i in range(sizes["layers"]))
    window = keys.take("sliding_window")
    keys.must("sliding_window_size", window)  # the same once more, in some releases
    windows = Windows(window, turns_of(kinds_of(keys, usual)), rope)
    return {**sizes, "biases": keys.take("attention_bias", False), "windows": windows}


def _sharpness(keys: Keys, sizes: dict[str, Any], attention: float | None) -> Sharpness:
    head = sizes["head"] or sizes["dim"] // sizes["heads"]
    query = keys.take("query_pre_attn_scalar")
    number = lambda name: None if (cap := keys.take(name, None)) is None else float(cap)
    return Sharpness(None if query == head else query, attention, number("final_logit_softcapping"))


def _gemma2(keys: Keys) -> Gemma2:
    keys.unsaid(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    cap = keys.take("attn_logit_softcapping", None)
    sizes = _gemma(keys, 2, None)
    return Gemma2(**sizes, sharpness=_sharpness(keys, sizes, None if cap is None else float(cap)))


def _gemma3(keys: Keys) -> Gemma3:
    keys.must("attn_logit_softcapping", None)
    rope = _local_rope(keys)
    keys.take("_sliding_window_pattern", None)  # written there beside `layer_types`, never read
    sizes = _gemma(keys, keys.take("sliding_window_pattern", 6), rope)
    return Gemma3(**sizes, sharpness=_sharpness(keys, sizes, None))


def _local_rope(keys: Keys) -> float:
    """The base of local layers; that of the others is left for who reads rotation.

    Raises:
        ConfigError: the frequencies of local layers are stretched.
    """
    keys.unsaid(rope_theta=1_000_000.0)
    base = keys.take("rope_local_base_freq", 10_000.0)
    said = dict(keys.values.get("rope_parameters") or {})
    if said.keys() & {"full_attention", "sliding_attention"}:
        local = Keys(said.pop("sliding_attention", None) or {}, f"{keys.where}: sliding_attention")
        local.must("rope_type", "default")
        base = local.take("rope_theta", base)
        local.end()
        keys.values["rope_parameters"] = said.pop("full_attention", None) or {}
        Keys(said, f"{keys.where}: rope_parameters").end()
    return float(base)


def _told(c: Gemma2) -> dict[str, Any]:
    return {
        **told_of(c, GELU),
        "hidden_activation": GELU,
        "attention_bias": c.biases,
        "query_pre_attn_scalar": c.sharpness.query or c.head_size,
        "final_logit_softcapping": c.sharpness.final,
        "sliding_window": c.windows.window,
        "layer_types": types_of(c.of),
    }


def _tell_gemma2(c: Gemma2) -> dict[str, Any]:
    if c.windows.rope is not None:
        raise ConfigError(
            f"a Gemma2 of transformers has one base of rotation, and windows.rope={c.windows.rope}"
            " is another: it cannot be exported"
        )
    return {**_told(c), "attn_logit_softcapping": c.sharpness.attention}


def _tell_gemma3(c: Gemma3) -> dict[str, Any]:
    if c.sharpness.attention is not None:
        raise ConfigError(
            "a Gemma3 of transformers does not cap attention's scores, and sharpness.attention="
            f"{c.sharpness.attention} does: it cannot be exported"
        )
    local = c.rope if c.windows.rope is None else c.windows.rope
    return {**_told(c), "attn_logit_softcapping": None, "rope_local_base_freq": local}


names = partial(table, block=FOUR_NORMS)
FAMILIES = (
    Family(Gemma2, "Gemma2ForCausalLM", "gemma2", _gemma2, _tell_gemma2, names),
    Family(Gemma3, "Gemma3ForCausalLM", "gemma3_text", _gemma3, _tell_gemma3, names),
)
