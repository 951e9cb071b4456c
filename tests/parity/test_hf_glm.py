"""GLM-4.5: logits and gradients are those of transformers, exports are read there."""

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

SPARSE = dict(
    n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, moe_intermediate_size=12
)


def glm(**more: Any) -> Case:
    sizes = dict(num_key_value_heads=2, num_nextn_predict_layers=0)
    return Case("Glm4Moe", {**sizes, **SPARSE, **more})


CASES = {
    "glm": glm(use_qk_norm=True, attention_bias=True, head_dim=12, routed_scaling_factor=2.5),
    "glm, groups": glm(
        n_group=4,
        topk_group=2,
        num_hidden_layers=3,
        first_k_dense_replace=2,
        num_key_value_heads=4,
        rms_norm_eps=1e-3,
        partial_rotary_factor=1.0,
    ),
    "glm, tied": glm(
        tie_word_embeddings=True,
        first_k_dense_replace=0,
        num_key_value_heads=1,
        norm_topk_prob=False,
        n_shared_experts=2,
        head_dim=16,
        max_position_embeddings=32,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "partial_rotary_factor": 0.25,
        },
    ),
}
SLOW = set(CASES) - {"glm"}
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
    "mesh",
    [
        MeshShape(expert=2, fsdp=2, tensor=2),
        pytest.param(MeshShape(expert=4, tensor=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_have_what_one_has(mesh, tmp_path):
    check_eight_devices(saved(CASES["glm"], tmp_path)[0], mesh)


@pytest.mark.slow
def test_what_is_foreseen_is_theirs(tmp_path):
    case = glm(num_nextn_predict_layers=1, use_qk_norm=True)
    check_foreseen(*saved(case, tmp_path), tmp_path / "out")
