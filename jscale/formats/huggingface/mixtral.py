"""Mixtral: its names, and what it says in its config.json."""

from functools import partial
from typing import Any

from jscale.formats.huggingface import experts
from jscale.formats.huggingface.dense import sizes_of, table, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys
from jscale.models.gates import TopK
from jscale.models.mixtral import Mixtral
from jscale.models.sparse import Experts

BLOCK = experts.rows("block_sparse_moe", ("w1", "w3", "w2"))


def _mixtral(keys: Keys) -> Mixtral:
    keys.unsaid(rms_norm_eps=1e-5, rope_theta=1e6)
    keys.must("router_jitter_noise", 0.0)
    choice = TopK(keys.take("num_experts_per_tok", 2))
    mixture = Experts(choice=choice, **experts.routed(keys))
    return Mixtral(**sizes_of(keys), window=keys.take("sliding_window", None), experts=mixture)


def _tell_mixtral(c: Mixtral) -> dict[str, Any]:
    can = Experts(c.experts.count, TopK(c.experts.choice.choices))
    return {**told_of(c), **experts.told_of(c, can), "sliding_window": c.window}


FAMILIES = (
    Family(
        Mixtral,
        "MixtralForCausalLM",
        "mixtral",
        _mixtral,
        _tell_mixtral,
        partial(table, block=BLOCK),
    ),
)
