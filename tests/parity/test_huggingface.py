"""Releases of `transformers`: logits and gradients are theirs, and exports are read there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity.releases import (
    LOGITS,
    SIZES,
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    logits,
    saved,
    theirs,
    tokens,
    torch,
)
from run.tiny import tiny

from jscale.config.data import write
from jscale.formats import huggingface
from jscale.formats.huggingface import dense
from jscale.launch.cli import main
from jscale.mesh import MeshShape
from jscale.pretrained import from_pretrained

FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.9], "long_factor": [1.0, 2.0, 3.0, 4.0]}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "yarn, all its keys": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "truncate": False,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {"original_max_position_embeddings": 8, "factor": 4.0, **FACTORS},
}


def scaled(kind: str) -> dict[str, Any]:
    turn = {"rope_type": kind.split(",")[0], "rope_theta": 100.0, **SCALINGS[kind]}
    return {"rope_parameters": turn, "max_position_embeddings": 32 if kind != "dynamic" else 8}


CASES = {
    "llama": Case("Llama", dict(num_key_value_heads=2)),
    "llama, tied": Case("Llama", dict(num_key_value_heads=1, tie_word_embeddings=True)),
    "llama, biases": Case("Llama", dict(attention_bias=True, head_dim=12, rms_norm_eps=1e-3)),
    **{f"llama, {kind}": Case("Llama", scaled(kind)) for kind in SCALINGS},
    "mistral": Case("Mistral", dict(num_key_value_heads=2, sliding_window=5, head_dim=6)),
    "mistral, no window": Case("Mistral", dict(sliding_window=None, num_key_value_heads=4)),
    "qwen2": Case("Qwen2", dict(num_key_value_heads=2)),
    "qwen2, tied": Case("Qwen2", dict(num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen3": Case("Qwen3", dict(num_key_value_heads=2, head_dim=10)),
    "qwen3, all bytes": Case("Qwen3", dict(num_key_value_heads=4, head_dim=8, vocab_size=260)),
    "qwen3, biases": Case("Qwen3", dict(num_key_value_heads=1, attention_bias=True, head_dim=4)),
}
every = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def release(case, tmp_path):
    return saved(CASES[case], tmp_path)


@every
def test_logits_and_gradients_are_theirs(release):
    check_logits_and_gradients(*release)


@every
def test_an_export_is_read_there_to_the_same_bits(release, tmp_path):
    folder, model = release
    check_export(folder, model, tmp_path / "out")


@pytest.mark.parametrize("case", ["llama, biases", "mistral", "qwen3"])
def test_eight_devices_have_what_one_has(release):
    check_eight_devices(release[0])


@pytest.mark.parametrize("case", ["llama, yarn", "llama, llama3", "llama, linear"])
def test_the_older_form_of_rotation_says_the_same(release):
    folder, _ = release
    wanted = huggingface.config_of(folder)
    said = json.loads((folder / "config.json").read_text())
    turn = said.pop("rope_parameters")
    said["rope_theta"] = turn.pop("rope_theta")
    said["rope_scaling"] = {"type": turn.pop("rope_type"), **turn}
    (folder / "config.json").write_text(json.dumps(said))
    assert huggingface.config_of(folder) == wanted


def test_every_family_is_here():
    here = {case.architecture for case in CASES.values()}
    assert here == {family.architecture for family in dense.FAMILIES}


@pytest.mark.parametrize("length", [7, 8, 9, 30])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_scalings_that_look_at_the_length_do_so_as_theirs(kind, length, tmp_path):
    torch.manual_seed(length)
    config = theirs.LlamaConfig(**SIZES | scaled(kind))
    model = theirs.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    x = tokens(length)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).logits.numpy()
    assert np.abs(logits(from_pretrained(tmp_path, MeshShape()), x) - wanted).max() <= LOGITS


@pytest.mark.parametrize("case", ["qwen3, all bytes"])
def test_commands_lead_from_a_release_to_a_release(release, tmp_path, capsys):
    folder, _ = release
    sizes = huggingface.config_of(folder)
    recipe = tiny(tmp_path, model=replace(sizes, remat="none"), steps=4)
    write(tmp_path / "recipe.json", recipe)
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    start = ["import", "huggingface", str(folder), str(tmp_path / "recipe.json"), "--run", run]
    assert main(start) == 0
    assert main(["train", str(tmp_path / "recipe.json"), "--run", run]) == 0
    assert main(["export", run, out, "--as", "huggingface", "--verify"]) == 0
    assert "says the same: logits within" in capsys.readouterr().out
    assert huggingface.config_of(Path(out)) == sizes
