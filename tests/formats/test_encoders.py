"""Releases of encoders: config.json and pooling read so that nothing is passed over."""

import json
from dataclasses import replace

import jax
import pytest

from jscale.errors import CheckpointError, ConfigError
from jscale.formats.files import write_files
from jscale.formats.huggingface import config_of, files, table
from jscale.mesh import MeshShape
from jscale.models import BERT, Model, RoBERTa
from jscale.models.bert import Pooling
from jscale.models.feed import Drop
from jscale.models.transformer.head import Masked
from jscale.pretrained import from_pretrained

SIZES = (32, 16, 2, 4, 24)
ENCODER = BERT(*SIZES, head=None, pooler=True)


def write(folder, config, **changes):
    """A release of a config, with other words in its config.json."""
    for name, text in files(config, {"pad_token_id": 9}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    said = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v != "gone"}))
    arrays = table(config).lazily(Model(config).init(jax.random.key(0)))
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
    assert config_of(write(tmp_path, config)) == config


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
        config_of(write(tmp_path, ENCODER, **changes))


@pytest.mark.parametrize(
    "said, message",
    [
        ({"pooling_mode_max_tokens": True}, "pools by pooling_mode_max_tokens; jscale pools in"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean, first; jscale"),
        ({"pooling_mode": "lasttoken"}, "pooling_mode='lasttoken'; jscale has mean and cls"),
        ({}, "pools by nothing"),
    ],
)
def test_other_poolings_are_named(tmp_path, said, message):
    folder = write(tmp_path, replace(ENCODER, pooling=Pooling("mean")))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=message):
        config_of(folder)


def test_other_modules_are_named(tmp_path):
    folder = write(tmp_path, replace(ENCODER, pooling=Pooling("mean")))
    for name, message in (("Dense", "has a Dense; jscale has"), ("Normalize", "")):
        modules = [{"type": f"sentence_transformers.models.{name}", "path": "1_Pooling"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        if message:
            with pytest.raises(ConfigError, match=message):
                config_of(folder)
    assert config_of(folder).pooling is None  # a length alone is no pooling


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
