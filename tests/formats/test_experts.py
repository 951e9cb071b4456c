"""Releases with experts: what a config.json says of them, and what is refused by name."""

import json
from dataclasses import replace
from typing import Any

import jax
import optax
import pytest
from formats.drawn import drawn
from run.tiny import tiny

from jscale import train
from jscale.data import Bytes
from jscale.errors import CheckpointError, ConfigError
from jscale.export import export
from jscale.formats.distinct import check_distinct
from jscale.formats.files import write_files
from jscale.formats.huggingface import config_of, files, table
from jscale.losses import NextToken
from jscale.mesh import Layout, MeshShape, make_mesh
from jscale.models import GptOss, Mixtral, Model, OLMoE, Qwen3MoE
from jscale.models.feed import Clamp
from jscale.models.gates import Balance, TopK
from jscale.models.gpt_oss import EXPERTS
from jscale.models.rope_scaling import YaRN
from jscale.models.sparse import Experts, Shared
from jscale.models.windows import Windows
from jscale.pretrained import from_pretrained
from jscale.run.restored import Run

SIZES: Any = dict(vocab=32, dim=16, layers=2, heads=4, kv_heads=2, hidden=24, head=4)
MIXTRAL = Mixtral(**SIZES, experts=Experts(3))
QWEN = Qwen3MoE(**SIZES, experts=Experts(3, TopK(2), 8))
OSS = GptOss(
    **SIZES,
    windows=Windows(7),
    experts=replace(EXPERTS, count=3, choice=TopK(2, "softmax_of_chosen")),
)
OLMOE = OLMoE(**SIZES, experts=Experts(3, TopK(2, normalise=False)))


def say(folder, config=MIXTRAL, **changes):
    """The config.json of a release, with other words in it."""
    said = json.loads(files(config, {})["config.json"]) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v != "gone"}))
    return folder


def write(folder, config=MIXTRAL, **changes):
    """A release of a config, with other words in its config.json."""
    say(folder, config, **changes)
    arrays = table(config).lazily(drawn(config))
    write_files(arrays, folder, lambda lazy: lazy.fetch())
    return folder


@pytest.mark.parametrize(
    "config",
    [
        MIXTRAL,
        replace(MIXTRAL, window=7, experts=Experts(5, TopK(3), balance=Balance(0.02))),
        QWEN,
        replace(QWEN, dense=(0, 1), biases=True),
        OLMOE,
        replace(OLMOE, clip=8.0, experts=Experts(5, TopK(3), balance=Balance(0.01))),
        OSS,
        replace(
            OSS,
            scaling=YaRN(32.0, 64, truncate=False),
            biases=False,
            windows=Windows(7, ("global", "local", "local")),
            layers=4,
            experts=replace(OSS.experts, clamp=Clamp(3.0, 1.5)),
        ),
    ],
)
def test_what_is_told_is_read_again(tmp_path, config):
    (tmp_path / "config.json").write_text(files(config, {})["config.json"])
    assert replace(config_of(tmp_path), head=config.head) == config


