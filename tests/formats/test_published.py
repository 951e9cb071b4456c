"""config.json as releases of today have it: every key of theirs is known, and gives their sizes."""

import json
from typing import Any

import pytest

from jscale.formats.huggingface import config_of
from jscale.models import Llama4, Model
from jscale.models.cards import CARDS

IDS = dict(bos_token_id=2, eos_token_id=1, pad_token_id=0)
KEPT = dict(initializer_range=0.02, use_cache=True, torch_dtype="bfloat16")
GEMMA: dict[str, Any] = dict(
    IDS,
    **KEPT,
    attention_bias=False,
    attention_dropout=0.0,
    cache_implementation="hybrid",
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-06,
    num_hidden_layers=26,
    transformers_version="4.42.4",
)
PHI: dict[str, Any] = dict(
    KEPT,
    architectures=["Phi3ForCausalLM"],
    model_type="phi3",
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=32000,
    embd_pdrop=0.0,
    resid_pdrop=0.0,
    hidden_act="silu",
    hidden_size=3072,
    intermediate_size=8192,
    num_attention_heads=32,
    num_hidden_layers=32,
    original_max_position_embeddings=4096,
    rms_norm_eps=1e-05,
    rope_theta=10000.0,
)
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gemma 2 2b": (
        GEMMA
        | dict(
            architectures=["Gemma2ForCausalLM"],
            model_type="gemma2",
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            hidden_act="gelu_pytorch_tanh",
            hidden_size=2304,
            intermediate_size=9216,
            max_position_embeddings=8192,
            num_attention_heads=8,
            num_key_value_heads=4,
            rope_theta=10000.0,
            sliding_window=4096,
            vocab_size=256000,
        ),
        2_614_341_888,
    ),
    "gemma 3 1b": (
        GEMMA
        | dict(
            architectures=["Gemma3ForCausalLM"],
            model_type="gemma3_text",
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            hidden_size=1152,
            intermediate_size=6912,
            max_position_embeddings=32768,
            num_attention_heads=4,
            num_key_value_heads=1,
            rope_local_base_freq=10000,
            rope_scaling=None,
            rope_theta=1000000,
            sliding_window=512,
            sliding_window_pattern=6,
            vocab_size=262144,
            eos_token_id=[1, 106],
        ),
        999_885_952,
    ),
    "olmo 2 7b": (
        dict(
            KEPT,
            architectures=["Olmo2ForCausalLM"],
            model_type="olmo2",
            attention_bias=False,
            attention_dropout=0.0,
            eos_token_id=100257,
            hidden_act="silu",
            hidden_size=4096,
            intermediate_size=11008,
            max_position_embeddings=4096,
            num_attention_heads=32,
            num_hidden_layers=32,
            num_key_value_heads=32,
            pad_token_id=100277,
            rms_norm_eps=1e-06,
            rope_scaling=None,
            rope_theta=500000,
            tie_word_embeddings=False,
            vocab_size=100352,
        ),
        7_298_617_344,
    ),
    "phi 3 mini": (
        PHI
        | dict(
            max_position_embeddings=4096,
            num_key_value_heads=32,
            pad_token_id=32000,
            rope_scaling=None,
            sliding_window=2047,
            tie_word_embeddings=False,
            vocab_size=32064,
        ),
        3_821_079_552,
    ),
    "phi 4 mini": (
        PHI
        | dict(
            full_attn_mod=1,
            interpolate_factor=1,
            lm_head_bias=False,
            mlp_bias=False,
            max_position_embeddings=131072,
            num_attention_heads=24,
            num_key_value_heads=8,
            pad_token_id=199999,
            partial_rotary_factor=0.75,
            rope_scaling=dict(
                type="longrope", short_factor=[1.0] * 48, long_factor=[1.0] * 24 + [40.0] * 24
            ),
            sliding_window=262144,
            tie_word_embeddings=True,
            vocab_size=200064,
        ),
        3_836_021_760,
    ),
    "qwen 2.5 0.5b": (
        dict(
            KEPT,
            architectures=["Qwen2ForCausalLM"],
            model_type="qwen2",
            attention_dropout=0.0,
            bos_token_id=151643,
            eos_token_id=151643,
            hidden_act="silu",
            hidden_size=896,
            intermediate_size=4864,
            max_position_embeddings=32768,
            max_window_layers=24,
            num_attention_heads=14,
            num_hidden_layers=24,
            num_key_value_heads=2,
            rms_norm_eps=1e-06,
            rope_theta=1000000.0,
            sliding_window=32768,
            tie_word_embeddings=True,
            use_mrope=False,
            use_sliding_window=False,
            vocab_size=151936,
        ),
        494_032_768,
    ),
    "smollm 2 135m": (
        dict(
            KEPT,
            architectures=["LlamaForCausalLM"],
            model_type="llama",
            attention_bias=False,
            attention_dropout=0.0,
            bos_token_id=0,
            eos_token_id=0,
            hidden_act="silu",
            hidden_size=576,
            intermediate_size=1536,
            is_llama_config=True,
            max_position_embeddings=8192,
            num_attention_heads=9,
            num_hidden_layers=30,
            num_key_value_heads=3,
            pretraining_tp=1,
            rms_norm_eps=1e-05,
            rope_interleaved=False,
            rope_scaling=None,
            rope_theta=100000,
            tie_word_embeddings=True,
            vocab_size=49152,
        ),
        134_515_008,
    ),
    "gpt2": (
        dict(
            architectures=["GPT2LMHeadModel"],
            model_type="gpt2",
            activation_function="gelu_new",
            attn_pdrop=0.1,
            embd_pdrop=0.1,
            resid_pdrop=0.1,
            bos_token_id=50256,
            eos_token_id=50256,
            initializer_range=0.02,
            layer_norm_epsilon=1e-05,
            n_ctx=1024,
            n_embd=768,
            n_head=12,
            n_layer=12,
            n_positions=1024,
            summary_activation=None,
            summary_first_dropout=0.1,
            summary_proj_to_labels=True,
            summary_type="cls_index",
            summary_use_proj=True,
            task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
            vocab_size=50257,
        ),
        124_439_808,
    ),
}


@pytest.mark.parametrize("told, count", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_config_gives_the_published_number_of_weights(told, count, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert Model(config_of(tmp_path)).size == count


@pytest.mark.parametrize(
    "name, size, count",
    [
        ("Gemma2", "9b", 9_241_705_984),
        ("GPT2", "large", 774_030_080),
        ("GPT2", "xl", 1_557_611_200),
        ("Phi3", "mini", 3_821_079_552),
    ],
)
def test_so_do_the_sizes_of_cards(name, size, count):
    cards = {kind.__name__: card for kind, card in CARDS.items()}
    assert Model(cards[name].sizes[size]).size == count


def test_of_its_experts_a_token_uses_one():
    scout = Model(Llama4(202_048, 5120, 48, 40, 8, 16_384, head=128))
    assert 107e9 < scout.size < 109e9 and 17e9 < scout.active < 17.3e9
