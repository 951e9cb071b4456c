"""Every choice of experts: its formula in plain numpy, its gradients, and the laws of them all."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import SAME, assert_close
from flax import nnx

from jscale.config.data import from_data, to_data
from jscale.errors import ConfigError
from jscale.models import Model, TransformerEncoder
from jscale.models.decoder import Context
from jscale.models.feed import MLP, Style
from jscale.models.gates import (
    Always,
    Balance,
    Choice,
    Even,
    ExpertChoice,
    Forced,
    Hash,
    Limit,
    Noise,
    PerGroup,
    Quantile,
    Sinkhorn,
    Top1,
    Top2,
    TopK,
)
from jscale.models.gates.forced import quotas
from jscale.models.gates.routing import check_stack, warning_of
from jscale.models.moe import MoE

S, E = 14, 8
SCORES = jax.random.normal(jax.random.key(0), (S, E)) * 2 + jnp.linspace(0, 2, E)
REAL = (jnp.arange(S) != 3) & (jnp.arange(S) != 9)
CORRECTION = jax.random.normal(jax.random.key(1), (E,))
TOKENS = jax.random.randint(jax.random.key(2), (S,), 0, 1000)
BACK = np.random.default_rng(0).normal(size=(S, E))


# Who is chosen, in float64 and by loops, of tokens that are all routed.


def best(x: np.ndarray, count: int) -> list[int]:
    return np.argsort(-x, kind="stable")[:count].tolist()


def values(by: TopK, x: np.ndarray) -> np.ndarray:
    if by.weights == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if by.weights == "sqrt_softplus":
        return np.sqrt(np.log1p(np.exp(x)))
    return x if by.weights == "softmax_of_chosen" else softmax(x)


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max())
    return p / p.sum()


def by_scores(choice: TopK, x: np.ndarray, tokens: np.ndarray) -> list[list[int]]:
    ranked = np.stack([values(choice, row) for row in x])
    ranked = ranked + np.asarray(CORRECTION) if choice.corrected else ranked
    if (limit := choice.limit) is None:
        return [best(row, choice.choices) for row in ranked]
    for row in ranked:
        groups = np.split(row, limit.groups)  # views: what is set in them is set in the row
        if isinstance(limit, Limit):
            good = [np.sort(group)[-limit.best :].sum() for group in groups]
            for number in np.argsort(good)[: limit.groups - limit.kept]:
                groups[number][:] = {"out": -np.inf, "zero": 0.0}[limit.masked]
        else:
            for group in groups:
                group[np.argsort(-group)[choice.choices // limit.groups :]] = -np.inf
    return [best(row, choice.choices) for row in ranked]


def by_assignment(choice: Sinkhorn, x: np.ndarray, tokens: np.ndarray) -> list[list[int]]:
    plan = np.exp(x)
    for _ in range(2000):
        plan /= len(plan) * plan.sum(1, keepdims=True)
        plan /= E * plan.sum(0)
    return [best(row, choice.choices) for row in plan]


def by_quantiles(choice: Quantile, x: np.ndarray, tokens: np.ndarray) -> list[list[int]]:
    price, k = np.zeros(E), choice.choices
    for _ in range(choice.rounds):
        gain = x - np.sort(x - price, 1)[:, [-k - 1]]
        price = np.quantile(gain, 1 - k / E, axis=0, method="hazen")
    return [best(row - price, k) for row in x]


def by_experts(choice: ExpertChoice, x: np.ndarray, tokens: np.ndarray) -> list[list[int]]:
    p = np.stack([softmax(row) for row in x])
    taken = np.zeros(p.shape, bool)
    for e in range(E):
        taken[best(p[:, e], int(np.ceil(choice.factor * len(p) / E - 1e-9))), e] = True
    by_rank = [best(row, E) for row in p]
    chosen = [[e for e in order if t[e]] for order, t in zip(by_rank, taken, strict=True)]
    return [(row[: choice.most] + [E] * choice.most)[: choice.most] for row in chosen]


def by_numbers(choice: Hash, x: np.ndarray, tokens: np.ndarray) -> list[list[int]]:
    def mixed(n: int) -> int:
        n = ((n ^ n >> 16) * 0x85EBCA6B) % 2**32
        n = ((n ^ n >> 13) * 0xC2B2AE35) % 2**32
        return n ^ n >> 16

    k = choice.choices
    first = [int(t) % E + mixed((int(t) // E + choice.seed) % 2**32) % E for t in tokens]
    return [[(f + c * (E // k)) % E for c in range(k)] for f in first]


def by_force(choice: Forced, x: np.ndarray, tokens: np.ndarray) -> list[list[int]]:
    k = choice.choices
    if not choice.skew:
        order = sorted(range(E), key=lambda e: (e % k, e // k))
        return [[order.index((t * k + c) % E) for c in range(k)] for t in range(len(x))]
    ends = np.rint(np.cumsum(quotas(E, k, choice.skew)) * 65536)
    mark = lambda t, c: t * 40503 % 65536 + c * 65536
    return [[int((ends <= mark(t, c)).sum()) for c in range(k)] for t in range(len(x))]


def first_ones(choice: Choice, x: np.ndarray, tokens: np.ndarray) -> list[list[int]]:
    return [best(row, choice.choices) for row in x]


# With what weight.


def weights(choice, x: np.ndarray, chosen: list[int]) -> np.ndarray:
    """Of one token."""
    if isinstance(choice, Hash) and choice.weights == "equal":
        return np.full(choice.choices, 1 / choice.choices)
    if isinstance(choice, ExpertChoice | Hash | Top1):
        return np.append(softmax(x), 0.0)[chosen]
    if isinstance(choice, Forced):
        return softmax(x[chosen])
    if isinstance(choice, Top2):
        p = softmax(x)[chosen]
        return p / p.sum()
    by = choice if isinstance(choice, TopK) else choice.by
    if by.weights == "softmax_of_chosen":
        return by.scale * softmax(x[chosen])
    v = values(by, x)[chosen]
    return by.scale * v / (v.sum() if by.normalise else 1)


TABLE = {
    "softmax": (TopK(3, normalise=False), by_scores),
    "of the chosen": (TopK(3, "softmax_of_chosen", scale=2.0), by_scores),
    "sigmoid, corrected": (TopK(3, "sigmoid", corrected=True, limit=Limit(4, 2)), by_scores),
    "roots": (TopK(3, "sqrt_softplus", scale=1.5, corrected=True), by_scores),
    "roots as they are": (TopK(2, "sqrt_softplus", normalise=False), by_scores),
    "masked by zero": (
        TopK(3, "sigmoid", corrected=True, limit=Limit(4, 2, masked="zero")),
        by_scores,
    ),
    "per group": (TopK(4, "sigmoid", limit=PerGroup(2)), by_scores),
    "each group's best": (TopK(4, "softmax_of_chosen", limit=PerGroup(4)), by_scores),
    "switch": (Top1(None), first_ones),
    "gshard": (Top2(Always(), None), first_ones),
    "sinkhorn": (Sinkhorn(), by_assignment),
    "sinkhorn of three": (Sinkhorn(TopK(3, normalise=False), rounds=500), by_assignment),
    "quantile": (Quantile(), by_quantiles),
    "quantile of three": (Quantile(TopK(3, "sqrt_softplus"), rounds=7), by_quantiles),
    "expert choice": (ExpertChoice(2.0, 2), by_experts),
    "expert choice, all": (ExpertChoice(1.5, 8), by_experts),
    "hash": (Hash(), by_numbers),
    "hash of three": (Hash(3, "softmax", seed=2**32 - 1), by_numbers),
    "forced": (Forced(2), by_force),
    "forced, three of eight": (Forced(3), by_force),
    "forced, skewed": (Forced(2, 1.2), by_force),
    "forced, one takes all": (Forced(3, 9.0), by_force),
}
CHOICES = {name: choice for name, (choice, _) in TABLE.items()}
PRICED = [name for name in TABLE if isinstance(CHOICES[name], Sinkhorn | Quantile)]
every = pytest.mark.parametrize("name", TABLE)


def run(choice, scores=SCORES, real=REAL, training=True, tokens=TOKENS):
    """The routing of one group of tokens; who needs to know more is told it."""
    more = {"correction": CORRECTION} if choice.corrected else {}
    more |= {"tokens": tokens} if getattr(choice, "by_token", False) else {}
    return choice(scores, real, training=training, **more)


# All choices as one program, compiled once for each shape.


def run_all(scores=SCORES, real=REAL, training=True, tokens=TOKENS):
    """The routing by each choice, by its name."""
    return _run_all(*map(np.asarray, (scores, real, tokens)), training)


@partial(jax.jit, static_argnums=3)
def _run_all(scores, real, tokens, training):
    return {name: run(CHOICES[name], scores, real, training, tokens) for name in CHOICES}


def routing(choice, scores, **more):
    """Of one choice, in training, where all tokens count."""
    real = jnp.ones(len(scores), bool)
    return jax.jit(lambda s, more: choice(s, real, training=True, **more))(scores, more)


def grads_all(scores=SCORES):
    """The gradient of Σ weights · BACK by scores, for each choice."""
    return _grads_all(np.asarray(scores))


@jax.jit
def _grads_all(scores):
    def by(choice):
        back = BACK[:, : choice.choices]
        return jax.grad(lambda s: (run(choice, s).weights * back).sum())(scores)

    return {name: by(choice) for name, choice in CHOICES.items()}


def routed(choice, of, training=True):
    """The experts of all tokens by the reference, E where there is none."""
    x, real = np.asarray(SCORES, np.float64), np.asarray(REAL)
    of = first_ones if isinstance(choice, Sinkhorn | Quantile) and not training else of
    chosen = np.full((S, choice.choices), E)
    chosen[real] = of(choice, x[real], np.asarray(TOKENS)[real])
    return chosen


def weighed(choice, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The weights of all tokens by the reference, 0 where there is no expert."""
    some = [
        weights(choice, row, list(mine)) if (mine < E).any() else np.zeros(len(mine))
        for row, mine in zip(x, chosen, strict=True)
    ]
    return np.stack(some)


