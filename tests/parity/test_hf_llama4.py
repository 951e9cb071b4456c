"""Llama 4: logits and gradients are those of transformers, exports are read there."""

from typing import Any

import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)

SMALL: dict[str, Any] = dict(
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=24,
    intermediate_size_mlp=40,
    num_local_experts=4,
    attention_chunk_size=5,
    no_rope_layer_interval=2,
    floor_scale=4,
    attn_scale=0.5,
)


def case(**options: Any) -> Case:
    return Case("Llama4", SMALL | options, "Llama4Text")


CASES = {
    "llama4": case(num_experts_per_tok=2),
    "llama4, experts in turns": case(
        num_hidden_layers=4,
        interleave_moe_layer_step=2,
        num_key_value_heads=1,
        head_dim=6,
        no_rope_layers=[1, 0, 1, 1],
    ),
    "llama4, tied": case(
        tie_word_embeddings=True,
        use_qk_norm=False,
        # Without positions a bias of all keys changes nothing: its gradient would be noise.
        attention_bias=True,
        no_rope_layers=[1, 1],
        moe_layers=[],
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}
SLOW = set(CASES) - {"llama4"}
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
    check_eight_devices(saved(CASES["llama4"], tmp_path)[0])