@pytest.mark.parametrize(
    "config, changes, message",
    [
        (MIXTRAL, {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1; jscale has only 0.0"),
        (MIXTRAL, {"num_experts_per_tok": 4}, "and there are 3: set experts to at least 4"),
        (MIXTRAL, {"num_local_experts": "gone"}, "does not say num_experts"),
        (MIXTRAL, {"num_experts": 4}, "num_experts=4; jscale has only 3"),
        (MIXTRAL, {"n_shared_experts": 1}, "n_shared_experts=1, which jscale does not know"),
        (QWEN, {"use_sliding_window": True}, "use_sliding_window=True; jscale has only False"),
        (QWEN, {"decoder_sparse_step": 0}, "decoder_sparse_step=0: it must be at least 1"),
        (QWEN, {"moe_intermediate_size": "gone"}, "does not say moe_intermediate_size"),
        (QWEN, {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size=8, which"),
        (OLMOE, {"clip_qkv": -1.0}, "clip must be above 0, not -1.0"),
        (OSS, {"quantization_config": {"quant_method": "awq"}}, "quant_method='awq'; jscale reads"),
        (
            OLMOE,
            {"quantization_config": {"quant_method": "mxfp4"}},
            "quantization_config=.*, which",
        ),
        (OSS, {"layer_types": ["full_attention"]}, "1 layer_types for num_hidden_layers=2"),
        (OSS, {"layer_types": ["fool_attention"] * 2}, "no layer type 'fool_attention'; did you"),
        (OSS, {"sliding_window": None}, "does not say sliding_window"),
        (OSS, {"experts_per_token": 3}, "experts_per_token=3; jscale has only 2"),
        (OSS, {"swiglu_limit": 0}, "Clamp.limit must be above 0, not 0.0"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path, config, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(say(tmp_path, config, **changes))


@pytest.mark.parametrize(
    "config, message",
    [
        (replace(MIXTRAL, experts=Experts(3, TopK(2, scale=2.0))), "choice=TopK.* cannot be exp"),
        (replace(MIXTRAL, experts=Experts(3, shared=Shared(8))), "shared=None, and this one shar"),
        (replace(MIXTRAL, experts=Experts(3, hidden=8)), "hidden=None, and this one hidden=8"),
        (replace(MIXTRAL, experts=Experts(3, weighs="inputs")), "weighs='results', and this one"),
        (replace(QWEN, experts=Experts(3, TopK(2, "sigmoid"), 8)), "sigmoid.* cannot be exported"),
        (replace(OLMOE, head=6), "heads of dim / heads = 4 numbers, and this one of 6"),
        (replace(OSS, windows=Windows(7, rope=100.0)), "rotates all layers alike"),
        (replace(OSS, experts=replace(OSS.experts, clamp=None)), "and this one clamp=None"),
    ],
)
def test_what_a_release_cannot_say_is_not_exported(config, message):
    with pytest.raises(ConfigError, match=message):
        files(config, {})


def test_a_release_with_other_experts_than_it_says_is_refused(tmp_path):
    folder = write(tmp_path, num_local_experts=4)
    with pytest.raises(CheckpointError, match=r"the release lacks .*experts\.3\.w1.* and 3 more"):
        from_pretrained(folder, MeshShape())
    folder = write(tmp_path, num_local_experts=2)
    with pytest.raises(CheckpointError, match=r"holds .*experts\.2\.w1.*, which nothing uses"):
        from_pretrained(folder, MeshShape())


def test_an_export_of_other_experts_than_the_config_has_is_refused():
    params = drawn(replace(MIXTRAL, experts=Experts(4)))
    with pytest.raises(CheckpointError, match=r"has 4 of expert, and the release 3 of model\.lay"):
        table(MIXTRAL).write(params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_that_are_the_same_to_the_bit_are_named(dtype):
    model = Model(MIXTRAL, store=dtype)
    params = model.init(jax.random.key(0))
    check_distinct(params, model.axes)
    expert = params["blocks"]["block"]["feed"]["routed"]["expert"]
    one = lambda w: w.at[1, 2].set(w[1, 0])
    expert["gate"]["kernel"] = one(expert["gate"]["kernel"])
    check_distinct(params, model.axes)  # some of their weights may be
    params["blocks"]["block"]["feed"]["routed"]["expert"] = jax.tree.map(one, expert)
    with pytest.raises(CheckpointError, match=r"experts 0 and 2 of blocks/.*, layer 1 of this sta"):
        check_distinct(params, model.axes)


def test_an_export_with_an_expert_twice_leaves_no_folder(tmp_path):
    model = Model(MIXTRAL)
    params = model.init(jax.random.key(0))
    routed = params["blocks"]["block"]["feed"]["routed"]
    routed["expert"] = jax.tree.map(lambda w: w.at[0, 1].set(w[0, 0]), routed["expert"])
    task = train.Task(model, optax.sgd(1.0), NextToken(), Layout(make_mesh()))
    run = Run(tiny(tmp_path), task, params, Bytes().load(), 0)
    with pytest.raises(CheckpointError, match=r"experts 0 and 1 of blocks/.*, layer 0 of this sta"):
        export(run, tmp_path / "out", table=table(MIXTRAL))
    assert not (tmp_path / "out").exists()
