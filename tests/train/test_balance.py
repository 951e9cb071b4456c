"""Experts in the step: what asks for even use, and what is steered, however a batch is split."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import LAYOUT, SAME, assert_close

from jscale import train
from jscale.audit import is_square
from jscale.errors import ConfigError
from jscale.experts.counts import layers
from jscale.losses import FurtherTokens, NextToken, Terms
from jscale.mesh import Layout, make_mesh
from jscale.models import DeepSeekV3, Mixtral
from jscale.models.decoder import context_of
from jscale.models.gates import Balance, TopK
from jscale.models.latent import Latent
from jscale.models.model import Model
from jscale.models.sparse import Experts
from jscale.optim import AdamW, Constant, Frozen, Optimizer
from jscale.precision import Precision

B, T, E, VOCAB, STEER = 8, 8, 4, 32, 0.01
WEIGHT, Z = 0.5, 0.01
SEGMENTS = np.where(np.arange(T) < np.array([8, 8, 5, 8, 1, 8, 3, 7])[:, None], 1, 0)


def mixtral(balance, remat="none", **more):
    experts = Experts(E, TopK(2), balance=balance, **more)
    return Mixtral(VOCAB, 16, 2, 2, 2, 24, experts=experts, remat=remat)


STEERED = Balance(0.0, steer=STEER)


def deepseek(balance=STEERED, remat="none"):
    choice = TopK(2, "sigmoid", corrected=True)
    experts = Experts(E, choice, 8, balance=balance)
    latent = Latent(kv=8, q=None, rotated=4, plain=4, value=4)
    return DeepSeekV3(VOCAB, 16, 3, 2, 24, experts, latent, ahead=1, remat=remat)


def batch(seed=0):
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (B, T + 1))
    tokens[: B // 2] //= 2  # so that the halves of a batch are unlike
    return {
        "inputs": jnp.asarray(tokens[:, :-1], jnp.int32),
        "targets": jnp.asarray(tokens[:, 1:], jnp.int32),
        "weights": jnp.asarray(SEGMENTS, jnp.float32),
        "segments": jnp.asarray(SEGMENTS, jnp.int32),
    }


PLAIN, ADAM, FULL = NextToken(), AdamW(1e-2, Constant()), Precision()


def task(config, loss=PLAIN, axes=None, optimizer: Optimizer = ADAM, **more):
    frozen = optimizer.weights if isinstance(optimizer, Frozen) else ()
    precision = more.get("precision", FULL)
    model = Model(config, precision.compute, precision.store, frozen=frozen)
    built = optimizer.build(model.learned(model.axes), model.learned(model.shapes), 10)
    return train.Task(model, built, loss, Layout(make_mesh(**(axes or {}))), **more)


@lru_cache
def stepped(config, loss=PLAIN, axes=(), accumulate=1, precision=FULL):
    """The state before and after a step, and its metrics."""
    of = task(config, loss, dict(axes), accumulate=accumulate, precision=precision)
    state = train.init(of, jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    after, metrics = train.make_step(of)(state, batch())
    return before, jax.tree.map(np.asarray, after), {n: np.asarray(m) for n, m in metrics.items()}


def objective(params, config, scope):
    """The loss and the penalty in plain JAX, from what each layer's router says."""
    model = Model(mixtral(Balance(0.0)))
    given, real = batch(), SEGMENTS.astype(bool)
    network = model.bind(params)
    x = network.embed(given["inputs"])
    penalty = 0.0
    context = context_of(given["inputs"], None, given["segments"])
    for at in range(2):
        block = jax.tree.map(lambda w, at=at: w[at], network.blocks.block)
        attended, _ = block.attend(block.attend_norm(x), context, None)
        h = block.feed_norm(x + attended)
        scores = jnp.einsum("btd,de->bte", h, block.feed.routed.router.kernel[...])
        penalty += plain_penalty(scores, real, scope)
        x, _ = block(x, context, None)
    hidden = network.norm(x)
    logp = jax.nn.log_softmax(network.unembed(hidden))
    own = jnp.take_along_axis(logp, given["targets"][..., None], -1)[..., 0]
    return -(own * real).sum() / real.sum() + penalty


def plain_penalty(scores, real, scope):
    """weight · E · Σ f P and z · mean lse², over the whole batch or the mean over its rows."""
    gates = jax.nn.softmax(scores)
    hits = jax.nn.one_hot(jax.lax.top_k(scores, 2)[1], E).sum(-2)
    axes = (0, 1) if scope == "global" else 1
    count = real.sum(axes)[..., None]
    mean = lambda x: (x * real[..., None]).sum(axes) / count
    spread = (mean(hits / 2) * mean(gates)).sum(-1)
    squares = (jnp.square(jax.nn.logsumexp(scores, -1)) * real).sum() / real.sum()
    return WEIGHT * E * spread.mean() + Z * squares


@pytest.mark.parametrize("scope", ["global", "sequence", "microbatch"])
def test_the_balance_is_its_formula_in_value_and_gradients(scope):
    config = mixtral(Balance(WEIGHT, scope, z=Z))
    before, _, metrics = stepped(config)
    plain = jax.jit(jax.value_and_grad(objective), static_argnums=(1, 2))
    loss, grads = plain(before, config, "sequence" if scope == "sequence" else "global")
    assert_close(metrics["loss"], loss, 10 * SAME)
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
    assert_close(metrics["grad_norm"], norm, 10 * SAME)


SPLIT = [
    dict(accumulate=2),
    dict(accumulate=4, axes=(("expert", 2),)),
    dict(axes=(("data", 2), ("expert", 4))),
]


