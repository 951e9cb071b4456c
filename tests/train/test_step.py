"""What the step protects against, and what it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import BFLOAT16, assert_close
from laws import DECODERS

from jscale import train
from jscale.guard import Guard, Spike, Watch, judge
from jscale.losses import NextToken, Terms, logprobs
from jscale.mesh import Layout, make_mesh
from jscale.models import Model
from jscale.precision import Precision


def task(**changes):
    parts = dict(
        model=Model(DECODERS["llama-tied"]),
        optimizer=optax.adam(1e-2),
        loss=NextToken(),
        layout=Layout(make_mesh(fsdp=2)),
    )
    return train.Task(**{**parts, **changes})


def batch(key=1, weight=1.0):
    x = jax.random.randint(jax.random.key(key), (4, 17), 0, 64)
    return {"inputs": x[:, :-1], "targets": x[:, 1:], "weights": jnp.full((4, 16), weight)}


def run(task, batches):
    state, step, seen = train.init(task, jax.random.key(0)), train.make_step(task), []
    for b in batches:
        state, metrics = step(state, b)
        seen.append({k: float(v) for k, v in metrics.items() if not v.ndim})
    return state, seen


class Poisoned:
    """Next-token loss that is not finite where a batch carries a weight of 2."""

    def __call__(self, model, params, batch, rng):
        terms = NextToken()(model, params, batch, rng)
        bad = (batch["weights"] == 2).any()
        return terms._replace(losses=jnp.where(bad, jnp.nan, terms.losses))


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    good, bad = batch(1), batch(1, weight=2.0)
    poisoned = task(loss=Poisoned())
    clean, _ = run(poisoned, [good, good, good])
    state, seen = run(poisoned, [good, bad, bad, good, good])
    for a, b in zip(jax.tree.leaves(clean.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [m["skipped"] for m in seen] == [0, 1, 2, 2, 2]
    assert [m["streak"] for m in seen] == [0, 1, 2, 0, 0]
    assert int(state.step) == 5, "the data goes on"


def test_a_batch_without_weight_is_left_out():
    state, seen = run(task(), [batch(weight=0.0)])
    fresh = train.init(task(), jax.random.key(0))
    for a, b in zip(jax.tree.leaves(fresh.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert seen[0]["skipped"] == 1 and seen[0]["tokens"] == 0 and seen[0]["loss"] == 0


def follow(losses, guard):
    watch = Watch.start(scaled=False)
    for loss in losses:
        apply, watch = judge(guard, watch, jnp.float32(loss), jnp.isfinite(loss), scaled=False)
    return bool(apply), watch


def test_spikes_are_seen_against_the_recent_past():
    calm = list(2 + 0.1 * np.random.default_rng(0).standard_normal(200))
    guard = Guard(spike=Spike(sigmas=6.0, window=64))
    assert int(follow(calm, guard)[1].spikes) == 0
    applied, watch = follow([*calm, 5.0], guard)
    assert applied and int(watch.spikes) == 1 and float(watch.mean) < 2.2
    applied, watch = follow([*calm, 5.0], Guard(spike=Spike(sigmas=6.0, window=64, skip=True)))
    assert not applied and int(watch.skipped) == 1
    assert int(follow([*calm, 5.0], Guard(spike=None))[1].spikes) == 0
    assert int(follow([2.0, 9.0], guard)[1].spikes) == 0, "too early to say"


def test_a_lasting_change_of_the_loss_stops_being_a_spike():
    calm = list(2 + 0.1 * np.random.default_rng(0).standard_normal(200))
    guard = Guard(spike=Spike(sigmas=4.0, window=32, skip=True))
    applied, watch = follow([*calm, *[4.0] * 200], guard)
    assert applied and 0 < int(watch.spikes) < 150
    assert int(watch.streak) == 0, "a spike is finite: it does not end the run"


def test_float16_finds_its_scale():
    half = task(precision=Precision(compute="float16"), model=Model(DECODERS["llama"], "float16"))
    state, seen = run(half, [batch()] * 3)
    _, full = run(task(model=Model(DECODERS["llama"])), [batch()] * 3)
    assert_close(seen[-1]["loss"], full[-1]["loss"], BFLOAT16)
    assert seen[0]["scale"] >= 2.0**14


class Overflowing:
    """A loss whose scaled gradient is beyond float32 until the scale has been halved twice."""

    def __call__(self, model, params, batch, rng):
        terms = NextToken()(model, params, batch, rng)
        return terms._replace(losses=terms.losses * 1e34)


def test_an_overflow_halves_the_scale_and_is_skipped():
    half = task(precision=Precision(compute="float16"), loss=Overflowing())
    _, seen = run(half, [batch()] * 4)
    assert seen[0]["skipped"] == 1 and seen[0]["scale"] == 2.0**14
    assert seen[-1]["scale"] < seen[0]["scale"]


def test_bfloat16_gradients_are_summed_in_float32():
    low = task(precision=Precision(compute="bfloat16"), model=Model(DECODERS["llama"], "bfloat16"))
    text = train.make_step(low).lower(train.shapes(low), batch()).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line and "tensor<32x64x" in line]
    state, _ = run(low, [batch()] * 2)
    assert all(w.dtype == jnp.float32 for w in jax.tree.leaves(state.params))
    assert "xbf16>" in text and dots is not None


class Drawing:
    """A loss with noise of its own."""

    def __call__(self, model, params, batch, rng):
        terms = NextToken()(model, params, batch, rng)
        noise = jax.random.uniform(rng)
        return Terms(terms.losses, terms.weights, {"noise": (noise, jnp.float32(1))})


def test_each_step_and_microbatch_draws_its_own_noise():
    _, one = run(task(loss=Drawing()), [batch()] * 3)
    assert len({m["noise"] for m in one}) == 3
    _, again = run(task(loss=Drawing()), [batch()] * 3)
    assert [m["noise"] for m in one] == [m["noise"] for m in again]
    _, two = run(task(loss=Drawing(), accumulate=2), [batch()])
    assert two[0]["noise"] not in {m["noise"] for m in one}


def test_logprobs_are_those_of_softmax():
    logits = 5 * jax.random.normal(jax.random.key(0), (2, 3, 7))
    targets = jnp.asarray([[0, 3, 6], [1, 2, 5]])
    wanted = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    assert_close(logprobs(logits, targets)[0], wanted, 1e-6)


def test_the_batch_must_divide_into_microbatches():
    with pytest.raises(ValueError, match="4 rows cannot be accumulated over 3"):
        run(task(accumulate=3), [batch()])


def test_state_is_born_sharded_and_stays_where_it_was():
    here = task(layout=Layout(make_mesh(fsdp=4, tensor=2)))
    wanted = jax.tree.map(lambda s: s.sharding, train.shapes(here))
    state = train.init(here, jax.random.key(0))
    for step in range(2):
        for a, s in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            assert a.sharding.is_equivalent_to(s, a.ndim), step
        state, _ = train.make_step(here)(state, batch())
    up = state.optimizer[0].mu["blocks"]["block"]["feed"]["up"]
    assert up.sharding.shard_shape(up.shape) == (2, 8, 32)


class Mistaken:
    """A loss that is wrong in a way of its own."""

    def __init__(self, mistake):
        self.mistake = mistake

    def __call__(self, model, params, batch, rng):
        return self.mistake(NextToken()(model, params, batch, rng))


@pytest.mark.parametrize(
    "mistake, message",
    [
        (lambda t: t.losses.sum(), "a loss returns Terms"),
        (lambda t: t._replace(weights=t.weights[:, :1]), r"\(4, 16\) losses and \(4, 1\) weights"),
        (lambda t: t._replace(metrics={"a": t.losses.sum()}), "the metric 'a' must be"),
        (lambda t: t._replace(metrics={"loss": (1.0, 1.0)}), "cannot be named 'loss'"),
        (lambda t: t.losses["x"], r"the loss Mistaken failed at test_step.py:\d+: TypeError"),
    ],
)
def test_a_mistake_in_a_loss_is_told_as_the_users(mistake, message):
    with pytest.raises(ValueError, match=message):
        run(task(loss=Mistaken(mistake)), [batch()])
