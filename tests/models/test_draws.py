"""What networks draw in training, and that they are still in evaluation."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import SAME, assert_close
from flax import nnx

from jscale.losses import NextToken
from jscale.models import Model
from jscale.models.decoder import Output, context_of
from jscale.models.draws import Drawing, drop_path, dropout, stream
from jscale.models.layers import Embed, Stack


@dataclass(frozen=True)
class Dropping:
    """A network that only drops: what comes out tells what was dropped."""

    remat: str = "none"

    def build(self, rngs, compute):
        return Network(self, rngs, compute)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.shift = nnx.Param(jnp.zeros(8), out_sharding=("embed",), eager_sharding=False)

    def __call__(self, x, context, state):
        ones = jnp.ones_like(x) + self.shift[...]
        dropped = dropout(ones, 0.5, stream(context.key, "units"))
        return x + dropped, ({"dropped": dropped, "kept": (dropped > 0).mean()}, None)


class Network(Drawing):
    def __init__(self, c, rngs, compute):
        self.embed = Embed(16, 8, rngs, compute)
        self.blocks = Stack(Block, 3, rngs, c.remat)

    def __call__(self, tokens, positions=None, segments=None, cache=None):
        context = context_of(tokens, positions, segments, self.key)
        x, (reports, _) = self.blocks(self.embed(tokens), context)
        return Output(x, reports, None, penalty=jnp.asarray(2.0))

    def unembed(self, hidden):
        return self.embed.unembed(hidden)

    def cache(self, batch, length):
        return None


TOKENS = jnp.ones((4, 6), jnp.int32)


def dropped(model, rng):
    params = model.init(jax.random.key(0))
    return jax.jit(lambda p: model.bind(p, rng)(TOKENS).reports["dropped"])(params)


def test_each_layer_and_each_key_draws_its_own():
    first, again, other = (dropped(Model(Dropping()), jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first[0] != first[1]).any() and (first[1] != first[2]).any()
    assert set(np.unique(first)) == {0.0, 2.0} and 0.35 < (first == 0).mean() < 0.65


@pytest.mark.parametrize("model, rng", [(Model(Dropping()), None), (Model(Dropping()).still, 1)])
def test_without_a_key_or_in_evaluation_nothing_is_drawn(model, rng):
    assert (dropped(model, rng if rng is None else jax.random.key(rng)) == 1).all()


def test_what_is_computed_again_drops_the_same():
    def grads(remat):
        model = Model(Dropping(remat))
        params = model.init(jax.random.key(0))
        loss = lambda p: (model.bind(p, jax.random.key(3))(TOKENS).hidden ** 2).sum()
        return jax.jit(jax.grad(loss))(params)

    assert_close(grads("full"), grads("none"), SAME)


def test_a_loss_adds_the_penalty_and_tells_reports():
    model = Model(Dropping())
    batch = {"inputs": TOKENS, "targets": TOKENS, "weights": jnp.ones((4, 6)).at[0].set(0.0)}

    class Quiet(Network):
        def __call__(self, *args, **more):
            out = super().__call__(*args, **more)
            return out._replace(reports={"kept": out.reports["kept"]})

    class Config(Dropping):
        def build(self, rngs, compute):
            return Quiet(self, rngs, compute)

    model = Model(Config())
    terms = NextToken()(model.still, model.init(jax.random.key(0)), batch, jax.random.key(1))
    total, weight = terms.metrics["kept"]
    assert weight == 18 and total / weight == 1
    nll = terms.metrics["nll"][0] / 18
    np.testing.assert_allclose((terms.losses * terms.weights).sum() / 18, nll + 2, rtol=1e-6)


def test_branches_are_dropped_by_rows_and_keep_their_mean():
    x = jnp.ones((4000, 3))
    out = drop_path(x, 0.25, jax.random.key(0))
    assert ((out == 0).all(1) | (out == 1 / 0.75).all(1)).all()
    np.testing.assert_allclose(out.mean(), 1, atol=0.03)
    assert (drop_path(x, 1.0, jax.random.key(0)) == 0).all()
    assert drop_path(x, 0.0, jax.random.key(0)) is x and dropout(x, 0.5, None) is x
