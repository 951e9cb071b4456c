"""config.json, read so that nothing is passed over; what cannot be had is named."""

import json
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from formats.drawn import drawn

from jscale.errors import CheckpointError, ConfigError, DataError
from jscale.formats import huggingface
from jscale.formats.files import write_files
from jscale.formats.huggingface import config_of, files, table
from jscale.mesh import MeshShape
from jscale.models import YOCO, DeepSeekV3, Llama, Mistral, Qwen2, Qwen3
from jscale.models.gates import Limit, TopK
from jscale.models.latent import Latent
from jscale.models.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPE,
    YaRN,
)
from jscale.models.sparse import Experts, Shared
from jscale.pretrained import from_pretrained

SIZES: Any = dict(vocab=32, dim=16, layers=2, heads=4, kv_heads=2, hidden=24)
SMALL = Llama(**SIZES)
SCALINGS = (
    LinearScaling(2.0),
    DynamicScaling(2.0, 4096),
    YaRN(4.0, 1024, attention=1.3, truncate=False),
    Llama3Scaling(8.0, 512),
    LongRoPE((1.0, 1.0), (2.0, 3.0), 512, 1.1),
)


def say(folder, config: Any = SMALL, **changes):
    """The config.json of a release, with other words in it."""
    said = json.loads(files(config, {})["config.json"]) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v != "gone"}))
    return folder


def write(folder, config: Any = SMALL, **changes):
    """A release of a config, with other words in its config.json."""
    say(folder, config, **changes)
    arrays = table(config).lazily(drawn(config))
    write_files(arrays, folder, lambda lazy: lazy.fetch())
    return folder


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, biases=True, tied=True, head=6, rope=5e5, eps=1e-5, longest=99),
        *(replace(SMALL, scaling=scaling) for scaling in SCALINGS),
        Mistral(**SIZES, window=7),
        Mistral(**SIZES),
        Qwen2(**SIZES),
        Qwen3(**SIZES, biases=True, head=10),
    ],
)
def test_what_is_told_is_read_again(tmp_path, config):
    text = files(config, {"eos_token_id": 3})["config.json"]
    (tmp_path / "config.json").write_text(text)
    found = config_of(tmp_path)
    assert replace(found, head=None) == replace(config, head=None)
    assert found.head_size == config.head_size


@pytest.mark.parametrize(
    "config, changes",
    [
        (SMALL, {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 2}),
        (SMALL, {"quantization_config": None, "tokenizer_class": "T", "max_length": 20}),
        (Qwen2(**SIZES), {"use_mrope": False, "sliding_window": 32768, "max_window_layers": 1}),
        (Qwen2(**SIZES), {"use_sliding_window": True, "sliding_window": None}),
        (Mistral(**SIZES, window=4096), {"sliding_window": "gone"}),
        (Mistral(**SIZES), {"sliding_window": None}),
    ],
)
def test_what_releases_say_besides_changes_nothing(tmp_path, config, changes):
    assert replace(config_of(say(tmp_path, config, **changes)), head=None) == config


