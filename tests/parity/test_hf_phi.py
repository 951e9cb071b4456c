"""Phi-3: logits and gradients are those of transformers, exports are read there."""

from typing import Any

import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)

PLAIN: dict[str, Any] = dict(num_key_value_heads=2, pad_token_id=None)
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
}
CASES = {
    "phi3": Case(
        "Phi3",
        PLAIN
        | dict(
            sliding_window=5,
            rope_parameters=LONG,
            original_max_position_embeddings=8,
            max_position_embeddings=64,
        ),
    ),
    "phi3, short rows": Case(
        "Phi3",
        PLAIN
        | dict(
            rope_parameters=LONG,
            original_max_position_embeddings=32,
            max_position_embeddings=64,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        ),
    ),
    "phi3, other heads": Case(
        "Phi3",
        PLAIN
        | dict(
            head_dim=10,
            rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.4},
            rms_norm_eps=1e-3,
        ),
    ),
}
SLOW = set(CASES) - {"phi3"}
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
    check_eight_devices(saved(CASES["phi3"], tmp_path)[0])