@every
@pytest.mark.parametrize("training", [True, False])
def test_a_choice_is_its_formula(name, training):
    choice, of = TABLE[name]
    out, chosen = run_all(training=training)[name], routed(choice, of, training)
    assert isinstance(choice, Choice) and choice.draws(S, E) is None
    np.testing.assert_array_equal(out.experts, chosen)
    assert_close(out.weights, weighed(choice, np.asarray(SCORES, np.float64), chosen), 3 * SAME)
    assert_close(out.gates.sum(1), np.ones(S), 3 * SAME)
    assert out.experts.dtype == jnp.int32 and out.weights.dtype == jnp.float32


@every
def test_its_gradient_is_that_of_the_formula(name):
    choice, of = TABLE[name]
    back, grad = BACK[:, : choice.choices], grads_all(SCORES)[name]
    x, chosen, step = np.asarray(SCORES, np.float64), routed(choice, of), 1e-5
    wanted = np.zeros((S, E))
    for e in range(E):
        move = step * (np.arange(E) == e)
        ahead, behind = (weighed(choice, x + by, chosen) for by in (move, -move))
        wanted[:, e] = ((ahead - behind) * back).sum(1) / (2 * step)
    assert_close(grad, wanted, 10 * SAME)


@every
def test_bfloat16_is_read_as_float32_before_anything_else(name):
    program = jax.make_jaxpr(lambda s: run(CHOICES[name], s))(SCORES.astype(jnp.bfloat16))
    (scores,) = program.jaxpr.invars
    readers = [step for step in program.jaxpr.eqns if scores in step.invars]
    assert readers and all(r.primitive.name == "convert_element_type" for r in readers)
    assert all(r.params["new_dtype"] == jnp.float32 for r in readers)
    assert {x.dtype for x in program.out_avals} == {jnp.dtype("float32"), jnp.dtype("int32")}


