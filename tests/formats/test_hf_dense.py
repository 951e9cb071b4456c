"""Gemma, OLMo, Phi, GPT-2 and Llama 4: what config.json says is read whole, or refused by name."""

import json
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from formats.drawn import drawn

from jscale.errors import CheckpointError, ConfigError
from jscale.formats.huggingface import config_of, files, table
from jscale.models import GPT2, Gemma2, Gemma3, Llama4, Model, Olmo2, Phi3, Qwen2, Qwen3
from jscale.models.feed import Drop
from jscale.models.gates import TopK
from jscale.models.gemma import Sharpness
from jscale.models.llama4 import Chunks, Sharper
from jscale.models.rope_scaling import LinearScaling, LongRoPE
from jscale.models.sparse import Experts, Shared
from jscale.models.windows import Windows

SIZES: Any = dict(vocab=32, dim=16, layers=3, heads=4, kv_heads=2, hidden=24)
EXPERTS = Experts(4, TopK(2, "sigmoid", normalise=False), 8, Shared(8), weighs="inputs")
LONG = LongRoPE((1.0,), (2.0,), 64, 1.1)
GEMMA2 = Gemma2(**SIZES, windows=Windows(5))
GEMMA3 = Gemma3(**SIZES)
OLMO = Olmo2(**SIZES)
PHI = Phi3(**SIZES)
SMALL = GPT2(32, 16, 3, 4)
LLAMA = Llama4(**SIZES, experts=EXPERTS, chunks=Chunks(6), feeds=("dense", "sparse"))
QWEN = Qwen2(**SIZES, windows=Windows(5, ("global", "local", "local")))
CONFIGS = (
    QWEN,
    Qwen3(**SIZES, windows=Windows(5), biases=True),
    GEMMA2,
    replace(GEMMA2, windows=Windows(5, ("global", "local", "local")), biases=True, head=6),
    replace(GEMMA2, sharpness=Sharpness(20, None, None), tied=False),
    GEMMA3,
    replace(GEMMA3, windows=Windows(5, ("local", "global"), 50.0), sharpness=Sharpness(final=3.0)),
    replace(GEMMA3, scaling=LinearScaling(8.0)),
    OLMO,
    replace(OLMO, biases=True, tied=True, eps=1e-6),
    PHI,
    replace(PHI, window=7, head=10, turned=6, tied=True),
    replace(PHI, turned=2, scaling=LONG),
    SMALL,
    replace(SMALL, hidden=20, longest=9, tied=False, drop=Drop(), activation="relu", eps=1e-3),
    LLAMA,
    replace(
        LLAMA,
        chunks=Chunks(6, ("global", "local"), False, None, True),
        feeds=("sparse",),
        tied=True,
    ),
    replace(LLAMA, chunks=Chunks(6, sharper=Sharper(0.5, 3)), feeds=("dense", "dense", "sparse")),
)


def said(config: Any, **changes: Any) -> dict[str, Any]:
    """The config.json of a config, with some keys changed or, by "gone", left out."""
    told = json.loads(files(config, {})["config.json"]) | changes
    return {name: value for name, value in told.items() if value != "gone"}


def same(c: Any) -> Any:
    """The config with what can be told in two ways told in one: size of heads, turns of layers."""
    c = c if isinstance(c, GPT2) else replace(c, head=c.head_size)
    if isinstance(c, Gemma2 | Qwen2) and c.windows is not None:
        return replace(c, windows=replace(c.windows, turns=c.of))
    if isinstance(c, Llama4):
        attends, feeds = zip(*c.of, strict=True)
        return replace(c, chunks=replace(c.chunks, turns=attends), feeds=feeds)
    return c


def read(folder: Any, told: dict[str, Any]) -> Any:
    (folder / "config.json").write_text(json.dumps(told))
    return config_of(folder)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_told_is_read_again(tmp_path, config):
    assert same(read(tmp_path, said(config, eos_token_id=3))) == same(config)


@pytest.mark.parametrize("config", [GEMMA3, PHI, SMALL, LLAMA])
def test_weights_go_and_come_back(config):
    params = drawn(config)
    rows = table(config)
    theirs = rows.write(params)
    assert all(name.startswith(("model.", "transformer.", "lm_head.")) for name in theirs)
    again = rows.read(theirs, Model(config).shapes)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_fused_weights_of_other_sizes_are_named():
    params, rows = drawn(PHI), table(PHI)
    theirs = rows.write(params)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    assert theirs[name].shape == (32, 16)
    with pytest.raises(CheckpointError, match=r"axis 0 must be 32 long"):
        rows.read(theirs | {name: theirs[name][:-1]}, Model(PHI).shapes)
    with pytest.raises(CheckpointError, match="the release lacks .*qkv_proj"):
        rows.read({n: w for n, w in theirs.items() if n != name}, Model(PHI).shapes)


