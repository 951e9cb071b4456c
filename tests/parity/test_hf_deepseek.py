"""DeepSeek V2 and V3: logits and gradients are those of transformers, exports are read there."""

from typing import Any

import pytest
from parity.further import check_foreseen
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)

from jscale.mesh import MeshShape

LATENT = dict(kv_lora_rank=16, q_lora_rank=24, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6)
SPARSE = dict(
    n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, moe_intermediate_size=12
)
ALIKE = dict(
    num_hidden_layers=3, num_key_value_heads=4, first_k_dense_replace=1, **LATENT, **SPARSE
)


def yarn(**more: Any) -> dict[str, Any]:
    turn = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=8)
    return {"rope_parameters": {**turn, **more}, "max_position_embeddings": 32}


def v2(**more: Any) -> Case:
    return Case("DeepseekV2", {**ALIKE, **more})


def v3(**more: Any) -> Case:
    groups = dict(n_group=4, topk_group=2, num_nextn_predict_layers=0)
    return Case("DeepseekV3", {**ALIKE, **groups, **more})


CASES = {
    "v2, a whole query": v2(q_lora_rank=None, n_shared_experts=2, attention_bias=True),
    "v2, groups": v2(
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=3.0,
        **yarn(mscale=0.7, mscale_all_dim=0.7),
    ),
    "v2, no dense layer": v2(first_k_dense_replace=0, num_experts_per_tok=1, **yarn()),
    "v3": v3(routed_scaling_factor=2.5, **yarn(mscale=1.0, mscale_all_dim=1.0)),
    "v3, one group": v3(
        n_group=1, topk_group=1, norm_topk_prob=False, q_lora_rank=None, tie_word_embeddings=True
    ),
    "v3, halves": v3(
        rope_interleave=False,
        attention_bias=True,
        first_k_dense_replace=2,
        **yarn(mscale=0.7, mscale_all_dim=1.2, beta_fast=4.0),
    ),
    "v3, every layer dense": v3(first_k_dense_replace=9, v_head_dim=12, qk_nope_head_dim=5),
}
SLOW = set(CASES) - {"v2, groups", "v3"}
every = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]
)


@every
def test_logits_and_gradients_are_theirs(name, tmp_path):
    check_logits_and_gradients(*saved(CASES[name], tmp_path))


@every
def test_an_export_is_read_there_to_the_same_bits(name, tmp_path):
    check_export(*saved(CASES[name], tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    "name, mesh",
    [
        ("v3", MeshShape(expert=2, fsdp=2, tensor=2)),
        pytest.param("v3", MeshShape(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
        pytest.param("v2, groups", MeshShape(expert=4, tensor=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_have_what_one_has(name, mesh, tmp_path):
    check_eight_devices(saved(CASES[name], tmp_path)[0], mesh)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_what_is_foreseen_is_theirs(tied, tmp_path):
    case = v3(num_nextn_predict_layers=1, tie_word_embeddings=tied)
    check_foreseen(*saved(case, tmp_path), tmp_path / "out")
