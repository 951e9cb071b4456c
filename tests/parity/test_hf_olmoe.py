"""OLMoE: logits and gradients are those of transformers, exports are read there."""

import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)

from jscale.mesh import MeshShape

SIZES = dict(
    num_experts=4,
    num_experts_per_tok=2,
    num_key_value_heads=2,
    pad_token_id=None,
    eos_token_id=None,
)
CASES = {
    "olmoe": Case("Olmoe", SIZES),
    "olmoe, clipped": Case("Olmoe", SIZES | dict(clip_qkv=0.7, num_key_value_heads=4)),
    "olmoe, to one": Case(
        "Olmoe",
        SIZES
        | dict(
            num_experts=5,
            num_experts_per_tok=4,
            norm_topk_prob=True,
            attention_bias=True,
            tie_word_embeddings=True,
            num_key_value_heads=1,
            num_hidden_layers=3,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        ),
    ),
}
SLOW = set(CASES) - {"olmoe"}
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
    check_eight_devices(saved(CASES["olmoe"], tmp_path)[0], MeshShape(expert=4, tensor=2))
