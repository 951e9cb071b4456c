"""Gemma 2 and 3: logits and gradients are those of transformers, exports are read there."""

from typing import Any

import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)

# PyTorch gives the embedding of padding no gradient: there is none, so that all are compared.
TWO: dict[str, Any] = dict(
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=5,
    query_pre_attn_scalar=8,
    pad_token_id=None,
)
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 200.0, "factor": 4.0},
}
CASES = {
    # Caps so low that they are felt, more layers than turns.
    "gemma2": Case(
        "Gemma2",
        TWO
        | dict(
            num_hidden_layers=3,
            attn_logit_softcapping=0.7,
            final_logit_softcapping=2.0,
            query_pre_attn_scalar=20,
        ),
    ),
    "gemma2, its own order": Case(
        "Gemma2",
        TWO
        | dict(
            num_hidden_layers=3,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            attention_bias=True,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            head_dim=6,
            num_key_value_heads=1,
        ),
    ),
    "gemma2, untied": Case("Gemma2", TWO | dict(tie_word_embeddings=False, num_key_value_heads=4)),
    "gemma3": Case(
        "Gemma3",
        TWO | dict(num_hidden_layers=3, sliding_window_pattern=2, rope_parameters=ROPES),
        "Gemma3Text",
    ),
    "gemma3, biases": Case(
        "Gemma3",
        TWO
        | dict(
            attention_bias=True,
            final_logit_softcapping=3.0,
            query_pre_attn_scalar=30,
            layer_types=["full_attention", "full_attention"],
            num_key_value_heads=1,
            head_dim=10,
        ),
        "Gemma3Text",
    ),
}
SLOW = set(CASES) - {"gemma2", "gemma3"}
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
    check_eight_devices(saved(CASES["gemma2"], tmp_path)[0])
