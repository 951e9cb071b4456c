"""Releases of DeepSeek and GLM-4.5: what config.json says of them, what is refused by name."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from formats.drawn import drawn

from jscale.errors import CheckpointError, ConfigError
from jscale.formats.files import Files, write_files
from jscale.formats.huggingface import config_of, files, table
from jscale.mesh import MeshShape
from jscale.models import DeepSeekV2, DeepSeekV3, GLM4MoE
from jscale.models.cards import CARDS
from jscale.models.gates import Balance, Limit, TopK
from jscale.models.latent import Latent
from jscale.models.rope_scaling import LinearScaling, YaRN
from jscale.models.sparse import Experts, Shared
from jscale.pretrained import from_pretrained

SIZES: Any = dict(vocab=32, dim=16, layers=2, heads=2, hidden=24)
PLAIN = TopK(2, normalise=False, scale=3.0)
CORRECTED = TopK(2, "sigmoid", scale=2.5, corrected=True, limit=Limit(2, 1))
LATENT = Latent(8, 12, 4, 2, 6)
YARN = YaRN(4.0, 1024, attention=1.0)
V2 = DeepSeekV2(**SIZES, experts=Experts(4, PLAIN, 8, Shared(16)), latent=LATENT)
GLM = GLM4MoE(
    **SIZES, kv_heads=1, experts=Experts(4, CORRECTED, 8, Shared(8)), turned=4, eps=1e-5, ahead=1
)
V3 = DeepSeekV3(**SIZES, experts=Experts(4, CORRECTED, 8, Shared(8)), latent=LATENT, ahead=1)


def say(folder, config=V3, **changes):
    """A folder with the config.json of a config, some of it in other words."""
    said = json.loads(files(config, {})["config.json"]) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v != "gone"}))
    return folder


def write(folder, config=V3, **changes):
    """A release of a config."""
    write_files(table(config).write(drawn(config)), say(folder, config, **changes))
    return folder


def having(config, **changes):
    """A config with other experts."""
    return replace(config, experts=replace(config.experts, **changes))


@pytest.mark.parametrize(
    "config",
    [
        V2,
        replace(V2, latent=replace(LATENT, q=None, biases=True), dense=0, tied=True),
        having(V2, choice=replace(PLAIN, limit=Limit(2, 1, best=1)), balance=Balance(0.01)),
        replace(V2, scaling=YARN, sharpened=0.707),
        V3,
        replace(V3, scaling=replace(YARN, attention=1.3), sharpened=0.7, ahead=2, dense=2),
        replace(V3, scaling=replace(YARN, attention=None), sharpened=1.0, ahead=0),
        replace(V3, scaling=LinearScaling(2.0), latent=replace(LATENT, pairs=False)),
        having(V3, choice=replace(CORRECTED, limit=None, normalise=False), hidden=4),
        GLM,
        replace(GLM, head=10, turned=6, normed=True, biases=True, dense=0, ahead=0, tied=True),
        replace(GLM, head=10, turned=None, scaling=YARN, dense=2),
    ],
)
def test_what_is_told_is_read_again(tmp_path, config):
    assert config_of(say(tmp_path, config)) == config


def test_the_scale_of_yarn_is_said_as_the_releases_say_it():
    said = json.loads(files(replace(V3, scaling=YARN, sharpened=1.0), {})["config.json"])
    how = said["rope_scaling"]
    assert (how["mscale"], how["mscale_all_dim"]) == (1.0, 1.0) and "attention_factor" not in how


@pytest.mark.parametrize(
    "config, changes, message",
    [
        (V2, {"topk_method": "noaux_tc"}, "topk_method='noaux_tc'; jscale has only 'greedy' or"),
        (V2, {"norm_topk_prob": True}, "norm_topk_prob=True; jscale has only False"),
        (V2, {"scoring_func": "sigmoid"}, "scoring_func='sigmoid'; jscale has only 'softmax'"),
        (V2, {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers=1, which jscale does not"),
        (V3, {"topk_method": "greedy"}, "topk_method='greedy'; jscale has only 'noaux_tc'"),
        (V3, {"moe_layer_freq": 2}, "moe_layer_freq=2; jscale has only 1"),
        (V3, {"num_key_value_heads": 1}, "num_key_value_heads=1; jscale has only 2"),
        (V3, {"head_dim": 6}, "head_dim=6; jscale has only 2"),
        (V3, {"kv_lora_rank": "gone"}, "does not say kv_lora_rank"),
        (V3, {"n_shared_experts": 0}, "Shared.hidden must be at least 1"),
        (V3, {"n_group": 3}, "4 experts cannot be 3 equal groups"),
        (V3, {"index_topk": 8}, "index_topk=8, which jscale does not know"),
        (GLM, {"scoring_func": "softmax"}, "scoring_func='softmax'; jscale has only 'sigmoid'"),
        (GLM, {"partial_rotary_factor": 0.9}, "turned must be even, above 0 and at most"),
        (GLM, {"kv_lora_rank": 8}, "kv_lora_rank=8, which jscale does not know"),
        (V3, {"quantization_config": {"fmt": "e4m3"}}, "quantization_config"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path, config, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(say(tmp_path, config, **changes))


@pytest.mark.parametrize(
    "config, message",
    [
        (having(V2, choice=CORRECTED), "weights by a softmax that are not normalised"),
        (replace(V2, latent=replace(LATENT, pairs=False)), "Latent.pairs must be True"),
        (having(V3, choice=PLAIN), "chooses by corrected sigmoids"),
        (having(V3, choice=replace(CORRECTED, limit=Limit(2, 1, best=1))), "judged by their 2 be"),
        (having(V3, shared=None), "has shared experts, as large as the 8 of the others"),
        (having(V3, shared=Shared(12)), "has shared experts, as large as the 8 of the others"),
        (having(V3, weighs="inputs"), "weighs results"),
        (having(GLM, choice=PLAIN), "GLM4MoE chooses by corrected sigmoids"),
    ],
)
def test_what_no_release_can_say_is_not_exported(config, message):
    with pytest.raises(ConfigError, match=message):
        files(config, {})


LONG = dict(beta_fast=32, beta_slow=1, original_max_position_embeddings=4096, type="yarn")
DEEPSEEK = dict(
    attention_bias=False,
    attention_dropout=0.0,
    ep_size=1,
    hidden_act="silu",
    kv_lora_rank=512,
    max_position_embeddings=163_840,
    moe_layer_freq=1,
    pretraining_tp=1,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    rms_norm_eps=1e-6,
    rope_theta=10_000,
    seq_aux=True,
    torch_dtype="bfloat16",
    use_cache=True,
    v_head_dim=128,
    aux_loss_alpha=0.001,
)
# As the first releases say it, before transformers had these architectures.
FIRST = {
    "lite": dict(
        DEEPSEEK,
        architectures=["DeepseekV2ForCausalLM"],
        first_k_dense_replace=1,
        hidden_size=2048,
        intermediate_size=10_944,
        moe_intermediate_size=1408,
        n_group=1,
        n_routed_experts=64,
        n_shared_experts=2,
        norm_topk_prob=False,
        num_attention_heads=16,
        num_experts_per_tok=6,
        num_hidden_layers=27,
        num_key_value_heads=16,
        q_lora_rank=None,
        rope_scaling=dict(LONG, factor=40, mscale=0.707, mscale_all_dim=0.707),
        routed_scaling_factor=1.0,
        scoring_func="softmax",
        topk_group=1,
        topk_method="greedy",
        vocab_size=102_400,
    ),
    "671b": dict(
        DEEPSEEK,
        architectures=["DeepseekV3ForCausalLM"],
        first_k_dense_replace=3,
        hidden_size=7168,
        intermediate_size=18_432,
        moe_intermediate_size=2048,
        n_group=8,
        n_routed_experts=256,
        n_shared_experts=1,
        norm_topk_prob=True,
        num_attention_heads=128,
        num_experts_per_tok=8,
        num_hidden_layers=61,
        num_key_value_heads=128,
        q_lora_rank=1536,
        rope_scaling=dict(LONG, factor=40, mscale=1.0, mscale_all_dim=1.0),
        routed_scaling_factor=2.5,
        scoring_func="sigmoid",
        topk_group=4,
        topk_method="noaux_tc",
        vocab_size=129_280,
    ),
    "355b": dict(
        architectures=["Glm4MoeForCausalLM"],
        attention_bias=True,
        attention_dropout=0.0,
        first_k_dense_replace=3,
        head_dim=128,
        hidden_act="silu",
        hidden_size=5120,
        intermediate_size=12_288,
        max_position_embeddings=131_072,
        moe_intermediate_size=1536,
        n_group=1,
        n_routed_experts=160,
        n_shared_experts=1,
        norm_topk_prob=True,
        num_attention_heads=96,
        num_experts_per_tok=8,
        num_hidden_layers=92,
        num_key_value_heads=8,
        partial_rotary_factor=0.5,
        rms_norm_eps=1e-5,
        rope_scaling=None,
        rope_theta=1_000_000,
        routed_scaling_factor=2.5,
        topk_group=1,
        use_qk_norm=True,
        vocab_size=151_552,
    ),
}


@pytest.mark.parametrize("size", FIRST)
def test_the_first_releases_are_the_published_sizes(tmp_path, size):
    (tmp_path / "config.json").write_text(json.dumps(FIRST[size]))
    found = config_of(tmp_path)
    assert found == CARDS[type(found)].sizes[size]


def test_what_looks_ahead_has_the_names_of_a_further_layer(tmp_path):
    with Files(write(tmp_path)) as found:
        names = {name.removeprefix("model.layers.2.") for name in found if ".layers.2." in name}
    assert {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"} <= names
    assert {"mlp.experts.3.up_proj.weight", "self_attn.kv_b_proj.weight"} <= names


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_shared_weights_may_stand_there_once_more(tmp_path, tied):
    with Files(write(tmp_path, replace(V3, tied=tied))) as found:
        arrays = {name: found[name] for name in found}
    embed = arrays["model.embed_tokens.weight"]
    again = {
        "model.layers.2.embed_tokens.weight": embed,
        "model.layers.2.shared_head.head.weight": arrays.get("lm_head.weight", embed),
    }
    write_files(arrays | again, tmp_path)
    params = from_pretrained(tmp_path, MeshShape()).params
    np.testing.assert_array_equal(params["embed"]["table"], embed)
    name = "model.layers.2.embed_tokens.weight"
    write_files(arrays | again | {name: embed + 1}, tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} is to be the same"):
        from_pretrained(tmp_path, MeshShape())


@pytest.mark.parametrize(
    "said, message", [(2, "lacks model.layers.3."), (0, "model.layers.2.*nothing uses")]
)
def test_further_layers_are_as_many_as_are_said(tmp_path, said, message):
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(write(tmp_path, num_nextn_predict_layers=said), MeshShape())
