"""BERT and RoBERTa of `transformers`: their outputs and gradients, in and out."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from parity.opened import (
    check_eight_devices,
    check_export,
    check_outputs_and_gradients,
    saved,
)
from parity.releases import LOGITS, SIZES, theirs, torch

from jscale.mesh import MeshShape
from jscale.models.bert import Pooling
from jscale.pretrained import from_pretrained

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {}),
    "bert, other sizes": (
        "BertModel",
        dict(
            type_vocab_size=3, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3,
            num_attention_heads=1, max_position_embeddings=33,
        ),
    ),
    "bert, hidden tokens": ("BertForMaskedLM", dict(hidden_act="relu")),
    "roberta": ("RobertaModel", dict(max_position_embeddings=34)),
    "roberta, hidden tokens": (
        "RobertaForMaskedLM",
        dict(pad_token_id=5, type_vocab_size=1, hidden_act="relu", max_position_embeddings=70),
    ),
}  # fmt: skip
SLOW = ("bert, other sizes", "roberta")  # what these have, others have too, but for sizes
every = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES],
)


@pytest.fixture
def release(case, tmp_path):
    architecture, options = CASES[case]
    config = getattr(theirs, architecture).config_class(**SIZES | options)
    return saved(architecture, config, tmp_path)


@every
def test_outputs_and_gradients_are_theirs(release):
    check_outputs_and_gradients(*release)


@every
def test_an_export_is_read_there_to_the_same_bits(release, tmp_path):
    folder, model = release
    check_export(folder, model, tmp_path / "out")


@pytest.mark.parametrize("case", ["bert"])
def test_eight_devices_have_what_one_has(release):
    check_eight_devices(release[0])


@every
def test_padding_changes_nothing(release):
    folder, model = release
    ours, draw = from_pretrained(folder, MeshShape()), np.random.default_rng(0)
    lengths, width = np.array([7, 1, 12, 4]), 12
    there = np.arange(width) < lengths[:, None]
    x = np.where(there, draw.integers(6, 62, there.shape), model.config.pad_token_id)
    with torch.no_grad():
        out = model(torch.from_numpy(x), attention_mask=torch.from_numpy(there.astype(int)))
    network, wanted = ours.model.bind(ours.params), out[0].numpy()
    hidden = network(jnp.asarray(x), segments=jnp.asarray(there, jnp.int32)).hidden
    found = hidden if network.head is None else network.unembed(hidden)
    assert np.abs(found - wanted)[there].max() <= LOGITS
    if network.head is not None:
        return
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    means = (wanted * (there / lengths[:, None])[..., None]).sum(1)
    for pooling, vectors in (
        (Pooling("mean", unit=False), means),
        (Pooling("first"), unit(wanted[:, 0])),
        (Pooling("pooler", unit=False), out.pooler_output.numpy()),
    ):
        made = network.pool(pooling, hidden, jnp.asarray(there))
        np.testing.assert_allclose(made, vectors, atol=1e-5)
