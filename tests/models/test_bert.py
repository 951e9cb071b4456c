"""BERT and RoBERTa as networks: padding, positions, vectors of texts, learning on meshes."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jscale import train
from jscale.errors import ConfigError
from jscale.losses import evaluate_loss
from jscale.masked_tokens import MaskedTokens
from jscale.matched_texts import MatchedTexts
from jscale.mesh import Layout, make_mesh
from jscale.models import BERT, Llama, Model, RoBERTa
from jscale.models.bert import Pooling
from jscale.models.feed import Drop
from jscale.models.transformer.head import Masked

SMALL = BERT(*(64, 32, 2, 4, 48, 16), head=None, pooler=True, pooling=Pooling("mean"), remat="none")


def texts(rows: int = 8) -> dict[str, jax.Array]:
    """Pairs of texts of several lengths, a pair a row; the last row has none."""
    draw = np.random.default_rng(0)
    lengths = np.append(draw.integers(3, 10, rows - 1), 0)
    there = (np.arange(10) < lengths[:, None]).astype(np.int32)
    x = draw.integers(1, 64, (rows, 11)).astype(np.int32)
    batch = {
        "source": (x[:, ::-1][:, :10] + 1) % 64,
        "source_segments": there,
        "inputs": x[:, :-1],
        "targets": x[:, 1:],
        "segments": there,
    }
    return {name: jnp.asarray(value) for name, value in batch.items()}


def measured(config: BERT, batch: dict[str, jax.Array], **axes: Any):
    """The loss of matched texts and its gradient, on a mesh."""
    model, layout = Model(config), Layout(make_mesh(**axes))
    params = model.init(jax.random.key(1), layout)

    def loss(params):
        terms = MatchedTexts()(model, params, batch, jax.random.key(0))
        return (terms.losses * terms.weights).sum() / terms.weights.sum()

    with layout.active():
        return jax.jit(jax.value_and_grad(loss))(params)


def test_every_layout_gives_the_gradients_of_one_device():
    one, eight = measured(SMALL, texts()), measured(SMALL, texts(), data=2, fsdp=2, tensor=2)
    # To an absolute tolerance: a bias of keys changes nothing, and its gradient is none.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, eight)


def test_vectors_do_not_see_padding_nor_other_rows():
    model = Model(SMALL)
    network = model.bind(model.init(jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(0).integers(0, 64, (1, 5)))
    for way in ("mean", "first", "pooler"):
        network.pooling = Pooling(way)
        wanted = network.vectors(x)
        for before, after in ((0, 3), (2, 0), (1, 1)):
            padded = jnp.pad(x, ((0, 1), (before, after)), constant_values=9)
            seen = jnp.pad(jnp.ones_like(x), ((0, 1), (before, after)))
            np.testing.assert_allclose(network.vectors(padded, seen)[:1], wanted, atol=1e-5)
        np.testing.assert_allclose(jnp.linalg.norm(wanted, axis=-1), 1, atol=1e-5)


def test_roberta_s_positions_begin_after_padding_s():
    model = Model(RoBERTa(64, 32, 1, 4, 48, 16, padding=3))
    assert model.shapes["embedding"]["places"].shape == (20, 32)
    params = model.init(jax.random.key(0))
    used = jax.grad(lambda p: model(p, jnp.ones((1, 5), jnp.int32)).hidden.std())(params)
    rows = jnp.abs(used["embedding"]["places"]).sum(1)
    assert (rows[4:9] > 0).all() and not rows[:4].any() and not rows[9:].any()


def test_positions_and_kinds_beyond_the_tables_are_not_numbers():
    model = Model(SMALL)
    network, x = model.bind(model.init(jax.random.key(0))), jnp.ones((1, 4), jnp.int32)
    assert not jnp.isnan(network(x, types=x).hidden).any()
    assert jnp.isnan(network(x, types=x + 1).hidden).all()
    assert jnp.isnan(network(x, positions=jnp.arange(13, 17)[None]).hidden).any()
    with pytest.raises(ConfigError, match="rows of 17 tokens do not fit this network: longest=16"):
        network(jnp.ones((1, 17), jnp.int32))


SLOW = pytest.param(MaskedTokens(63, rate=0.3), marks=pytest.mark.slow)


@pytest.mark.parametrize("loss", [MatchedTexts(), SLOW], ids=str)
def test_it_learns_on_a_mesh(loss):
    config = replace(SMALL, head=Masked(), drop=Drop(units=0.05, attention=0.05))
    layout = Layout(make_mesh(fsdp=2))
    task = train.Task(Model(config), optax.adam(3e-3), loss, layout)
    state, step = train.init(task, jax.random.key(0)), train.make_step(task)
    found = []
    for _ in range(20):
        state, metrics = step(state, texts())
        found.append(float(metrics["loss"]))
    assert found[-1] < 0.8 * found[0]


def test_a_row_of_several_pairs_is_not_a_number():
    batch = texts()
    batch["segments"] = batch["segments"].at[0, 2:].set(2)
    model = Model(SMALL)
    terms = MatchedTexts()(model, model.init(jax.random.key(0)), batch, jax.random.key(0))
    assert jnp.isnan(terms.losses[0]) and not jnp.isnan(terms.losses[1:]).any()
    assert terms.weights.tolist() == [1] * 7 + [0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: replace(SMALL, heads=5), "dim=32 must be a multiple of heads=5"),
        (lambda: replace(SMALL, types=0), "types must be at least 1"),
        (lambda: replace(SMALL, longest=0), "longest must be at least 1"),
        (lambda: replace(SMALL, activation="geluu"), "did you mean 'gelu'"),
        (lambda: Pooling("meen"), "no pooling 'meen'; did you mean 'mean'"),
        (lambda: replace(SMALL, pooler=False, pooling=Pooling("pooler")), "pooler=True"),
        (lambda: MatchedTexts(0.0), "scale must be positive"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_who_gives_no_vectors_is_told():
    llama = Llama(vocab=64, dim=32, layers=1, heads=2, kv_heads=2, hidden=32)
    for config, batch, message in (
        (llama, texts(), "needs a model that gives texts vectors, such as BERT.*not a Llama"),
        (replace(SMALL, pooling=None), texts(), r'pooling=Pooling\("mean"\)'),
        (SMALL, {"inputs": texts()["inputs"]}, r"source is missing; data=PairData\("),
    ):
        model = Model(config)
        with pytest.raises(ConfigError, match=message):
            evaluate_loss(MatchedTexts(), model, model.shapes, batch, jax.random.key(0))
