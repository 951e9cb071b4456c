"""DeepSeek V3 in plain JAX: what it says, what it foresees, the gradients of both; GLM-4.5."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import LAYOUT, SAME, assert_close
from laws import DECODERS

from jscale import train
from jscale.errors import ConfigError
from jscale.generate import Sampling, generate
from jscale.guard import Guard
from jscale.losses import FurtherTokens, NextToken, measured
from jscale.mesh import Layout, make_mesh
from jscale.models import DeepSeekV3, GLM4MoE, Model
from jscale.models.gates import Balance, Limit, TopK
from jscale.models.latent import Latent
from jscale.models.rope_scaling import YaRN
from jscale.models.sparse import Experts, Shared

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
YARN = YaRN(4.0, original=8, attention=1.0)
TINY = DeepSeekV3(
    vocab=64,
    dim=32,
    layers=2,
    heads=2,
    hidden=48,
    experts=Experts(
        6,
        TopK(3, "sigmoid", scale=2.5, corrected=True, limit=Limit(3, 2)),
        hidden=12,
        shared=Shared(24),
        balance=Balance(0.0),
    ),
    latent=Latent(kv=16, q=24, plain=8, rotated=4, value=6),
    scaling=YARN,
    sharpened=1.0,
    ahead=2,
    remat="none",
)
GLM = GLM4MoE(
    *(64, 32, 2, 4, 2, 48),
    experts=TINY.experts,
    ahead=1,
    turned=4,
    normed=True,
    biases=True,
    remat="none",
)
ROWS, LENGTH, SHARE = 8, 12, 0.3


@cache
def batch(seed=0):
    x = np.random.default_rng(seed).integers(0, 64, (ROWS, LENGTH + 1), np.int32)
    x, ones = jnp.asarray(x), jnp.ones((ROWS, LENGTH))
    return {"inputs": x[:, :-1], "targets": x[:, 1:], "weights": ones}


@cache
def weights():
    """First weights, and corrections that choose other experts."""
    params = Model(TINY).init(jax.random.key(0))
    noise = lambda path, w: (
        w + 0.2 * jax.random.normal(jax.random.key(len(path)), w.shape)
        if "correction" in jax.tree_util.keystr(path)
        else w
    )
    return jax.tree_util.tree_map_with_path(noise, params)


def rms(x, scale):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def turned(x, positions):
    """Pairs as complex numbers, turned."""
    frequencies, _ = YARN(TINY.rope, x.shape[-1], jnp.asarray(1))
    pairs = x[..., ::2] + 1j * x[..., 1::2]
    y = pairs * jnp.exp(1j * positions[:, None] * frequencies)
    return jnp.stack([y.real, y.imag], -1).reshape(x.shape)


def attention(w, x, positions):
    """One row, x [T, D]; head after head."""
    q = jnp.einsum("tc,cnh->nth", rms(x @ w["q_down"], w["q_norm"]["scale"]), w["q_up"])
    latent, key = jnp.split(x @ w["kv_down"], [16], -1)
    both = jnp.einsum("tc,cnh->nth", rms(latent, w["kv_norm"]["scale"]), w["kv_up"])
    key, seen = turned(key, positions), positions[:, None] >= positions
    scale = (0.1 * np.log(4.0) + 1) ** 2 / np.sqrt(12)
    heads = []
    for n in range(2):
        plain, rotated = q[n, :, :8], turned(q[n, :, 8:], positions)
        scores = plain @ both[n, :, :8].T + rotated @ key.T
        heads.append(jax.nn.softmax(jnp.where(seen, scale * scores, -jnp.inf)) @ both[n, :, 8:])
    return jnp.einsum("ntv,nvd->td", jnp.stack(heads), w["o"])


def swiglu(w, x):
    return (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]


def mixture(w, x):
    """Every expert for every token, those that are not chosen times 0."""
    routed = w["routed"]
    values = jax.nn.sigmoid(x @ routed["router"]["kernel"])
    ranked = values + jax.lax.stop_gradient(routed["correction"])
    groups = jnp.sort(ranked.reshape(-1, 3, 2)).sum(-1)
    kept = groups >= jnp.sort(groups)[:, -2:-1]
    ranked = jnp.where(jnp.repeat(kept, 2, 1), ranked, -jnp.inf)
    chosen = jnp.where(ranked >= jnp.sort(ranked)[:, -3:-2], values, 0.0)
    chosen = 2.5 * chosen / chosen.sum(1, keepdims=True)
    y = swiglu(w["shared"], x)
    for e in range(6):
        own = {name: routed["expert"][name]["kernel"][e] for name in ("gate", "up", "down")}
        y += chosen[:, e : e + 1] * swiglu(own, x)
    return y


def block(w, x, positions):
    x = x + attention(w["attend"], rms(x, w["attend_norm"]["scale"]), positions)
    feed = mixture if "routed" in w["feed"] else swiglu
    return x + feed(w["feed"], rms(x, w["feed_norm"]["scale"]))


def reference(w, tokens, targets):
    """The loss of one row: that of the next token, and of two further ones."""
    T = len(tokens)
    first = lambda stacked: jax.tree.map(lambda a: a[0], stacked)
    embedded = w["embed"]["table"][tokens]
    x = embedded
    for layer in range(2):
        x = block(first(w["blocks"]["block"]["layers"][layer]), x, jnp.arange(T))
    hidden = rms(x, w["norm"]["scale"])
    lost = lambda hidden, targets: (
        -jnp.take_along_axis(jax.nn.log_softmax(hidden @ w["head"]["kernel"]), targets[:, None], 1)
    )
    total = lost(hidden, targets).sum()
    for k in (1, 2):  # what is known at token i, joined with token i + k
        d = w["depths"][k - 1]
        pair = [rms(embedded[k:], d["token_norm"]["scale"])]
        pair += [rms(hidden[:-1], d["hidden_norm"]["scale"])]
        x = jnp.concatenate(pair, -1) @ d["join"]
        x = block(first(d["blocks"]["block"]), x, jnp.arange(k, T))
        hidden = rms(x, d["norm"]["scale"])
        total += SHARE / 2 * lost(hidden, targets[k:]).sum()
    return total / T


def mean(loss, params, given, config=TINY):
    terms = loss(Model(config), params, given, jax.random.key(0))
    return (terms.losses * terms.weights).sum() / terms.weights.sum()


def test_loss_and_gradients_are_those_of_plain_jax():
    given = jax.tree.map(lambda a: a[:2], batch())

    def wanted(params):
        rows = jax.vmap(partial(reference, params))(given["inputs"], given["targets"])
        return rows.mean()

    run = lambda f: jax.jit(jax.value_and_grad(f), compiler_options=QUICK)(weights())
    found = run(lambda params: mean(FurtherTokens(share=SHARE), params, given))
    assert_close(found, run(wanted), LAYOUT)
    assert not np.any(found[1]["depths"][0]["blocks"]["block"]["feed"]["routed"]["correction"])


# An optimizer whose state is the gradient that it was given.
RECORD = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),
)


def gradients(axes):
    task = train.Task(
        *(Model(TINY), RECORD, FurtherTokens(), Layout(make_mesh(**axes))),
        guard=Guard(spike=None),
    )
    state = train.init(task, jax.random.key(0))
    sharding_of = train.sharding_of(task.layout)
    where = {name: sharding_of(name, x.shape) for name, x in batch().items()}
    state, metrics = train.make_step(task)(state, jax.device_put(batch(), where))
    return float(metrics["loss"]), state.optimizer


@pytest.mark.slow
def test_devices_foresee_what_one_does():
    found = gradients(dict(fsdp=2, expert=2, context=2))
    assert_close(found, gradients({}), LAYOUT)


@partial(jax.jit, compiler_options=QUICK)
def foreseen(tokens, positions=None, segments=None):
    network = Model(TINY).bind(weights())
    hidden = network(tokens, positions, segments).hidden
    return network.foresee(hidden, tokens, positions, segments).depths


def test_packed_documents_foresee_as_each_does_alone():
    x, cut = batch()["inputs"], 5
    place = np.broadcast_to(np.arange(LENGTH), x.shape).astype(np.int32)
    segments = np.where(place < cut, 1, 2).astype(np.int32)
    packed = foreseen(x, np.where(place < cut, place, place - cut), segments)
    alone = [foreseen(x[:, :cut]), foreseen(x[:, cut:])]
    for k, (hidden, real) in enumerate(packed):
        assert real[0].tolist() == [i % cut > k if i < cut else i - cut > k for i in range(LENGTH)]
        wanted = jnp.concatenate([each[k][0] for each in alone], 1)
        assert_close(hidden[real], wanted[real], SAME * 10)


def test_a_cache_holds_one_latent_for_all_heads():
    many = replace(TINY, heads=16)
    empty = lambda c: Model(c).bind(Model(c).init(jax.random.key(0))).cache(3, 20)
    sizes = lambda c: jax.eval_shape(partial(empty, c))
    assert [x.shape for x in jax.tree.leaves(sizes(many))] == [(2, 3, 20, 16 + 4)]
    assert sizes(many) == sizes(TINY)


@pytest.mark.slow  # the law of caches, in small, is of every decoder
@pytest.mark.parametrize("config", [TINY, GLM], ids=["deepseek", "glm"])
def test_what_is_generated_with_a_cache_is_what_follows_without(config):
    model, x = Model(config), batch()["inputs"][:1, :5].tolist()
    params = model.init(jax.random.key(1))
    (found,) = generate(model, params, x, length=3, sampling=Sampling(temperature=0.0))
    network = jax.jit(model, compiler_options=QUICK)
    for _ in range(3):
        hidden = network(params, jnp.asarray(x)).hidden[:, -1:]
        x[0].append(int(model.bind(params).unembed(hidden).argmax()))
    assert found == x[0][5:]


def test_held_out_text_is_measured_by_the_next_token():
    assert measured(FurtherTokens(z_loss=0.1, share=0.5)) == NextToken(z_loss=0.1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(dense=3), "dense must be from 0 to the 2 layers"),
        (dict(ahead=-1), "ahead must not be negative"),
        (dict(heads=0), "heads must be at least 1"),
        (dict(scaling=None), "sharpened belongs to scaling=YaRN"),
        (dict(remat="ful"), "did you mean 'full'"),
    ],
)
def test_sizes_check_themselves(wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **wrong)


@pytest.mark.parametrize("wrong", [dict(kv=0), dict(q=0), dict(value=0), dict(rotated=3)])
def test_sizes_of_attention_check_themselves(wrong):
    with pytest.raises(ConfigError, match=f"Latent.{next(iter(wrong))} must be"):
        Latent(**wrong)


def test_a_network_that_does_not_look_ahead_is_told():
    llama = DECODERS["llama"]
    lost = lambda config: jax.eval_shape(
        partial(mean, FurtherTokens(), given=batch(), config=config), Model(config).shapes
    )
    with pytest.raises(ConfigError, match="looks ahead: no Llama does"):
        lost(llama)
    with pytest.raises(ConfigError, match="set model.ahead=1"):
        lost(replace(TINY, ahead=0))
    with pytest.raises(ConfigError, match="share must not be negative"):
        FurtherTokens(share=-1.0)
