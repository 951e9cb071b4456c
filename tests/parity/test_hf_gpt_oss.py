"""gpt-oss: logits and gradients are those of transformers, exports are read there."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
    torch,
)

from jscale.formats.mxfp4 import unpack
from jscale.mesh import MeshShape

theirs: Any = import_module("transformers.integrations.mxfp4")

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "rope_theta": 100.0,
    "truncate": False,
}
SIZES = dict(
    num_local_experts=4,
    num_experts_per_tok=2,
    num_key_value_heads=2,
    head_dim=6,
    sliding_window=5,
    rope_parameters=YARN,
    max_position_embeddings=32,
)
CASES = {
    "gpt-oss": Case("GptOss", SIZES | dict(swiglu_limit=0.3)),
    "gpt-oss, three layers": Case(
        "GptOss",
        SIZES
        | dict(
            num_hidden_layers=3,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            attention_bias=False,
            num_key_value_heads=1,
            num_local_experts=3,
            num_experts_per_tok=3,
            swiglu_alpha=1.0,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        ),
    ),
    "gpt-oss, as released": Case(
        "GptOss",
        dict(num_local_experts=5, num_experts_per_tok=4, head_dim=8, num_key_value_heads=4),
    ),
}
SLOW = set(CASES) - {"gpt-oss"}
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
    check_eight_devices(saved(CASES["gpt-oss"], tmp_path)[0], MeshShape(expert=4, tensor=2))


def test_packed_weights_are_theirs():
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = draw.integers(90, 160, blocks.shape[:3], dtype=np.uint8)
    given = torch.from_numpy(blocks), torch.from_numpy(scales)
    wanted = theirs.convert_moe_packed_tensors(*given, dtype=torch.float32).numpy()
    np.testing.assert_array_equal(unpack(blocks, scales), wanted)
