"""OLMoE: its names, and what it says in its config.json."""

from functools import partial
from typing import Any

from jscale.errors import ConfigError
from jscale.formats.huggingface import experts
from jscale.formats.huggingface.dense import sizes_of, table, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys
from jscale.models.gates import TopK
from jscale.models.olmoe import OLMoE
from jscale.models.sparse import Experts

BLOCK = {
    **experts.rows("mlp"),
    "attend/q_norm/scale": ("self_attn.q_norm.weight", "(n h) -> n h"),
    "attend/k_norm/scale": ("self_attn.k_norm.weight", "(n h) -> n h"),
}


def _olmoe(keys: Keys) -> OLMoE:
    keys.unsaid(rms_norm_eps=1e-5)
    normalise, clip = keys.take("norm_topk_prob", False), keys.take("clip_qkv", None)
    choice = TopK(keys.take("num_experts_per_tok", 8), normalise=normalise)
    return OLMoE(
        **sizes_of(keys),
        biases=keys.take("attention_bias", False),
        clip=None if clip is None else float(clip),
        experts=Experts(choice=choice, **experts.routed(keys, 0.01)),
    )


def _tell_olmoe(c: OLMoE) -> dict[str, Any]:
    if c.head_size * c.heads != c.dim:
        raise ConfigError(
            f"an OLMoE of transformers has heads of dim / heads = {c.dim // c.heads} numbers, and"
            f" this one of {c.head_size}: it cannot be exported"
        )
    choice = experts.topk(c)
    can = Experts(c.experts.count, TopK(choice.choices, normalise=choice.normalise))
    said = {**told_of(c), **experts.told_of(c, can, "num_experts")}
    del said["head_dim"]
    more = {"attention_bias": c.biases, "clip_qkv": c.clip, "norm_topk_prob": choice.normalise}
    return {**said, **more}


FAMILIES = (
    Family(OLMoE, "OlmoeForCausalLM", "olmoe", _olmoe, _tell_olmoe, partial(table, block=BLOCK)),
)
