"""Gates: capacity, order, policies, groups, scores, balance, and what they must survive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jscale.errors import ConfigError
from jscale.models.gates import (
    Always,
    ByWeight,
    Choice,
    CosineRouter,
    Even,
    Groups,
    LinearRouter,
    Sampled,
    Scores,
    Second,
    Share,
    Top1,
    Top2,
)
from jscale.models.gates.capacity import within
from jscale.models.gates.routing import finite
from jscale.models.initial import SCHEMES

SCHEME = SCHEMES["torchscale"]
REAL = jnp.ones(6, bool)
# Six tokens and three experts: most want expert 0, and then expert 1.
SCORES = jnp.log(
    jnp.array(
        [[7, 2, 1], [6, 3, 1], [5, 4, 1], [1, 8, 1], [9, 1, 1], [2, 1, 7]], jnp.float32
    )
)  # fmt: skip


def test_they_are_values_of_their_protocols():
    assert all(isinstance(c, Choice) for c in (Top1(), Top2()))
    assert all(isinstance(s, Scores) for s in (LinearRouter(), CosineRouter()))
    assert all(isinstance(s, Second) for s in (Always(), Sampled(), ByWeight()))
    assert hash(Top2(ByWeight(), Even(2.0))) == hash(Top2(ByWeight(), Even(2.0)))


@pytest.mark.parametrize(
    "capacity, choices, wanted",
    [
        (Even(), 1, 10),  # ⌈37 / 4⌉
        (Even(), 2, 20),
        (Even(1.25), 1, 12),
        (Even(0.0), 2, 0),
        (Share(), 1, 10),  # ⌈37 / 4⌉, whatever the choices
        (Share(), 2, 10),
        (Share(1.0), 2, 37),
    ],
    ids=str,
)
def test_slots(capacity, choices, wanted):
    assert capacity.slots(37, 4, choices) == wanted


def test_slots_go_to_first_choices_in_order_and_then_to_second_ones():
    index = jnp.array([[0, 1], [0, 1], [1, 0], [0, 1]])
    wanted = jnp.ones((4, 2), bool)
    kept = within(index, wanted, 2, 2)
    # Expert 0: first choices of tokens 0 and 1. Expert 1: token 2's first, token 0's second.
    assert kept.tolist() == [[True, True], [True, False], [True, False], [False, False]]
    urgent = within(index, wanted, 2, 2, jnp.array([0.1, 0.2, 0.3, 0.4]))
    assert urgent.tolist() == [[False, False], [True, False], [True, False], [True, True]]
    nobody = within(index, wanted.at[0].set(False), 2, 2)
    assert nobody.tolist() == [[False, False], [True, True], [True, False], [True, False]]


def test_first_choices_that_are_dropped_still_push_back_second_ones():
    """Three first choices of one expert leave no room for a second one, whatever is kept."""
    index = jnp.array([[0, 1], [0, 1], [0, 1], [1, 0]])
    assert within(index, jnp.ones((4, 2), bool), 2, 3)[:, 1].tolist() == [True, True, False, False]
    assert within(index, jnp.ones((4, 2), bool), 2, 2)[3, 1].tolist() is False


@pytest.mark.parametrize("second", [Always(), Sampled(), ByWeight()], ids=repr)
def test_evaluation_leaves_nothing_to_chance(second):
    """Each token has its runner-up, unless there is a bound and it is passed."""
    out = Top2(second)(SCORES, REAL, training=False)
    assert out.experts.tolist() == [[0, 1], [0, 1], [0, 1], [1, 0], [0, 1], [2, 0]]
    np.testing.assert_allclose(out.weights.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(out.weights[0], [7 / 9, 2 / 9], rtol=1e-5)
    bound = Top2(second, evaluation=Share(0.5))(SCORES, REAL, training=False)
    assert bound.experts.tolist() == [[0, 1], [0, 1], [0, 3], [1, 3], [3, 3], [2, 3]]


def test_a_second_expert_is_kept_as_often_as_twice_its_weight():
    scores = jnp.tile(SCORES[:1], (4000, 1))
    u = jax.random.uniform(jax.random.key(0), (4000,))
    choice = Top2(ByWeight(), None, normalise="before")
    kept = choice(scores, jnp.ones(4000, bool), training=True, uniforms=u).experts[:, 1] < 3
    assert abs(float(kept.mean()) - 4 / 9) < 0.03


def test_a_sampled_second_expert_is_as_frequent_as_its_probability_among_the_others():
    scores = jnp.tile(SCORES[:1], (4000, 1))
    choice = Top2(Sampled(), None)
    u = jax.random.uniform(jax.random.key(0), Sampled().uniforms(4000, 3) or ())
    second = choice(scores, jnp.ones(4000, bool), training=True, uniforms=u).experts[:, 1]
    assert abs(float((second == 1).mean()) - 2 / 3) < 0.03 and not (second == 0).any()


@pytest.mark.parametrize("choice", [Top1(Even(0.0)), Top2(Always(), Even(0.0))], ids=repr)
def test_without_capacity_nobody_is_chosen(choice):
    out = choice(SCORES, REAL, training=True)
    assert (out.experts == 3).all() and (out.weights == 0).all()
    assert out.reports["first_overflow"] == 100
    grad = jax.grad(lambda s: choice(s, REAL, training=True).weights.sum())(SCORES)
    assert (grad == 0).all()


@pytest.mark.parametrize("choice", [Top1(), Top2(Always())], ids=repr)
def test_one_expert_may_take_all(choice):
    scores = jnp.zeros((8, 4)).at[:, 2].set(50.0)
    out = choice(scores, jnp.ones(8, bool), training=True)
    room = choice.training.slots(8, 4, 2 if isinstance(choice, Top2) else 1)
    assert (out.experts[:, 0] == 2).tolist() == [True] * room + [False] * (8 - room)
    np.testing.assert_allclose(out.unevenness(jnp.ones(8, bool)), 4, rtol=1e-5)
    assert out.reports["first_unused"] == 3 and out.reports["first_top"] == 100


@pytest.mark.parametrize("choice", [Top1(), Top2(), Top2(prioritised=True)], ids=repr)
@pytest.mark.parametrize("tokens, real", [(0, True), (5, False)])
def test_no_tokens_at_all(choice, tokens, real):
    """None in the group, or only padding: no not-a-number anywhere."""
    scores = jnp.ones((tokens, 4))
    real = jnp.full(tokens, real)
    run = lambda s: choice(s, real, training=True)
    out, loss = run(scores), lambda s: run(s).unevenness(real)
    assert (out.experts == 4).all()
    found = (out.weights, loss(scores), *out.reports.values())
    assert all(bool(jnp.isfinite(x).all()) for x in found)
    assert bool(jnp.isfinite(jax.grad(lambda s: loss(s) + run(s).weights.sum())(scores)).all())


def test_padding_changes_nothing_but_the_slots():
    """The loss and what is reported are of real tokens alone."""
    real = jnp.array([True, True, False, True, False, True])
    choice = Top2(Always(), None)
    all_, own = choice(SCORES, real, training=True), choice(SCORES[real], REAL[:4], training=True)
    assert (all_.experts[real] == own.experts).all() and (all_.experts[~real] == 3).all()
    for name in own.reports:
        np.testing.assert_allclose(all_.reports[name], own.reports[name], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(all_.unevenness(real), own.unevenness(REAL[:4]), rtol=1e-6)


def test_the_loss_is_one_where_use_is_even_and_only_it_has_a_gradient():
    even = 5.0 * jnp.tile(jnp.eye(3), (2, 1))
    np.testing.assert_allclose(Top1()(even, REAL, training=True).unevenness(REAL), 1, rtol=1e-6)
    grad = jax.grad(lambda s: Top1()(s, REAL, training=True).unevenness(REAL))(SCORES)
    assert bool((grad != 0).any())
    told = lambda s: sum(Top2(Always())(s, REAL, training=True).reports.values())
    assert (jax.grad(told)(SCORES) == 0).all()


def test_scores_that_are_no_numbers_become_the_lowest_of_their_group():
    bad = SCORES.at[0, 0].set(jnp.nan).at[1, 2].set(jnp.inf).at[2, 1].set(-jnp.inf)
    least = float(jnp.where(jnp.isfinite(bad), bad, jnp.inf).min())
    found = finite(bad)
    assert found[0, 0] == found[1, 2] == found[2, 1] == least
    assert (finite(jnp.full((2, 3), jnp.nan)) == 0).all()


def built(scores, dim=8, experts=6, seed=0):
    return scores.build(dim, experts, nnx.Rngs(seed), SCHEME)


@pytest.mark.parametrize("experts", [4, 40])
def test_cosine_scores_of_the_paper_are_cosines_over_a_temperature(experts):
    scores = built(CosineRouter(), experts=experts)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    found = scores(x)
    np.testing.assert_allclose(scores(10 * x), found, rtol=1e-4, atol=1e-5)
    token, rows = x @ scores.reduce[...], scores.vectors[...]
    cosine = jnp.einsum("btr,re->bte", token, rows)
    cosine /= jnp.linalg.norm(token, axis=-1)[..., None] * jnp.linalg.norm(rows, axis=0)
    assert scores.temperature is not None
    np.testing.assert_allclose(found * scores.temperature[...], cosine, rtol=1e-4, atol=1e-5)
    by_heat = jax.grad(lambda s: s(x)[0, 0, 0])(scores).temperature[...]
    assert by_heat != 0


def test_cosine_scores_of_torchscale_know_neither_the_length_of_a_row_nor_a_temperature():
    scores, x = built(CosineRouter("torchscale")), jax.random.normal(jax.random.key(0), (1, 5, 8))
    assert scores.temperature is None
    np.testing.assert_allclose(jnp.linalg.norm(scores.vectors[...], axis=0), 1.5, rtol=1e-5)
    found = scores(x)
    np.testing.assert_allclose(scores(10 * x), 10 * found, rtol=1e-4)
    grads = jax.grad(lambda s: jnp.square(s(x)).sum())
    by_rows = grads(scores).vectors[...]
    scores.vectors[...] = 7 * scores.vectors[...]
    np.testing.assert_allclose(scores(x), found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads(scores).vectors[...], by_rows, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose((by_rows * scores.vectors[...]).sum(0), 0, atol=1e-3)


@pytest.mark.parametrize(
    "scores", [LinearRouter(), CosineRouter(), CosineRouter("torchscale")], ids=repr
)
def test_scores_are_in_float32(scores):
    made = built(scores)
    x = jax.random.normal(jax.random.key(0), (1, 5, 8), jnp.bfloat16)
    found = made(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, made(x.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("order", ["rows", "places"])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_groups_there_and_back(order, count):
    x = jnp.arange(4 * 6 * 2).reshape(4, 6, 2)
    groups = Groups(count, order)
    groups.check(4, 6)
    folded = groups.fold(x)
    assert folded.shape == (count, 24 // count, 2)
    assert (groups.unfold(folded, 4, 6) == x).all()
    rows = folded[0, :, 0] // 12
    if order == "rows":
        assert (jnp.diff(folded[:, :, 0].reshape(-1)) == 2).all()
    elif count == 2:
        assert rows.tolist() == [0, 1] * 6  # of two rows in turn


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Even(-1.0), "must be finite and not negative"),
        (lambda: Even(float("inf")), "must be finite and not negative"),
        (lambda: Share(1.5), "from 0 to 1"),
        (lambda: Groups(0), "at least 1"),
        (lambda: Groups(2, "place"), "did you mean 'places'"),
        (lambda: Groups(3).check(4, 6), "must divide the rows"),
        (lambda: Groups(16).check(4, 6), "must divide the rows"),
        (lambda: CosineRouter("papers"), "did you mean 'paper'"),
        (lambda: CosineRouter(size=0), "at least 1"),
        (lambda: Top2(normalise="first"), "no moment 'first'"),
        (lambda: Top2()(jnp.ones((6, 1)), REAL, training=True), "has the scores of one"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_order_of_a_group_is_that_of_the_stack():
    """TorchScale's encoder turns its tokens before it routes them, and its decoder does not."""
    groups = Groups(3, "torchscale")
    assert groups.within(decodes=True) == Groups(3, "rows")
    assert groups.within(decodes=False) == Groups(3, "places")
    assert Groups(2, "places").within(decodes=True) == Groups(2, "places")