def test_what_deepseek_v3_leaves_unsaid_is_what_transformers_takes(tmp_path):
    config = DeepSeekV3(
        *(32, 16, 4, 4, 24),
        experts=Experts(
            16,
            TopK(2, "sigmoid", True, 2.5, corrected=True, limit=Limit(8, 4)),
            12,
            Shared(12),
        ),
        latent=Latent(kv=8, q=8, plain=4, rotated=4, value=4),
        dense=3,
    )
    unsaid = ("routed_scaling_factor", "n_group", "topk_group", "first_k_dense_replace")
    assert config_of(say(tmp_path, config, **dict.fromkeys(unsaid, "gone"))) == config
    found = config_of(say(tmp_path, config, norm_topk_prob=None, rope_interleave=None))
    assert not found.experts.choice.normalise and not found.latent.pairs


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"architectures": ["LamaForCausalLM"]},
            "no architecture 'LamaForCausalLM'; did you mean 'Ll",
        ),
        ({"architectures": None, "model_type": "t5"}, "no architecture 't5'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; jscale has only 'silu'"),
        ({"mlp_bias": True}, "mlp_bias=True; jscale has only False"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"logit_scale": 2.0}, "logit_scale=2.0, which jscale does not know"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "gone"}, "does not say hidden_size"),
        ({"rope_scaling": {"rope_type": "yarm"}}, "no rope_type 'yarm'; did you mean 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "does not say factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2, "b": 1}}, "says b=1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "wants code of the release to be run"),
        ({"num_attention_heads": 3}, "must be a multiple of"),
        ({"hidden_size": "32"}, "LlamaForCausalLM cannot have"),
        ({"num_hidden_layers": 2.0}, r"(?s)layers.*2\.0"),
        ({"attention_bias": "false"}, r"(?s)biases.*false"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'; a number above 0 is wanted"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0; a number above 0"),
        ({"rope_theta": -5.0}, "rope_theta=-5.0; a number above 0"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear'; an object is wanted"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, r"no rope_type \['linear'\]"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "factor='two'; a number"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": 1.0, "long_factor": [1]}},
            "has a value that a LlamaForCausalLM cannot have",
        ),
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 3},
                "rope_parameters": {"rope_type": "linear", "factor": 2},
            },
            "says rope_scaling=.* and rope_parameters=.*: keep one",
        ),
        ({"architectures": "LlamaForCausalLM"}, "a list of names is wanted"),
        ({"architectures": [3]}, "a list of names is wanted"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(say(tmp_path, **changes))


def test_files_that_are_no_release(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*config.json"):
        config_of(tmp_path)
    for text, message in (
        (b"[", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a": "\xff"}', "is no JSON"),
        (b'{"rms_norm_eps": NaN}', "it says NaN"),
        (b"[]", "holds a list, not an object"),
    ):
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(ConfigError, match=message):
            config_of(tmp_path)
    with pytest.raises(DataError, match="there is no folder .*nowhere"):
        from_pretrained(tmp_path / "nowhere")


def test_pickles_are_not_read(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="there is no .*model.safetensors"):
        from_pretrained(tmp_path, MeshShape())


def test_other_sizes_than_were_told_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"makes blocks/block/feed/gate .*the model wants"):
        from_pretrained(write(tmp_path, intermediate_size=26), MeshShape())
    with pytest.raises(CheckpointError, match="the release lacks model.layers.2"):
        from_pretrained(write(tmp_path, num_hidden_layers=3), MeshShape())
    with pytest.raises(CheckpointError, match="holds model.layers.1.*which nothing uses"):
        from_pretrained(write(tmp_path, num_hidden_layers=1), MeshShape())


def test_weights_are_split_over_all_devices_where_no_mesh_is_named(tmp_path):
    found = from_pretrained(write(tmp_path), compute="bfloat16", store="bfloat16")
    assert found.layout.mesh.shape["fsdp"] == 8 and found.tokenizer is None
    assert {str(w.dtype) for w in jax.tree.leaves(found.params)} == {"bfloat16"}
    wanted = drawn(SMALL)
    for a, b in zip(*map(jax.tree.leaves, (found.params, wanted)), strict=True):
        np.testing.assert_array_equal(a, b.astype("bfloat16"))


def test_what_transformers_has_no_name_for_is_refused():
    with pytest.raises(ConfigError, match="a YOCO is no architecture of transformers"):
        huggingface.table(YOCO(**{**SIZES, "window": 4}))
    with pytest.raises(ConfigError, match="a Qwen2 of transformers has heads of dim / heads = 4"):
        files(Qwen2(**SIZES, head=6), {})
    with pytest.raises(ConfigError, match="one number of a release"):
        files(replace(SMALL, scaling=DynamicScaling(2.0, 8)), {})
