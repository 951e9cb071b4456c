"""The loss of the next token: smoothed targets, and tokens that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import SAME, assert_close
from laws import DECODERS

from jscale import train
from jscale.errors import ConfigError
from jscale.launch.cli import main
from jscale.losses import NextToken, logprobs
from jscale.mesh import Layout, make_mesh
from jscale.models import Model

MODEL = Model(DECODERS["llama-tied"])
KEY = jax.random.key(0)


def batch(changes=None):
    x = jax.random.randint(jax.random.key(1), (4, 9), 0, 64)
    weights = (jnp.arange(32).reshape(4, 8) % 3 != 0).astype(jnp.float32)
    return {"inputs": x[:, :-1], "targets": x[:, 1:], "weights": weights} | (changes or {})


def mean_and_gradients(loss, given):
    params = MODEL.init(KEY)

    def mean(params):
        terms = loss(MODEL, params, given, KEY)
        return (terms.losses * terms.weights).sum() / terms.weights.sum()

    return jax.jit(jax.value_and_grad(mean))(params)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_smoothing_is_that_of_optax(z_loss):
    params, given = MODEL.init(KEY), batch()
    network = MODEL.bind(params)
    logits = network.unembed(network(given["inputs"]).hidden)
    soft = optax.smooth_labels(jax.nn.one_hot(given["targets"], logits.shape[-1]), 0.1)
    wanted = optax.losses.softmax_cross_entropy(logits, soft)
    wanted += z_loss * jax.nn.logsumexp(logits, -1) ** 2
    found = NextToken(z_loss, 0.1)(MODEL, params, given, KEY)
    assert_close(found.losses, wanted, SAME)
    assert not found.metrics, "what is smoothed is no nll"
    if not z_loss:
        assert_close(-logprobs(logits, given["targets"], 0.1)[0], wanted, SAME)


@pytest.mark.parametrize("loss", [NextToken(), NextToken(0.01, 0.1)], ids=["plain", "smoothed"])
def test_what_weighs_nothing_adds_nothing_whatever_its_target(loss):
    given = batch()
    wanted = mean_and_gradients(loss, given)
    for other in (-100, 0, 10**9):
        targets = jnp.where(given["weights"] == 0, other, given["targets"])
        found = mean_and_gradients(loss, batch({"targets": targets}))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.isfinite(a).all()


def test_held_out_text_is_measured_without_smoothing():
    layout = Layout(make_mesh(data=2))
    of = lambda loss: train.Task(MODEL, optax.adam(1e-2), loss, layout)
    state = train.init(of(NextToken()), KEY)
    smoothed, plain = (
        train.make_evaluation(of(loss))(state.params, batch())
        for loss in (NextToken(smoothing=0.3), NextToken())
    )
    assert_close(smoothed, plain, 0.0)
    assert "nll" in smoothed.metrics
    _, metrics = train.make_step(of(NextToken(smoothing=0.3)))(state, batch())
    assert "nll" not in metrics and float(metrics["loss"]) != float(plain.loss / plain.weight)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(ConfigError, match="smoothing must be from 0 to below 1, not"):
        NextToken(smoothing=smoothing)


def test_a_recipe_smooths(capsys):
    assert main(["config", "quickstart", "loss.smoothing=0.1", "--why", "loss.smoothing"]) == 0
    assert "loss.smoothing = 0.1" in capsys.readouterr().out
    assert main(["config", "quickstart", "loss.smoothing=2.0"]) == 64
    assert "smoothing must be from 0 to below 1, not 2.0" in capsys.readouterr().err
    assert main(["config", "quickstart", "loss.smooth=0.1"]) == 64
    assert "smoothing" in capsys.readouterr().err
