"""Releases of encoders: config.json and pooling read so that nothing is passed over."""

import json
from dataclasses import replace

import numpy as np
import pytest
from formats.drawn import drawn

from jscale.errors import CheckpointError, ConfigError
from jscale.formats.files import Files, write_files
from jscale.formats.huggingface import config_of, files, table
from jscale.mesh import MeshShape
from jscale.models import BERT, RoBERTa
from jscale.models.bert import Pooling
from jscale.models.feed import Drop
from jscale.models.transformer.head import Masked
from jscale.pretrained import from_pretrained

SIZES = (32, 16, 2, 4, 24)
ENCODER = BERT(*SIZES, head=None, pooler=True)


def say(folder, config, **changes):
    """What stands beside the weights of a release, with other words in its config.json."""
    for name, text in files(config, {"pad_token_id": 9}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    said = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v != "gone"}))
    return folder


def write(folder, config, **changes):
    """A release of a config, with other words in its config.json."""
    say(folder, config, **changes)
    arrays = table(config).lazily(drawn(config))
    write_files(arrays, folder, lambda lazy: lazy.fetch())
    return folder


@pytest.mark.parametrize(
    "config",
    [
        ENCODER,
        replace(ENCODER, pooling=Pooling("mean")),
        replace(ENCODER, pooling=Pooling("first", unit=False), drop=Drop(0.2, 0.3)),
        BERT(
            *SIZES, longest=9, types=3, activation="relu", eps=1e-5, head=Masked(activation="relu")
        ),
        RoBERTa(*SIZES, activation="gelu_tanh"),
        RoBERTa(*SIZES, padding=7, head=None, pooler=True, pooling=Pooling("mean")),
    ],
)
def test_what_is_told_is_read_again(tmp_path, config):
    assert config_of(say(tmp_path, config)) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"position_embedding_type": "relative_key"}, "jscale has only 'absolute'"),
        ({"is_decoder": True}, "is_decoder=True; jscale has only False"),
        ({"hidden_act": "mish"}, "hidden_act='mish'; jscale has only 'gelu' or"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"embedding_size": 8}, "embedding_size=8, which jscale does not know"),
        ({"architectures": ["BertForQuestionAnswering"]}, "no architecture 'BertForQuestionAns"),
        ({"hidden_size": "gone"}, "does not say hidden_size"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(say(tmp_path, ENCODER, **changes))


@pytest.mark.parametrize(
    "said, message",
    [
        ({"pooling_mode_max_tokens": True}, "pools by pooling_mode_max_tokens; jscale pools in"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean, first; jscale"),
        ({"pooling_mode": "lasttoken"}, "pooling_mode='lasttoken'; jscale has mean and cls"),
        ({}, "pools by nothing"),
        (
            {"pooling_mode": "mean", "word_embedding_dimension": 99},
            "dimension=99; jscale has only 16",
        ),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt=False"),
        ([1], "holds a list, not an object"),
    ],
)
def test_other_poolings_are_named(tmp_path, said, message):
    folder = say(tmp_path, replace(ENCODER, pooling=Pooling("mean")))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=message):
        config_of(folder)


def test_other_modules_are_named(tmp_path):
    folder = say(tmp_path, replace(ENCODER, pooling=Pooling("mean")))

    def list_modules(*names):
        modules = [
            {"type": f"sentence_transformers.models.{n}", "path": "1_Pooling"} for n in names
        ]
        (folder / "modules.json").write_text(json.dumps(modules))

    for names in (
        ["Transformer", "Pooling", "Dense"],
        ["Transformer", "Normalize", "Pooling"],
        ["Transformer", "Pooling", "Pooling"],
        ["Normalize"],
    ):
        list_modules(*names)
        with pytest.raises(ConfigError, match=f"has {', '.join(names)}; jscale has Transformer or"):
            config_of(folder)
    list_modules("Transformer")
    assert config_of(folder).pooling is None
    for text in ('{"a": 1}', '["Pooling"]', '[{"path": ""}]'):
        (folder / "modules.json").write_text(text)
        with pytest.raises(ConfigError, match="is no list of modules with type and path"):
            config_of(folder)


@pytest.mark.parametrize("gamma, beta", [("weight", "bias"), ("gamma", "beta")])
def test_a_release_that_was_trained_to_tell_sentences_that_follow_is_read(tmp_path, gamma, beta):
    config = BERT(*SIZES, head=Masked())
    write(tmp_path, config)
    with Files(tmp_path) as files:
        arrays = {
            name.replace("Norm.weight", f"Norm.{gamma}").replace("Norm.bias", f"Norm.{beta}"): array
            for name, array in files.items()
        }
    names = "cls.seq_relationship.weight", "cls.seq_relationship.bias", "bert.pooler.dense.bias"
    write_files({**arrays, **dict.fromkeys(names, np.ones(2, "f4"))}, tmp_path)
    assert from_pretrained(tmp_path, MeshShape()).model.config == config
    assert table(config).passed([*arrays, *names]) == sorted(names)


def test_weights_that_are_left_over_or_missing_are_named(tmp_path):
    scoring = replace(ENCODER, head=Masked(), pooler=False)
    write(tmp_path, scoring, architectures=["BertModel"])
    with pytest.raises(CheckpointError, match="the release lacks embeddings"):
        from_pretrained(tmp_path, MeshShape())
    write(tmp_path, ENCODER, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"holds encoder.layer.1.*which nothing uses"):
        from_pretrained(tmp_path, MeshShape())


@pytest.mark.parametrize(
    "config, message",
    [
        (replace(ENCODER, head=Masked()), "either head=Masked"),
        (replace(ENCODER, pooler=False), "either head=Masked"),
        (BERT(*SIZES, head=Masked(tied=False)), "has head=Masked"),
        (BERT(*SIZES, drop=Drop(path=0.1)), "drops units and attention alone"),
        (BERT(*SIZES, activation="softplus", head=Masked(activation="softplus")), "cannot say act"),
        (replace(ENCODER, pooling=Pooling("pooler")), "sentence-transformers has no Pooling"),
    ],
)
def test_what_transformers_has_no_name_for_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        files(config, {})