@every
@pytest.mark.parametrize("training", [True, False])
def test_padding_has_no_say(name, training):
    """Others are routed as if it stood elsewhere and said something else; it has no gradient."""
    real = np.asarray(REAL)
    order = np.concatenate([np.flatnonzero(real), np.flatnonzero(~real)])
    loud = jnp.where(REAL[:, None], SCORES, 1e3)
    out = run_all(loud, training=training)[name]
    last = run_all(SCORES[order], REAL[order], training, TOKENS[order])[name]
    count = int(real.sum())
    parts = lambda r: (r.experts, r.weights, r.gates, r.asked)
    assert_close([a[real] for a in parts(out)], [a[:count] for a in parts(last)], SAME)
    assert_close(out.reports, last.reports, 10 * SAME)
    assert (out.experts[~real] == E).all() and (out.asked[~real] == E).all()
    assert not out.weights[~real].any() and not grads_all(loud)[name][~real].any()


@every
@pytest.mark.parametrize("tokens, some", [(0, False), (1, True), (1, False), (S, False)])
def test_few_tokens_or_none_that_count(name, tokens, some):
    choice, real = CHOICES[name], jnp.full(tokens, some)
    out = run_all(SCORES[:tokens], real, tokens=TOKENS[:tokens])[name]
    assert out.experts.shape == out.weights.shape == (tokens, choice.choices)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(out))
    given = np.asarray(out.experts < E)
    assert given.any(1).all() if some else not given.any()


