"""LLaVA of `transformers`: its scores and gradients, in and out, and what it writes."""

from typing import Any

import numpy as np
import pytest
from parity.opened import (
    asked,
    check_eight_devices,
    check_export,
    check_outputs_and_gradients,
    saved,
)
from parity.releases import SIZES, theirs, torch

from jscale.generate import Sampling, Shown, generate
from jscale.mesh import MeshShape
from jscale.pretrained import from_pretrained

TOWER: dict[str, Any] = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=9,
    patch_size=3,
)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", dict(num_key_value_heads=2), {}, {}),
    "whole, last layer, tied": (
        "Llama",
        dict(tie_word_embeddings=True, num_key_value_heads=1),
        dict(num_channels=1, hidden_act="gelu", layer_norm_eps=1e-3),
        dict(vision_feature_layer=-1, vision_feature_select_strategy="full"),
    ),
    "mistral, no biases": (
        "Mistral",
        dict(num_key_value_heads=2, sliding_window=5),
        dict(num_attention_heads=1),
        dict(vision_feature_layer=1, multimodal_projector_bias=False, projector_hidden_act="relu"),
    ),
}
SLOW = ("mistral, no biases",)
every = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES],
)


@pytest.fixture
def release(case, tmp_path):
    name, text, tower, options = CASES[case]
    config = theirs.LlavaConfig(
        vision_config=theirs.CLIPVisionConfig(**TOWER | tower),
        text_config=getattr(theirs, f"{name}Config")(**SIZES | text),
        image_token_index=61,
        **options,
    )
    return saved("LlavaForConditionalGeneration", config, tmp_path)


@every
def test_outputs_and_gradients_are_theirs(release):
    check_outputs_and_gradients(*release)


@every
def test_an_export_is_read_there_to_the_same_bits(release, tmp_path):
    folder, model = release
    check_export(folder, model, tmp_path / "out")


@pytest.mark.parametrize("case", ["llama"])
def test_eight_devices_have_what_one_has(release):
    check_eight_devices(release[0])


@pytest.mark.parametrize("case", ["llama"])
def test_it_writes_what_theirs_writes(release):
    folder, model = release
    ours = from_pretrained(folder, MeshShape())
    inputs = asked(ours)
    tokens, pixels = inputs["input_ids"][:2, :30], inputs["pixel_values"][:4]
    assert ((tokens == 61).sum(1) == 18).all()
    with torch.no_grad():
        wanted = model.generate(
            input_ids=torch.from_numpy(tokens),
            pixel_values=torch.from_numpy(pixels),
            attention_mask=torch.ones(tokens.shape, dtype=torch.int64),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
        )[:, 30:]
    images = pixels.transpose(0, 2, 3, 1).reshape(2, 2, *pixels.transpose(0, 2, 3, 1).shape[1:])
    prompts = Shown(tokens.tolist(), np.ascontiguousarray(images))
    found = generate(ours.model, ours.params, prompts, length=6, sampling=Sampling(0.0))
    assert found == wanted.tolist()
