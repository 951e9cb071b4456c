"""Qwen 2 and 3 whose layers see windows: logits and gradients are those of transformers."""

from typing import Any

import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)

WINDOW: dict[str, Any] = dict(
    use_sliding_window=True, sliding_window=4, num_hidden_layers=3, num_key_value_heads=2
)
CASES = {
    "qwen2": Case("Qwen2", WINDOW | dict(max_window_layers=1)),
    "qwen3": Case(
        "Qwen3",
        WINDOW
        | dict(
            head_dim=6, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
        ),
    ),
}
SLOW = {"qwen2"}
every = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]
)


@every
def test_logits_and_gradients_are_theirs(name, tmp_path):
    check_logits_and_gradients(*saved(CASES[name], tmp_path))


@every
def test_an_export_is_read_there_to_the_same_bits(name, tmp_path):
    check_export(*saved(CASES[name], tmp_path), tmp_path / "out")


@pytest.mark.slow
def test_eight_devices_have_what_one_has(tmp_path):
    check_eight_devices(saved(CASES["qwen3"], tmp_path)[0])
