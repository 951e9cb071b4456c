"""GLM-4.5: its names, and what it says in its config.json."""

from functools import partial
from typing import Any

from jscale.formats.huggingface import deepseek
from jscale.formats.huggingface.dense import sizes_of, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys
from jscale.formats.huggingface.rotary import told_turned, turned_of
from jscale.models.glm import GLM4MoE


def _glm4_moe(keys: Keys) -> GLM4MoE:
    keys.unsaid(rms_norm_eps=1e-5)
    head = keys.values.get("head_dim")
    head = head or keys.values.get("hidden_size", 0) // keys.values.get("num_attention_heads", 1)
    turned = turned_of(keys, 0.5, head)
    experts = deepseek.experts_of(keys, deepseek.corrected(keys))
    sizes = sizes_of(keys)
    return GLM4MoE(
        **sizes,
        experts=experts,
        dense=min(keys.take("first_k_dense_replace", 1), sizes["layers"]),
        ahead=keys.take("num_nextn_predict_layers", 0),
        turned=turned,
        normed=keys.take("use_qk_norm", False),
        biases=keys.take("attention_bias", False),
    )


def _tell_glm4_moe(c: GLM4MoE) -> dict[str, Any]:
    deepseek.check_corrected(c)
    return {
        **told_of(c),
        **deepseek.told_of_experts(c),
        **told_turned(c.turned or c.head_size, c.head_size),
        "num_nextn_predict_layers": c.ahead,
        "use_qk_norm": c.normed,
        "attention_bias": c.biases,
    }


FAMILIES = (
    Family(
        GLM4MoE,
        "Glm4MoeForCausalLM",
        "glm4_moe",
        _glm4_moe,
        _tell_glm4_moe,
        partial(deepseek.table, block=deepseek.SPARSE),
        unread=deepseek.further,
    ),
)
