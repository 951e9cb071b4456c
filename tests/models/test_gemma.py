"""Capped scores hold wherever tokens are scored; layers that see windows take turns."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from jscale.errors import ConfigError
from jscale.generate import generate
from jscale.models import Gemma2, Model, decoder
from jscale.models.gemma import Sharpness
from jscale.models.windows import Windows

SIZES: Any = dict(vocab=64, dim=16, layers=1, heads=2, kv_heads=1, hidden=16, remat="none")
CAPPED = Gemma2(**SIZES, sharpness=Sharpness(final=2.0))
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def test_log_probabilities_are_those_of_capped_scores():
    model = Model(CAPPED)
    params, x = model.init(jax.random.key(0)), jax.random.randint(jax.random.key(1), (2, 9), 0, 64)
    weights = jax.random.uniform(jax.random.key(2), x.shape)

    def by(score):
        def loss(params):
            network = model.bind(params)
            logp, normalizer = score(network, network(x).hidden * 30)
            return (weights * (0.1 * normalizer**2 - logp)).sum(), (logp, normalizer)

        return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(params)

    found = by(lambda network, hidden: network.logprobs(hidden, x, weights, 0.1, 0.2))
    wanted = by(lambda network, hidden: decoder.logprobs(network.unembed(hidden), x, 0.2))
    assert_close(found, wanted, 1e-5)
    scores = model.bind(params).unembed(jnp.ones((1, 1, 16)) * 1e3)
    np.testing.assert_allclose(np.abs(scores).max(), 2.0, rtol=1e-6)


def test_generation_draws_from_capped_scores():
    # So low a cap makes all tokens even; uncapped, scores as large as these leave no choice.
    flat, sharp = (Model(replace(CAPPED, sharpness=Sharpness(final=cap))) for cap in (1e-6, None))
    params = jax.tree.map(lambda w: w * 300, sharp.init(jax.random.key(0)))
    network, x = sharp.bind(params), jnp.asarray([[1, 2, 3]])
    scores = network.unembed(network(x).hidden)[0, -1]
    assert jnp.diff(jnp.sort(scores)[-2:]) > 10
    drawn = generate(flat, params, [[1, 2, 3]] * 8, length=1)
    assert len({row[0] for row in drawn}) > 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: Windows(0), "window must be at least 1"),
        (lambda: Windows(4, ()), "at least: local or global"),
        (lambda: Windows(4, ("locl",)), "did you mean 'local'"),
        (lambda: Sharpness(final=0.0), "Sharpness.final must be above 0, not 0.0"),
        (lambda: Sharpness(query=-1), "Sharpness.query must be above 0, not -1"),
    ],
)
def test_what_cannot_be_is_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()