UGLY = {
    "ties": jnp.zeros((S, E)),
    "far": SCORES * 1e4,
    "low": SCORES - 300,
    "nan": SCORES.at[2].set(jnp.nan).at[5, 1].set(jnp.nan),
    "infinite": SCORES.at[0, 2].set(jnp.inf).at[1, 3].set(-jnp.inf).at[4].set(-jnp.inf),
    "nothing": jnp.full((S, E), jnp.nan),
    "one takes all": SCORES.at[:, 2].set(100.0),
}


@every
@pytest.mark.parametrize("ugly", UGLY)
def test_whatever_scores_are_numbers_are_finite_and_experts_differ(name, ugly):
    out, grad = run_all(UGLY[ugly])[name], grads_all(UGLY[ugly])[name]
    found = (out.weights, out.gates, out.reports, grad)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(found))
    for row in np.asarray(out.experts):
        mine = row[row < E].tolist()
        assert len(set(mine)) == len(mine)


@every
def test_in_evaluation_only_experts_that_choose_look_ahead(name):
    choice = CHOICES[name]
    later = jnp.where(jnp.arange(S)[:, None] < 7, SCORES, SCORES[::-1] + 5 * CORRECTION)
    same = [run_all(s, training=False)[name].experts[:7] for s in (SCORES, later)]
    causal = getattr(choice, "causal", True)
    assert (same[0] == same[1]).all() if causal else (same[0] != same[1]).any()
    check_stack(choice, decodes=False)
    if causal:
        return check_stack(choice, decodes=True)
    with pytest.raises(ConfigError, match=r"ExpertChoice.* is for encoders; choose by TopK\(\)"):
        check_stack(choice, decodes=True)


@pytest.mark.parametrize("name", [name for name in TABLE if CHOICES[name].alone])
def test_a_token_by_itself_is_routed_as_in_its_group_where_that_is_said(name):
    whole = run_all()[name]
    for t in np.flatnonzero(REAL):
        one = run_all(real=jnp.arange(S) == t)[name]
        assert (one.experts[t] == whole.experts[t]).all() and (one.experts < E).any(1).sum() == 1


