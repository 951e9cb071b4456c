"""GPT-2: logits and gradients are those of transformers, exports are read there."""

from typing import Any

import numpy as np
import pytest
from parity.releases import (
    VOCAB,
    Case,
    check_eight_devices,
    check_export,
    check_logits_and_gradients,
    saved,
)
from safetensors.numpy import load_file, save_file

from jscale.mesh import MeshShape
from jscale.pretrained import from_pretrained

SIZES: dict[str, Any] = dict(vocab_size=VOCAB, n_positions=16, n_embd=32, n_layer=2, n_head=4)


def case(**options: Any) -> Case:
    return Case("GPT2", options, named="GPT2LMHeadModel", sizes=SIZES)


CASES = {
    "gpt2": case(),
    "gpt2, untied": case(
        tie_word_embeddings=False,
        n_inner=20,
        activation_function="relu",
        layer_norm_epsilon=1e-3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    ),
}
SLOW = set(CASES) - {"gpt2"}
every = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]
)


@every
def test_logits_and_gradients_are_theirs(name, tmp_path):
    check_logits_and_gradients(*saved(CASES[name], tmp_path))


@every
def test_an_export_is_read_there_to_the_same_bits(name, tmp_path):
    check_export(*saved(CASES[name], tmp_path), tmp_path / "out")


def test_eight_devices_have_what_one_has(tmp_path):
    check_eight_devices(saved(CASES["gpt2"], tmp_path)[0])


def test_names_without_their_root_and_old_masks_are_read(tmp_path):
    folder, _ = saved(CASES["gpt2"], tmp_path)
    wanted = from_pretrained(folder, MeshShape()).params
    file = folder / "model.safetensors"
    held = {name.removeprefix("transformer."): w for name, w in load_file(file).items()}
    held["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    save_file(held, file)
    found = from_pretrained(folder, MeshShape()).params
    np.testing.assert_array_equal(found["embed"]["table"], wanted["embed"]["table"])
