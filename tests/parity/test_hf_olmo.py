"""OLMo 2: logits and gradients are those of transformers, exports are read there."""

import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)

CASES = {
    "olmo2": Case("Olmo2", dict(num_key_value_heads=2, pad_token_id=None)),
    "olmo2, biases": Case(
        "Olmo2",
        dict(
            num_key_value_heads=1,
            pad_token_id=None,
            attention_bias=True,
            head_dim=6,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        ),
    ),
}
SLOW = set(CASES) - {"olmo2"}
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
    check_eight_devices(saved(CASES["olmo2"], tmp_path)[0])
