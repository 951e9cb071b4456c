"""Linear cross-entropy: every implementation against the reference, in values and gradients."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscale.mesh import Axes, Layout, make_mesh
from jscale.models.layers import logprobs
from jscale.pallas_kernels.linear_cross_entropy import Expected, linear_cross_entropy
from jscale.pallas_kernels.linear_cross_entropy.plan import Plan
from jscale.pallas_kernels.linear_cross_entropy.xla import chunked

FLOAT32, BFLOAT16 = 1e-5, 1e-2  # relative Frobenius error


def frobenius(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)


def draw(seed, M, D, V, dtype=jnp.float32) -> Any:
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (M, D)).astype(dtype)
    kernel = (jax.random.normal(keys[1], (D, V)) * 2 * D**-0.5).astype(dtype)
    weights = jax.random.uniform(keys[3], (M,)) * (jax.random.uniform(keys[2], (M,)) < 0.7)
    return hidden, kernel, jax.random.randint(keys[2], (M,), 0, V), weights


def loss_and_grads(score, hidden, kernel, weights, z_loss, factor=1.0):
    """Σ weights · (−log p + z log²Z), and its gradients; `score` gives (log p, log Z)."""

    def loss(hidden, kernel):
        logp, normalizer = score(hidden, kernel)
        return factor * ((-logp + z_loss * normalizer**2) * weights).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, kernel)


def by_reference(targets, cap=None, smoothing=0.0):
    return lambda h, w: linear_cross_entropy(
        h, w, targets, cap=cap, smoothing=smoothing, implementation="reference"
    )


GRID = st.tuples(
    st.integers(0, 99),
    st.integers(1, 20),
    st.sampled_from([1, 7, 30]),
    st.integers(1, 9),
    st.sampled_from([None, 3.0]),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
    st.sampled_from([0.0, 0.2, 1.0]),
)


@settings(deadline=None, max_examples=5)
@given(GRID)
def test_chunks_equal_the_reference(case):
    agrees(*case)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(GRID)
def test_chunks_equal_the_reference_on_the_grid(case):
    agrees(*case)


def agrees(seed, M, V, tokens, cap, z_loss, told, smoothing):
    hidden, kernel, targets, weights = draw(seed, M, 5, V)
    plan = Plan(tokens, cap, z_loss if told else 0.0, (), smoothing)
    score = lambda h, w: chunked(plan, h, w, targets, weights if told else None)
    found = loss_and_grads(score, hidden, kernel, weights, z_loss, 2.5)
    right = by_reference(targets, cap, smoothing)
    wanted = loss_and_grads(right, hidden, kernel, weights, z_loss, 2.5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(a - b).max() <= FLOAT32 * max(1.0, float(np.abs(b).max()))


@pytest.mark.parametrize("name", ["reference", "xla"])
@pytest.mark.parametrize("store", ["float32", "bfloat16"])
def test_bfloat16_is_near_float32(name, store):
    hidden, kernel, targets, weights = draw(0, 64, 32, 50, jnp.bfloat16)
    kernel = kernel.astype(store)
    told = Expected(weights)
    score = lambda h, w: linear_cross_entropy(h, w, targets, expected=told, implementation=name)
    loss, grads = loss_and_grads(score, hidden, kernel, weights, 0.0)
    exact = [x.astype(jnp.float32) for x in (hidden, kernel)]
    wanted, wanted_grads = loss_and_grads(by_reference(targets), exact[0], exact[1], weights, 0.0)
    assert frobenius(loss, wanted) <= BFLOAT16
    assert all(frobenius(a, b) <= BFLOAT16 for a, b in zip(grads, wanted_grads, strict=True))
    assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == jnp.dtype(store)


def test_a_gradient_that_was_not_expected_is_right_too():
    hidden, kernel, targets, weights = draw(1, 12, 6, 20)
    others = jnp.arange(12.0)
    told = Expected(weights)
    score = lambda h, w: linear_cross_entropy(h, w, targets, expected=told)
    found = loss_and_grads(score, hidden, kernel, others, 0.3)
    wanted = loss_and_grads(by_reference(targets), hidden, kernel, others, 0.3)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert frobenius(a, b) <= FLOAT32


def test_nothing_weighs_anything():
    hidden, kernel, targets, _ = draw(1, 4, 6, 20)
    told = Expected(jnp.zeros(4))
    score = lambda h, w: linear_cross_entropy(h, w, targets, expected=told)
    loss, grads = loss_and_grads(score, hidden, kernel, jnp.zeros(4), 0.0)
    assert loss == 0 and all((g == 0).all() for g in grads)


@pytest.mark.parametrize("name", ["reference", "xla", "expected"])
def test_what_does_not_count_may_be_anything(name):
    """Tokens of weight 0 whose target is −100, or far outside, are as if they were not there."""
    hidden, kernel, targets, weights = draw(6, 12, 6, 20)
    counts = np.asarray(weights) > 0
    assert 0 < counts.sum() < 12

    def found(hidden, targets, weights):
        told = Expected(weights, 0.1) if name == "expected" else None
        way = None if name == "expected" else name
        score = lambda h, w: linear_cross_entropy(
            h, w, targets, smoothing=0.1, expected=told, implementation=way
        )
        return loss_and_grads(score, hidden, kernel, weights, 0.1)

    wanted, (dh, dw) = found(hidden[counts], targets[counts], weights[counts])
    outside = jnp.tile(jnp.asarray([-100, 20, 2**31 - 1]), 4)
    loss, grads = found(hidden, jnp.where(counts, targets, outside), weights)
    assert frobenius(loss, wanted) <= FLOAT32
    assert frobenius(grads[0][counts], dh) <= FLOAT32 and not grads[0][~counts].any()
    assert frobenius(grads[1], dw) <= FLOAT32


def test_a_target_outside_has_a_logit_of_0():
    hidden, kernel, *_ = draw(7, 3, 6, 20)
    targets = jnp.asarray([-100, -1, 20])
    for name in ("reference", "xla"):
        logp, normalizer = linear_cross_entropy(hidden, kernel, targets, implementation=name)
        assert frobenius(logp, -normalizer) == 0


def test_the_logits_are_never_held():
    M, D, V = 4096, 8, 16_384
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((M, D), (D, V), (M,))]

    def memory(score):
        step = lambda h, w, weights: loss_and_grads(
            lambda h, w: score(h, w, weights), h, w, weights, 0.0
        )
        stats = jax.jit(step).lower(*shapes).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    targets = jnp.zeros(M, jnp.int32)
    told = lambda h, w, m: linear_cross_entropy(h, w, targets, expected=Expected(m))
    plain = lambda h, w, m: linear_cross_entropy(h, w, targets)
    logits = 4 * M * V
    assert memory(told) < logits and memory(plain) < logits
    assert memory(lambda h, w, m: by_reference(targets)(h, w)) > logits


@pytest.mark.parametrize("around", ["vmap", "remat", "scan"])
def test_under_transformations(around):
    hidden, kernel, targets, weights = draw(2, 8, 4, 11)
    plan = Plan(3, None, 0.0, ())
    one = lambda h, w: chunked(plan, h, w, targets, weights)[0]
    if around == "vmap":
        score = lambda h, w: jax.vmap(one, (0, None))(jnp.stack([h, h]), w)[1]
    elif around == "remat":
        score = jax.checkpoint(one)
    else:
        score = lambda h, w: jax.lax.scan(lambda c, x: (c, one(x, w)), 0, h[None])[1][0]
    found = loss_and_grads(lambda h, w: (score(h, w), 0.0), hidden, kernel, weights, 0.0)
    wanted = loss_and_grads(by_reference(targets), hidden, kernel, weights, 0.0)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert frobenius(a, b) <= FLOAT32


def test_smoothing_is_that_of_optax():
    hidden, kernel, targets, _ = draw(4, 12, 6, 20)
    soft = optax.smooth_labels(jax.nn.one_hot(targets, 20), 0.1)
    wanted = -optax.losses.softmax_cross_entropy(hidden @ kernel, soft)
    found, _ = linear_cross_entropy(hidden, kernel, targets, smoothing=0.1)
    assert frobenius(found, wanted) <= FLOAT32


def test_smoothing_over_a_split_vocabulary():
    hidden, kernel, targets, weights = draw(5, 12, 6, 20)
    layout = Layout(make_mesh(tensor=4))
    split = jax.shard_map(
        lambda h, w, t: linear_cross_entropy(h, w, t, smoothing=0.2, split=("tensor",)),
        mesh=layout.mesh,
        in_specs=(jax.P(), jax.P(None, "tensor"), jax.P()),
        out_specs=(jax.P(), jax.P()),
        check_vma=False,
    )
    score = lambda h, w: split(h, w, targets)
    found = loss_and_grads(score, hidden, kernel, weights, 0.1)
    wanted = loss_and_grads(by_reference(targets, None, 0.2), hidden, kernel, weights, 0.1)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert frobenius(a, b) <= FLOAT32


def gathered(text, size):
    """Lines of a compiled program that gather an array of at least `size` numbers."""
    found = []
    for line in text.splitlines():
        if "all-gather" in line and "= f32[" in line:
            dims = line.split("= f32[")[1].split("]")[0].split(",")
            if np.prod([int(d) for d in dims if d]) >= size:
                found.append(line)
    return found


@pytest.mark.parametrize(
    "axes",
    [dict(tensor=4), dict(data=2, tensor=4), dict(fsdp=8), dict(data=2, context=2, tensor=2)],
    ids=str,
)
def test_a_split_vocabulary_stays_split(axes):
    B, T, D, V = 8, 8, 4, 512
    layout = Layout(make_mesh(**axes))
    hidden, kernel, targets, weights = draw(3, B * T, D, V)
    rows = lambda x: x.reshape(B, T, *x.shape[1:])

    def score(h, w):
        with layout.active():
            logp, normalizer = logprobs(rows(h), w, rows(targets), rows(weights), 0.01)
        return logp.reshape(-1), normalizer.reshape(-1)

    where = jax.NamedSharding(layout.mesh, layout.activation_spec(Axes(None, "vocab")))
    kernel = jax.device_put(kernel, where)
    found = loss_and_grads(score, hidden, kernel, weights, 0.01)
    wanted = loss_and_grads(by_reference(targets), hidden, jnp.asarray(kernel), weights, 0.01)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert frobenius(a, b) <= FLOAT32
    if layout.mesh.shape["tensor"] > 1:
        text = jax.jit(score).lower(hidden, kernel).compile().as_text()
        assert not gathered(text, D * V), "the kernel is not gathered"


def call(**changes: Any) -> Any:
    hidden, kernel, targets, _ = draw(0, 4, 3, 5)
    given: dict[str, Any] = {"hidden": hidden, "kernel": kernel, "targets": targets}
    return linear_cross_entropy(**given | changes)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(kernel=jnp.zeros((4, 5))), "do not fit"),
        (dict(targets=jnp.zeros(3, jnp.int32)), "do not fit"),
        (dict(cap=0.0), "cap must be positive"),
        (dict(smoothing=1.5), "smoothing must be in 0 … 1, not 1.5"),
        (dict(expected=Expected(jnp.zeros(3))), "expected.weights"),
        (dict(implementation="xl"), "did you mean 'xla'"),
        (dict(implementation="reference", split=("tensor",)), "cannot take a vocabulary split"),
    ],
)
def test_wrong_calls_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        call(**wrong)


def test_the_choice_is_told_once(caplog):
    with caplog.at_level(logging.INFO, "jscale.pallas_kernels"):
        for _ in range(2):
            call(hidden=jnp.ones((4, 3)))
    found = [r.message for r in caplog.records if "entropy" in r.message]
    assert len(found) <= 1 and all("by 'xla': 4 tokens at a time" in m for m in found)