@pytest.mark.parametrize("how", SPLIT, ids=str)
def test_a_global_balance_is_the_same_however_the_batch_is_split(how):
    """Over devices and microbatches: loss, every weight after the step, and what was counted."""
    config = mixtral(Balance(WEIGHT, "global", z=Z))
    _, wanted, said = stepped(config)
    _, found, told = stepped(config, **how)
    assert_close(told["loss"], said["loss"], LAYOUT)
    squares = [{n: m for n, m in all_.items() if is_square(n)} for all_ in (told, said)]
    assert_close(squares[0], squares[1], LAYOUT)
    assert_close(found.optimizer, wanted.optimizer, LAYOUT)
    for one, other in zip(layers(told), layers(said), strict=True):
        assert (one.chosen == other.chosen).all() and one.tokens == other.tokens == SEGMENTS.sum()


def test_a_balance_of_microbatches_is_another_thing():
    """Their halves prefer other experts: each is less even than both are."""
    local, whole = (mixtral(Balance(WEIGHT, scope)) for scope in ("microbatch", "global"))
    one, other = (stepped(config, accumulate=2)[2]["loss"] for config in (local, whole))
    assert one > other + 1e-4
    assert_close(stepped(local)[2]["loss"], stepped(whole)[2]["loss"], 10 * SAME)


def counts(metrics):
    return {layer.name: layer for layer in layers(metrics)}


@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(accumulate=2),
        dict(axes=(("fsdp", 2), ("expert", 4))),
        dict(precision=Precision("bfloat16")),
    ],
    ids=str,
)
def test_corrections_are_steered_once_a_step_by_what_was_counted(how):
    """In every layer, those that look ahead among them; padding and what is foreseen of nothing
    are not counted; in float32, whatever the weights are kept in."""
    before, after, metrics = stepped(deepseek(), FurtherTokens(), **how)
    found = counts(metrics)
    places = [layer.name for layer in found.values()]
    assert len(places) == 3 and any(name.startswith("depths/0") for name in places)
    foreseen = SEGMENTS[:, 1:].sum()
    for name, layer in found.items():
        real = foreseen if name.startswith("depths") else SEGMENTS.sum()
        assert layer.tokens == real and layer.chosen.sum() == 2 * real
        path, _, at = name.rpartition("/")
        old, new = (at_path(p, f"{path}/correction")[int(at)] for p in (before, after.params))
        assert old.dtype == new.dtype == np.float32 and not old.any()
        moved = STEER * np.sign(layer.chosen.mean() - layer.chosen)
        np.testing.assert_allclose(new, moved - moved.mean(), atol=1e-7)
        np.testing.assert_array_equal(new, layer.correction)


def at_path(tree, path):
    for name in path.split("/"):
        tree = tree[name] if name in tree else tree[int(name)]
    return np.asarray(tree)


def test_what_is_computed_again_is_not_counted_again():
    one, other = (stepped(deepseek(remat=r), FurtherTokens())[2] for r in ("none", "full"))
    for mine, yours in zip(layers(one), layers(other), strict=True):
        assert (mine.chosen == yours.chosen).all()


def test_corrections_are_no_business_of_the_optimizer():
    """It has no moments for them; at a rate of 0, or in a step that is left out, they stay."""
    before, after, _ = stepped(deepseek(), FurtherTokens())
    names = [
        jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_flatten_with_path(after.optimizer)[0]
    ]
    assert names and not any("correction" in name for name in names)
    still = stepped(deepseek(Balance(0.0, steer=0.0)), FurtherTokens())[1]
    assert not at_path(still.params, "depths/0/blocks/block/feed/routed/correction").any()
    of = task(deepseek(), FurtherTokens())
    void = {**batch(), "weights": jnp.zeros((B, T))}
    state, metrics = train.make_step(of)(train.init(of, jax.random.key(0)), void)
    assert metrics["skipped"] == 1
    assert not at_path(state.params, "depths/0/blocks/block/feed/routed/correction").any()


def test_steering_evens_a_load_out():
    of = task(
        deepseek(Balance(0.0, steer=0.02)), FurtherTokens(), optimizer=AdamW(1e-5, Constant())
    )
    state, step, seen = train.init(of, jax.random.key(0)), train.make_step(of), []
    for _ in range(40):
        state, metrics = step(state, batch())
        seen.append(float(metrics["moe_maxvio"]))
    assert max(seen[-5:]) < 0.5 * seen[0], seen


class Careless(NextToken):
    """A loss of one's own that forgets the loads."""

    def __call__(self, model, params, batch, rng):
        terms = super().__call__(model, params, batch, rng)
        return Terms(terms.losses, terms.weights, terms.metrics)


def test_a_loss_that_forgets_the_loads_is_told():
    of = task(deepseek(), Careless())
    with pytest.raises(ConfigError, match=r"Careless leaves out the load of .*loads=output.loads"):
        train.make_step(of).lower(train.shapes(of), batch())


def test_frozen_weights_stay_and_have_no_moments():
    of = task(
        mixtral(Balance()), optimizer=Frozen(AdamW(1e-2, Constant()), ("*/router/*", "embed*"))
    )
    state = train.init(of, jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    after, metrics = train.make_step(of)(state, batch())
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), after.params, before)
    still = {
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, s in jax.tree_util.tree_flatten_with_path(same)[0]
        if s
    }
    assert still == {"embed/table", "blocks/block/feed/routed/router/kernel"}
    assert "router" not in str(jax.tree_util.tree_structure(after.optimizer))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Balance(-1.0), r"Balance.weight must not be negative"),
        (lambda: Balance(scope="globl"), "did you mean 'global'"),
        (lambda: Balance(counted="all"), "for Balance.counted"),
        (lambda: replace(mixtral(Balance()).experts, latent=0), "latent must be at least 1"),
        (lambda: Frozen(AdamW(1e-3), ()), "names what does not learn"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
