"""Releases with images: config.json read so that nothing is passed over."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from formats.drawn import drawn

from jscale.errors import CheckpointError, ConfigError
from jscale.formats.files import write_files
from jscale.formats.huggingface import config_of, files, table
from jscale.mesh import MeshShape
from jscale.models import Llama, LLaVA, Mistral, Model, ViT
from jscale.models.beit3 import Patches
from jscale.models.feed import Drop
from jscale.models.llava import CLIPTower
from jscale.models.rope_scaling import LinearScaling
from jscale.pretrained import from_pretrained

VIT = ViT(16, 2, 4, 24, Patches(6, 3), classes=7)
TEXT = Llama(vocab=32, dim=16, layers=2, heads=4, kv_heads=2, hidden=24)
LLAVA = LLaVA(TEXT, CLIPTower(16, 2, 4, 24, Patches(6, 3)), image_token=31)


def write(folder, config, **changes):
    """A release of a config, with other words in its config.json."""
    said = json.loads(files(config, {"eos_token_id": 3})["config.json"])
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (said[part] if part else said)[key] = value
    said = {name: value for name, value in said.items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        VIT,
        replace(VIT, classes=None, patches=Patches(8, 2, 1), eps=1e-5, drop=Drop(0.1, 0.2)),
        replace(VIT, classes=2, activation="relu"),
        LLAVA,
        replace(LLAVA, layer=-1, whole=True, activation="relu", bias=False),
        replace(LLAVA, text=Mistral(32, 16, 2, 4, 2, 24, tied=True, window=9)),
        replace(LLAVA, text=replace(TEXT, scaling=LinearScaling(2.0), biases=True, head=6)),
    ],
)
def test_what_is_told_is_read_again(tmp_path, config):
    assert config_of(write(tmp_path, config)) == config


def test_what_a_released_llava_leaves_unsaid_is_meant(tmp_path):
    small = {"model_type": "llama", "vocab_size": 32_064, "rms_norm_eps": 1e-5}
    found = config_of(write(tmp_path, LLAVA, text_config=small, tie_word_embeddings=False))
    wanted = Llama(32_064, 4096, 32, 32, 32, 11_008, eps=1e-5, longest=2048)
    assert found.text == wanted
    assert config_of(write(tmp_path, LLAVA, vision_feature_layer="gone")).layer == -2


@pytest.mark.parametrize(
    "config, changes, message",
    [
        (VIT, {"qkv_bias": False}, "qkv_bias=False; jscale has only True"),
        (VIT, {"image_size": [6, 9]}, r"image_size=\[6, 9\]; jscale has only squares"),
        (VIT, {"patch_size": 4}, "must be a multiple of patches.size=4"),
        (VIT, {"layer_scale": 0.1}, "layer_scale=0.1, which jscale does not know"),
        (replace(VIT, classes=None), {"pooler_output_size": 8}, "pooler_output_size=8"),
        (LLAVA, {"vision_feature_layer": [-2, -5]}, "jscale reads one layer"),
        (LLAVA, {"vision_feature_layer": -9}, "layer=-9 is none of the tower's 2"),
        (LLAVA, {"vision_feature_select_strategy": "last"}, "jscale has only 'default' or 'full'"),
        (LLAVA, {"vision_config": None}, "does not say vision_config"),
        (LLAVA, {"text_config": 3}, "text_config is no object"),
        (LLAVA, {"text_config__model_type": "bloom"}, "text_config: no decoder 'bloom'"),
        (LLAVA, {"text_config__mlp_bias": True}, "text_config says mlp_bias=True"),
        (LLAVA, {"text_config__b": 1}, "text_config says b=1, which jscale does not know"),
        (LLAVA, {"vision_config__model_type": "siglip_vision_model"}, "only clip_vision_model"),
        (LLAVA, {"vision_config__attention_dropout": 0.1}, "attention_dropout=0.1"),
        (LLAVA, {"vision_config__b": 1}, "vision_config says b=1, which jscale does not know"),
        (LLAVA, {"image_grid_pinpoints": [[1, 2]]}, "image_grid_pinpoints"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path, config, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(write(tmp_path, config, **changes))


def test_weights_that_are_left_over_or_missing_are_named(tmp_path):
    arrays = table(LLAVA).lazily(drawn(LLAVA))
    write_files(arrays, tmp_path, lambda lazy: lazy.fetch())
    write(tmp_path, LLAVA, vision_config__num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"lacks vision_tower.encoder.layers.2"):
        from_pretrained(tmp_path, MeshShape())
    write(tmp_path, LLAVA, multimodal_projector_bias=False)
    with pytest.raises(CheckpointError, match="holds multi_modal_projector.linear_1.bias"):
        from_pretrained(tmp_path, MeshShape())


def test_the_names_of_older_releases_are_read_too():
    params = drawn(LLAVA)
    old = lambda name: name.replace("vision_tower.", "vision_tower.vision_model.")
    theirs = {old(name): array for name, array in table(LLAVA).write(params).items()}
    found = table(LLAVA).read(theirs, Model(LLAVA).shapes)
    for a, b in zip(*map(jax.tree.leaves, (found, params)), strict=True):
        np.testing.assert_array_equal(a, b)
    del theirs["vision_tower.vision_model.post_layernorm.bias"]
    with pytest.raises(CheckpointError, match=r"lacks vision_tower.vision_model.post_layernorm"):
        table(LLAVA).read(theirs, Model(LLAVA).shapes)


def test_what_transformers_has_no_name_for_is_refused():
    tower = replace(LLAVA.vision, drop=Drop(units=0.1))
    for config, message in (
        (replace(VIT, drop=Drop(path=0.1)), "drops units and attention alone"),
        (replace(LLAVA, vision=tower), "a release's tower drops nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            files(config, {})