@every
def test_it_survives_as_data_within_a_network(name):
    choice = CHOICES[name]
    config = TransformerEncoder(
        vocab=8, dim=8, layers=1, heads=2, feed=MoE(E, MLP(8), choice=choice)
    )
    assert from_data(to_data(config)) == config and hash(choice) == hash(replace(choice))
    with pytest.raises(ConfigError, match="experts"):
        choice.check(choice.choices - 1)


def test_probabilities_of_the_chosen_made_to_sum_to_1_are_a_softmax_of_their_scores():
    first, then = (routing(choice, SCORES) for choice in (TopK(3), TopK(3, "softmax_of_chosen")))
    assert (first.experts == then.experts).all()
    assert_close(first.weights, then.weights, SAME)


@pytest.mark.parametrize("scores", [SCORES, SCORES.at[:, 2].set(20.0)], ids=["random", "one"])
@pytest.mark.parametrize("k", [1, 2])
def test_capacity_for_all_drops_nothing_and_is_dropless(scores, k):
    make = (lambda c: Top1(c)) if k == 1 else (lambda c: Top2(Always(), c))
    out, wanted = (routing(make(c), scores) for c in (Even(E / k), None))
    assert_close(out, wanted, 0.0)
    assert all(not value for name, value in out.reports.items() if name.endswith("overflow"))
    plain = routing(TopK(k, normalise=k == 2), scores)
    assert (out.experts == plain.experts).all()
    assert_close(out.weights, plain.weights, SAME)
    less = routing(make(Even(1.0)), UGLY["one takes all"])
    room = Even(1.0).slots(S, E, k)
    assert np.bincount(np.asarray(less.experts).ravel(), minlength=E)[:E].max() == room


