"""ViTs of `transformers`: their outputs and gradients, in and out."""

from pathlib import Path
from typing import Any

import pytest
from parity.opened import (
    check_eight_devices,
    check_export,
    check_outputs_and_gradients,
    saved,
)
from parity.releases import SIZES, theirs

from jscale.launch.cli import main

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", dict(num_labels=7)),
    "vit, other sizes": (
        "ViTForImageClassification",
        dict(num_labels=2, num_channels=1, patch_size=3, hidden_act="quick_gelu"),
    ),
    "vit, pooler": ("ViTModel", dict(layer_norm_eps=1e-3, num_attention_heads=1)),
}
every = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def release(case, tmp_path):
    architecture, options = CASES[case]
    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    small = dict(image_size=12, patch_size=4, num_channels=3)
    config = getattr(theirs, architecture).config_class(**sizes | small | options)
    return saved(architecture, config, tmp_path)


@every
def test_outputs_and_gradients_are_theirs(release):
    check_outputs_and_gradients(*release)


@every
def test_an_export_is_read_there_to_the_same_bits(release, tmp_path):
    folder, model = release
    check_export(folder, model, tmp_path / "out")


@pytest.mark.parametrize("case", ["vit"])
def test_eight_devices_have_what_one_has(release):
    check_eight_devices(release[0])


@pytest.mark.slow
@pytest.mark.parametrize("example", ["image_classes", "describe_images"])
def test_what_an_example_has_trained_is_exported_and_verified(
    example, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    recipe = str(Path(__file__).parents[2] / "examples" / f"{example}.py")
    few = ["steps=2", "optimizer.schedule.warmup=1", "evaluation=None", "--run", "run"]
    assert main(["train", recipe, *few]) == 0
    assert main(["export", "run", "out", "--as", "huggingface", "--verify"]) == 0
    assert "says the same: logits within" in capsys.readouterr().out
    assert main(["import", "huggingface", "out", recipe, "--run", "again"]) == 0
