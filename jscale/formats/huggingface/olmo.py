"""OLMo 2: its names, and what it says in its config.json."""

from functools import partial
from typing import Any

from jscale.formats.huggingface.dense import BLOCK, Rows, sizes_of, table, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys
from jscale.models.olmo import Olmo2

AFTER: Rows = {
    **BLOCK,
    "attend/q_norm/scale": ("self_attn.q_norm.weight", "(n h) -> n h"),
    "attend/k_norm/scale": ("self_attn.k_norm.weight", "(n h) -> n h"),
    "attended_norm/scale": ("post_attention_layernorm.weight", None),
    "fed_norm/scale": ("post_feedforward_layernorm.weight", None),
}


def _olmo2(keys: Keys) -> Olmo2:
    keys.unsaid(rms_norm_eps=1e-5)
    return Olmo2(**sizes_of(keys), biases=keys.take("attention_bias", False))


def _tell_olmo2(c: Olmo2) -> dict[str, Any]:
    return {**told_of(c), "attention_bias": c.biases}


FAMILIES = (
    Family(
        Olmo2,
        "Olmo2ForCausalLM",
        "olmo2",
        _olmo2,
        _tell_olmo2,
        partial(table, block=AFTER),
    ),
)