@pytest.mark.parametrize("low", [0.0, -0.8, -3.0])
def test_no_correction_leads_out_of_kept_groups_unless_they_count_as_zero(low):
    scores = jax.random.normal(jax.random.key(3), (200, 16))
    correction = low + 0.3 * jax.random.normal(jax.random.key(4), (16,))

    def outside(masked: str) -> float:
        choice = TopK(4, "sigmoid", corrected=True, limit=Limit(4, 2, masked=masked))
        out = routing(choice, scores, correction=correction)
        ranked = jax.nn.sigmoid(scores) + correction
        good = jnp.sort(ranked.reshape(200, 4, 4), -1)[..., -2:].sum(-1)
        kept = jnp.argsort(good, 1)[:, -2:]
        return float(((out.experts // 4)[:, :, None] != kept[:, None]).all(-1).mean())

    assert outside("out") == 0
    assert outside("zero") == 1 if low == -3.0 else (outside("zero") > 0.05) == (low < 0)


def test_each_group_of_experts_has_its_part_of_a_token():
    for name, groups in (("per group", 2), ("each group's best", 4)):
        for scores in (SCORES, *UGLY.values()):
            place = np.asarray(run_all(scores)[name].experts[REAL]) // (E // groups)
            counts = (place[:, :, None] == np.arange(groups)).sum(1)
            assert (counts == CHOICES[name].choices // groups).all()


@pytest.mark.parametrize("far", [1, 6])
def test_sinkhorn_makes_both_sides_even(far):
    scores, choice = far * SCORES, Sinkhorn(rounds=1000)
    found = choice.solve(scores, REAL)
    plan = np.exp(scores + found.rows[:, None] + found.columns)[np.asarray(REAL)]
    np.testing.assert_allclose(plan.sum(1) * len(plan), 1, atol=choice.tolerance + 1e-6)
    np.testing.assert_allclose(plan.sum(0) * E, 1, atol=1e-5)
    assert found.error <= choice.tolerance and 1 < found.rounds < 1000
    assert Sinkhorn(rounds=2).solve(scores, REAL).rounds == 2


def uneven(choice, scores) -> float:
    out = routing(choice, scores)
    counts = np.bincount(np.asarray(out.experts).ravel(), minlength=scores.shape[1])
    return counts.max() / counts.mean() - 1


def test_prices_make_a_batch_even_and_each_round_more_so():
    scores = jax.random.normal(jax.random.key(5), (512, 16))
    scores += jax.random.normal(jax.random.key(6), (16,))
    found = [uneven(Quantile(rounds=n), scores) for n in (1, 4, 12)]
    plain = uneven(TopK(), scores)
    assert plain > 2 > 0.5 > found[0] > found[1] > found[2] and found[1] < 0.1 and found[2] < 0.05
    assert uneven(Sinkhorn(TopK()), scores) < plain / 5


@pytest.mark.parametrize("name", PRICED)
def test_prices_are_outside_of_the_gradient_also_where_it_is_computed_again(name):
    """Under a scan, by groups, with layers that are run once more on the way back."""
    choice = CHOICES[name]
    each = lambda s: (run(choice, s).weights * BACK[:, : choice.choices]).sum()

    def through(scores):
        step = jax.checkpoint(lambda total, s: (total + jax.vmap(each)(s).sum(), None))
        return jax.lax.scan(step, 0.0, scores)[0]

    scores = jax.random.normal(jax.random.key(7), (2, 3, S, E))
    grad = jax.jit(jax.grad(through))(scores)
    plain = [grads_all(s)[name] for s in scores.reshape(-1, S, E)]
    assert_close(grad.reshape(-1, S, E), jnp.stack(plain), 10 * SAME)


@pytest.mark.parametrize("name", ["expert choice", "expert choice, all"])
def test_experts_that_choose_have_equal_loads_and_lose_only_what_passes_the_bound(name):
    out, factor, most = run_all()[name], CHOICES[name].factor, CHOICES[name].most
    asked = np.bincount(np.asarray(out.asked).ravel(), minlength=E + 1)[:E]
    assert (asked == int(np.ceil(factor * int(REAL.sum()) / E))).all()
    each = np.asarray((out.asked < E).sum(1))
    assert (np.asarray((out.experts < E).sum(1)) == np.minimum(each, most)).all()
    lost = 100 * np.maximum(each - most, 0).sum() / asked.sum()
    assert abs(float(out.reports["chosen_overflow"]) - lost) < 1e-3
    untaken = 100 * ((each == 0) & np.asarray(REAL)).sum() / int(REAL.sum())
    assert abs(float(out.reports["untaken"]) - untaken) < 1e-3


def test_experts_that_choose_are_even_by_themselves():
    uneven = lambda s: run(ExpertChoice(2.0, 4), s).unevenness(REAL)
    value, pull = jax.jit(jax.value_and_grad(uneven))(SCORES)
    assert abs(float(value) - 1) < 1e-6 and abs(pull).max() < 1e-6


@pytest.mark.parametrize("k, tokens, experts", [(2, 12, 8), (4, 3, 6)])
def test_forced_experts_have_exactly_equal_loads(k, tokens, experts):
    scores = jax.random.normal(jax.random.key(8), (tokens, experts))
    out = routing(Forced(k), scores)
    counts = np.bincount(np.asarray(out.experts).ravel(), minlength=experts)
    assert (counts == k * tokens // experts).all()


@pytest.mark.parametrize("skew", [0.5, 1.0, 3.0])
def test_forced_experts_may_be_used_by_zipfs_law(skew):
    tokens, experts, k = 1000, 16, 4
    out = routing(Forced(k, skew), jnp.zeros((tokens, experts)))
    counts = np.bincount(np.asarray(out.experts).ravel(), minlength=experts)
    np.testing.assert_allclose(counts / tokens, quotas(experts, k, skew), atol=6e-3)
    assert counts.sum() == k * tokens and counts.max() <= tokens


def test_only_forced_experts_come_with_a_warning():
    said = {name: warning_of(choice) or "" for name, (choice, _) in TABLE.items()}
    assert {name for name in said if said[name]} == {n for n in TABLE if n.startswith("forced")}
    assert "evenly" in said["forced"] and "for benchmarks only" in said["forced"]
    assert "exponent 1.2" in said["forced, skewed"]


def test_a_vocabulary_is_spread_evenly_and_shuffled_by_the_seed():
    tokens = jnp.arange(100 * E)
    for k in (1, 2, 3):
        of = Hash(k).of(tokens, E)
        assert (np.bincount(np.asarray(of).ravel(), minlength=E) == 100 * k).all()
    others = Hash(seed=1).of(tokens, E)
    assert 0.05 < float((Hash().of(tokens, E) == others).mean()) < 0.25


def test_noise_is_there_with_a_key_alone_and_its_stream_is_its_own():
    x = jax.random.normal(jax.random.key(9), (4, 50, 20)) + 3
    noise, key = Noise(jitter=0.1, deviation=0.5), jax.random.key(10)
    assert noise.read(x, None) is x and noise.said(x, None) is x
    assert Noise().read(x, key) is x and Noise().said(x, key) is x
    times = noise.read(x, key) / x
    assert 0.9 <= float(times.min()) < 0.91 and 1.09 < float(times.max()) <= 1.1
    assert abs(float(times.mean()) - 1) < 0.005
    plus = noise.said(x, key) - x
    assert abs(float(plus.std()) - 0.5) < 0.02 and abs(float(plus.mean())) < 0.02
    assert_close(noise.read(x, key), noise.read(x, key), 0.0)
    assert (noise.read(x, jax.random.key(11)) != noise.read(x, key)).mean() > 0.9
    assert abs(np.corrcoef(np.ravel(times), np.ravel(plus))[0, 1]) < 0.05
    assert noise.read(x.astype(jnp.bfloat16), key).dtype == jnp.bfloat16
    grad = jax.grad(lambda x: noise.read(x, key).sum())(x)
    assert_close(grad, times, 2 * SAME)


NEW = (Sinkhorn(), Quantile(), ExpertChoice(2.0, 4), Forced(2, 1.0), TopK(2, limit=PerGroup(2)))


def learning(choices):
    """The gradient of a network with layers of these kinds, and the network."""
    feeds = tuple(
        MoE(4, MLP(8), choice=c, noise=Noise(0.01), balance=Balance(0.1)) for c in choices
    )
    config = TransformerEncoder(vocab=16, dim=8, layers=len(feeds), heads=2, feed=feeds)
    model = Model(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 16)

    def loss(params, key):
        out = model.bind(params, key)(tokens, segments=jnp.ones_like(tokens).at[1, 9:].set(0))
        return jnp.square(out.hidden).sum() + out.penalty

    return jax.grad(loss), model


def test_a_network_can_be_differentiated():
    grad, model = learning((Sinkhorn(), ExpertChoice(2.0, 4)))
    found = jax.eval_shape(grad, model.shapes, jax.random.key(0))
    assert jax.tree.map(lambda g: g.shape, found) == jax.tree.map(lambda w: w.shape, model.shapes)


@pytest.mark.slow
def test_a_network_learns_by_all_of_them():
    """All gradients are finite, twice the same."""
    grad, model = learning(NEW)
    params, grad = model.init(jax.random.key(0)), jax.jit(grad)
    one, two = (grad(params, jax.random.key(2)) for _ in range(2))
    assert_close(one, two, 0.0)
    flat = jax.tree_util.tree_flatten_with_path(one)[0]
    assert all(bool(jnp.isfinite(g).all()) for _, g in flat)
    routers = [g for path, g in flat if "router" in jax.tree_util.keystr(path)]
    assert len(routers) == 5 and all(bool(g.any()) for g in routers)


def test_a_layer_hands_on_the_numbers_of_tokens_in_their_order():
    choice, length = Hash(2), 6
    config = MoE(E, MLP(4), choice=choice, noise=Noise(deviation=1.0))
    tokens = jax.random.randint(jax.random.key(12), (2, length), 0, 100)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    zigzag = jnp.array([[0, 5, 1, 4, 2, 3]] * 2)

    def routed(known):
        """Experts in evaluation, and in training with tokens in another order."""
        layer = config.build(4, nnx.Rngs(0), Style(decodes=True))
        x, key = jnp.ones((2, length, 4)), jax.random.key(13)
        told = [(None, None), (zigzag, key)]
        contexts = [Context(positions, None, places, key, known) for places, key in told]
        return [layer.route(x, context)[0].experts for context in contexts]

    wanted = jnp.stack([choice.of(row, E) for row in tokens])
    assert all((found == wanted).all() for found in jax.jit(routed)(tokens))
    with pytest.raises(ConfigError, match="finds experts by the numbers of tokens"):
        jax.eval_shape(routed, None)


def test_experts_do_not_choose_in_a_decoder():
    config = MoE(E, MLP(4), choice=ExpertChoice())
    jax.eval_shape(lambda: nnx.state(config.build(4, nnx.Rngs(0), Style())))
    with pytest.raises(ConfigError, match="is for encoders"):
        config.build(4, nnx.Rngs(0), Style(decodes=True))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Limit(4, 2, masked="-inf"), "no '-inf' for Limit.masked; choose from out, zero"),
        (lambda: PerGroup(0), "PerGroup.groups must be at least 1, not 0"),
        (lambda: TopK(3, limit=PerGroup(2)).check(8), "has 3 experts, which must be a multiple of"),
        (lambda: TopK(2, limit=PerGroup(2)).check(9), "9 experts cannot be 2 equal groups"),
        (lambda: TopK(6, limit=PerGroup(1)).check(4), "gives each token 6 experts"),
        (lambda: TopK(weights="sqrt_softmax"), "no weights 'sqrt_softmax' of TopK; did you mean"),
        (lambda: Sinkhorn(TopK(2, corrected=True)), "Sinkhorn.by goes by scores and prices alone"),
        (lambda: Sinkhorn(tolerance=-1.0), "tolerance must be from 0 to below 1: -1.0"),
        (lambda: Sinkhorn(rounds=0), "Sinkhorn.rounds must be at least 1, not 0"),
        (lambda: Quantile(rounds=0), "Quantile.rounds must be at least 1, not 0"),
        (lambda: Quantile(TopK(2, limit=Limit(2, 1))), "nor have a limit"),
        (lambda: Quantile(TopK(4)).check(4), "gives each token all 4 experts"),
        (lambda: ExpertChoice(0.0), "factor must be positive, not 0.0"),
        (lambda: ExpertChoice(2.0, 0), "most must be at least 1, not 0"),
        (lambda: ExpertChoice(5.0, 4).check(4), "factor must be at most the 4 experts"),
        (lambda: ExpertChoice(2.0, 8).check(4), "most must be at most the 4 experts"),
        (lambda: Hash(0), "Hash.choices must be at least 1, not 0"),
        (lambda: Hash(weights="equals"), "no weights 'equals' of Hash; did you mean 'equal'"),
        (lambda: Hash(seed=-1), "seed must be from 0 to 2³² − 1, not -1"),
        (lambda: Hash()(SCORES, REAL, training=True), "finds experts by the numbers of tokens"),
        (lambda: Forced(0), "Forced.choices must be at least 1, not 0"),
        (lambda: Forced(2, float("inf")), "skew must be finite and not negative, not inf"),
        (lambda: Noise(jitter=1.0), "jitter must be from 0 to below 1, not 1.0"),
        (lambda: Noise(deviation=-1.0), "deviation must not be negative, not -1.0"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