@pytest.mark.parametrize(
    "config, changes, wanted",
    [
        # What transformers takes where nothing is said.
        (GEMMA2, {"layer_types": "gone"}, GEMMA2),
        (
            replace(GEMMA3, layers=7),
            {"layer_types": "gone", "rope_local_base_freq": "gone"},
            replace(GEMMA3, layers=7),
        ),
        (GEMMA3, {"hidden_act": "gone", "sliding_window_pattern": 2}, GEMMA3),
        (
            GEMMA3,
            {
                "rope_scaling": "gone",
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 7.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 9.0},
                },
            },
            replace(GEMMA3, rope=7.0, windows=replace(GEMMA3.windows, rope=9.0)),
        ),
        (PHI, {"partial_rotary_factor": 0.5, "resid_pdrop": 0.0}, replace(PHI, turned=2)),
        (
            replace(PHI, turned=2, scaling=LONG),
            {"rope_scaling": {"type": "su", "short_factor": [1], "long_factor": [2]}},
            replace(PHI, turned=2, scaling=LongRoPE((1.0,), (2.0,), 64, 1.4142135623730951)),
        ),
        (QWEN, {"layer_types": "gone"}, QWEN),
        (QWEN, {"layer_types": "gone", "use_sliding_window": False}, Qwen2(**SIZES)),
        (SMALL, {"n_ctx": 1024, "summary_type": "cls_index", "attn_pdrop": "gone"}, SMALL),
        (LLAMA, {"layer_types": "gone", "moe_layers": [1]}, LLAMA),
        (
            LLAMA,
            {
                "layer_types": "gone",
                "no_rope_layers": [],
                "moe_layers": "gone",
                "interleave_moe_layer_step": 3,
            },
            replace(
                LLAMA,
                feeds=("dense", "dense", "sparse"),
                chunks=replace(LLAMA.chunks, turns=("local",)),
            ),
        ),
    ],
)
def test_what_is_not_said_is_what_transformers_takes(tmp_path, config, changes, wanted):
    assert same(read(tmp_path, said(config, **changes))) == same(wanted)


@pytest.mark.parametrize(
    "config, changes, message",
    [
        (GEMMA2, {"hidden_activation": "gelu"}, "hidden_activation='gelu'; jscale has only"),
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        (GEMMA2, {"sliding_window": None}, "does not say sliding_window"),
        (GEMMA2, {"sliding_window_size": 9}, "sliding_window_size=9; jscale has only 5"),
        (GEMMA2, {"layer_types": ["full_attention"]}, "1 layer_types for num_hidden_layers=3"),
        (GEMMA2, {"layer_types": ["ful_attention"] * 3}, "did you mean 'full_attention'"),
        (GEMMA2, {"rope_local_base_freq": 5.0}, "rope_local_base_freq=5.0, which jscale does not"),
        (GEMMA3, {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping=5.0"),
        (
            GEMMA3,
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}},
            "sliding_attention says rope_type='linear'",
        ),
        (
            GEMMA3,
            {"rope_parameters": {"full_attention": {}, "chunked_attention": {}}},
            "says chunked_attention",
        ),
        (QWEN, {"use_sliding_window": False}, "does not say use_sliding_window and how large"),
        (OLMO, {"clip_qkv": 8.0}, "clip_qkv=8.0, which jscale does not know"),
        (PHI, {"resid_pdrop": 0.1}, "resid_pdrop=0.1; jscale has only 0.0"),
        (PHI, {"lm_head_bias": True}, "lm_head_bias=True"),
        (
            PHI,
            {"rope_scaling": {"rope_type": "linear", "factor": 2}},
            "rope_type longrope or default, not 'linear'",
        ),
        (SMALL, {"scale_attn_weights": False}, "scale_attn_weights=False"),
        (SMALL, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        (SMALL, {"add_cross_attention": True}, "add_cross_attention=True"),
        (SMALL, {"embd_pdrop": 0.2}, "embd_pdrop=0.2; jscale has only 0.1"),
        (SMALL, {"n_ctx": 9}, "n_ctx=9; jscale has only 1024"),
        (SMALL, {"activation_function": "selu"}, "activation_function='selu'"),
        (LLAMA, {"no_rope_layers": [1]}, "1 no_rope_layers for num_hidden_layers=3"),
        (LLAMA, {"no_rope_layers": [0, 1, 1]}, "layer_types and no_rope_layers differ"),
        (LLAMA, {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path, config, changes, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, said(config, **changes))


@pytest.mark.parametrize(
    "config, message",
    [
        (replace(GEMMA2, windows=Windows(5, rope=9.0)), "a Gemma2 .* one base of rotation"),
        (replace(GEMMA3, sharpness=Sharpness(attention=9.0)), "a Gemma3 .* does not cap"),
        (replace(QWEN, windows=Windows(5, rope=9.0)), "a Qwen2 .* one base of rotation"),
        (replace(PHI, scaling=LinearScaling(2.0)), "LongRoPE or no scaling, not LinearScaling"),
        (replace(PHI, scaling=LONG, head=6, turned=2), "this one of 6: it cannot be exported"),
        (replace(LLAMA, experts=replace(EXPERTS, shared=None)), "shared=None: it cannot be"),
        (replace(SMALL, activation="relu2"), "a release cannot say activation='relu2'"),
    ],
)
def test_what_a_release_cannot_say_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        files(config, {})


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: replace(PHI, turned=3), "turned must be even, above 0 and at most .* 4, not 3"),
        (lambda: replace(PHI, turned=6), "at most the head size 4, not 6"),
        (lambda: replace(SMALL, drop=Drop(path=0.1)), "nothing else"),
        (lambda: replace(SMALL, heads=5), "multiple of heads"),
        (lambda: replace(LLAMA, feeds=("sparce",)), "did you mean 'sparse'"),
        (lambda: Chunks(0), "chunk must be at least 1"),
        (lambda: Chunks(turns=()), "Chunks.turns must name one kind"),
        (lambda: Sharper(every=0), "Sharper.every must be at least 1"),
    ],
)
def test_wrong_sizes_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()
