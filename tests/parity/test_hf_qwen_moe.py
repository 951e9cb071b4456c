"""Qwen 3 with experts: logits and gradients are those of transformers, exports are read there."""

import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)

from jscale.mesh import MeshShape

SIZES = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, num_key_value_heads=2)
CASES = {
    "qwen3 moe": Case(
        "Qwen3Moe", SIZES | dict(head_dim=6, norm_topk_prob=True, mlp_only_layers=[0])
    ),
    "qwen3 moe, not to one": Case(
        "Qwen3Moe",
        SIZES | dict(head_dim=8, num_experts=3, num_experts_per_tok=3, tie_word_embeddings=True),
    ),
    "qwen3 moe, every second": Case(
        "Qwen3Moe",
        SIZES
        | dict(
            num_hidden_layers=5,
            decoder_sparse_step=2,
            mlp_only_layers=[1],
            attention_bias=True,
            num_key_value_heads=1,
            head_dim=10,
            norm_topk_prob=True,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 8,
                "rope_theta": 100.0,
            },
            max_position_embeddings=32,
        ),
    ),
}
SLOW = set(CASES) - {"qwen3 moe"}
every = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]
)


@every
def test_logits_and_gradients_are_theirs(name, tmp_path):
    check_logits_and_gradients(*saved(CASES[name], tmp_path))


@every
def test_an_export_is_read_there_to_the_same_bits(name, tmp_path):
    check_export(*saved(CASES[name], tmp_path), tmp_path / "out")


def test_eight_devices_have_what_one_has(tmp_path):
    check_eight_devices(saved(CASES["qwen3 moe"], tmp_path)[0], MeshShape(expert=4, tensor=2))
