"""Mixtral: logits and gradients are those of transformers, exports are read there."""

from dataclasses import replace

import pytest
from parity.releases import (
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)
from run.tiny import tiny

from jscale.config.data import write
from jscale.formats import huggingface
from jscale.launch.cli import main
from jscale.mesh import MeshShape

CASES = {
    "mixtral": Case(
        "Mixtral",
        dict(num_local_experts=4, num_key_value_heads=2, sliding_window=5, head_dim=6),
    ),
    "mixtral, three of five": Case(
        "Mixtral",
        dict(
            num_local_experts=5,
            num_experts_per_tok=3,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        ),
    ),
    "mixtral, all of three": Case(
        "Mixtral",
        dict(
            num_local_experts=3, num_experts_per_tok=3, num_key_value_heads=4, num_hidden_layers=3
        ),
    ),
}
SLOW = set(CASES) - {"mixtral"}
every = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]
)


@every
def test_logits_and_gradients_are_theirs(name, tmp_path):
    check_logits_and_gradients(*saved(CASES[name], tmp_path))


@every
def test_an_export_is_read_there_to_the_same_bits(name, tmp_path):
    check_export(*saved(CASES[name], tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    "mesh",
    [
        MeshShape(expert=4, tensor=2),
        pytest.param(MeshShape(expert=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_have_what_one_has(mesh, tmp_path):
    check_eight_devices(saved(CASES["mixtral"], tmp_path)[0], mesh)


@pytest.mark.slow
def test_commands_lead_from_a_release_to_a_release(tmp_path, capsys):
    case = Case("Mixtral", dict(num_local_experts=4, num_key_value_heads=2, vocab_size=260))
    folder, _ = saved(case, tmp_path)
    sizes = huggingface.config_of(folder)
    write(tmp_path / "recipe.json", tiny(tmp_path, model=replace(sizes, remat="none"), steps=4))
    recipe, run, out = (str(tmp_path / name) for name in ("recipe.json", "run", "out"))
    assert main(["import", "huggingface", str(folder), recipe, "--run", run]) == 0
    assert main(["train", recipe, "--run", run]) == 0
    assert main(["export", run, out, "--as", "huggingface", "--verify"]) == 0
    assert "says the same: logits within" in capsys.readouterr().out
    assert huggingface.config_of(out) == sizes
