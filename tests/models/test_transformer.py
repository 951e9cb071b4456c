"""Transformers as TorchScale has them: positions, residual schemes, padding, drops, sources."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import LAYOUT, SAME, assert_close
from flax import nnx

from jscale import train
from jscale.config.annotations import check
from jscale.config.data import from_data, to_data
from jscale.errors import ConfigError
from jscale.generate import Sampling, Sources, generate
from jscale.given_source import GivenSource
from jscale.guard import Guard
from jscale.losses import NextToken, logprobs
from jscale.masked_tokens import MaskedTokens
from jscale.mesh import Layout, make_mesh
from jscale.models import Model
from jscale.models.activations import ACTIVATIONS, activate
from jscale.models.decoder import places_of
from jscale.models.feed import GLU, MLP, Drop
from jscale.models.initial import SCHEMES
from jscale.models.norms import RMS, Layer
from jscale.models.positions import Alibi, Learned, RelativeBias, Rope, Sinusoidal, XPos
from jscale.models.positions.biased import slopes
from jscale.models.residual import DeepNorm, PostNorm, PreNorm, Stage, SubLN
from jscale.models.transformer import EncoderDecoder, TransformerDecoder, TransformerEncoder
from jscale.models.transformer.attend import dropped
from jscale.models.transformer.head import Masked, Plain
from jscale.pallas_kernels.attention import CAUSAL, PLAIN, Places, attention

SIZES: Any = dict(vocab=64, dim=32, heads=4, feed=MLP(48), remat="none")
ENCODER = TransformerEncoder(layers=2, positions=(Learned(32), RelativeBias(8, 16)), **SIZES)
DECODER = TransformerDecoder(layers=2, positions=(XPos(), Alibi()), **SIZES)
BOTH = EncoderDecoder(layers=(2, 2), positions=(Learned(32), RelativeBias(8, 16)), **SIZES)


def tokens(key=1, shape=(2, 12)):
    return jax.random.randint(jax.random.key(key), shape, 0, 64)


def moved(model):
    """Weights of which none is 0 or 1, so that each of them shows."""
    params = model.init(jax.random.key(0))
    flat, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(flat))
    noise = [w + 0.1 * jax.random.normal(k, w.shape) for w, k in zip(flat, keys, strict=True)]
    return jax.tree.unflatten(tree, noise)


# Padding, on either side.


@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_padding_on_the_left_changes_nothing_and_is_finite(config):
    model = Model(config)
    params, x = moved(model), tokens()

    @jax.jit
    def total(params, x, segments):
        def loss(params):
            hidden = model(params, x, None, segments).hidden
            return jnp.square(jnp.where(segments[..., None] > 0, hidden, 0.0)).sum(), hidden

        (_, hidden), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return hidden, grads

    plain, _ = total(params, x, jnp.ones_like(x))
    wide = jnp.pad(x, ((0, 0), (4, 0)), constant_values=7)
    segments = jnp.pad(jnp.ones_like(x), ((0, 0), (4, 0)))
    hidden, grads = total(params, wide, segments)
    assert jnp.isfinite(hidden).all()
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert_close(hidden[:, 4:], plain, SAME * 10)


def hidden_tokens(loss: MaskedTokens):
    """Of one token, with a vocabulary of nine."""
    one = jnp.zeros((1, 1), jnp.int32)
    return loss.hide(one, one == 0, jax.random.split(jax.random.key(0), 1), 9)


def test_places_count_from_where_segments_begin():
    segments = jnp.asarray([[0, 0, 3, 3, 3], [1, 1, 2, 0, 0]])
    assert places_of(segments).tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 1]]


# Positions.


def test_xpos_is_its_formula_and_depends_on_distance_alone():
    H, base = 8, 16.0
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, H))
    i = np.arange(H // 2)
    zeta, turn = (2 * i / H + 0.4) / 1.4, 10_000.0 ** (-2 * i / H)

    def wanted(n, m):
        a, b = q[::2] + 1j * q[1::2], k[::2] + 1j * k[1::2]
        return ((a * b.conj()) * np.exp(1j * turn * (n - m)) * zeta ** ((n - m) / base)).real.sum()

    xpos, n = XPos(base), jnp.arange(40)[None]
    whole = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), (1, 40, 1, H))
    a, b = xpos.meet(xpos.turn(whole(q), n), xpos.turn(whole(k), n), n, n)
    scores = np.asarray(jnp.einsum("btnh,bsnh->ts", a, b))
    found = [scores[n, m] for n in range(40) for m in range(n + 1)]
    np.testing.assert_allclose(
        found, [wanted(n, m) for n in range(40) for m in range(n + 1)], atol=2e-5
    )


def test_blockwise_attention_sees_its_own_block_and_the_one_before():
    config = replace(DECODER, layers=1, positions=(XPos(blockwise=8),))  # blocks of four tokens
    model, full = Model(config), Model(replace(config, positions=(XPos(),)))
    params, x = moved(model), tokens(shape=(1, 16))
    run = jax.jit(lambda x: model(params, x).hidden)
    before = run(x)
    short = jax.jit(lambda x: full(params, x).hidden)(x)
    assert_close(before[:, :8], short[:, :8], SAME * 10)  # as long as training: the same
    assert np.abs(before[:, 8:] - short[:, 8:]).max() > 1e-3
    for changed, sees in ((0, range(0, 8)), (5, range(5, 12)), (11, range(11, 16))):
        after = run(x.at[0, changed].set((x[0, changed] + 1) % 64))
        moved_at = np.flatnonzero(np.abs(np.asarray(after - before))[0].max(-1) > 1e-6)
        assert moved_at.tolist() == list(sees)


def test_alibi_slopes_and_shared_buckets():
    np.testing.assert_allclose(slopes(8), [2.0 ** -(i + 1) for i in range(8)])
    np.testing.assert_allclose(slopes(3), [2.0**-4, 2.0**-8, 2.0**-2])
    away = jnp.asarray([-1000, -128, -3, 0, 1, 3, 128, 1000])
    assert RelativeBias().bucket(away).tolist() == [15, 15, 3, 0, 17, 19, 31, 31]
    assert RelativeBias(ahead=False).bucket(away).tolist() == [31, 31, 3, 0, 0, 0, 0, 0]


def test_sinusoidal_positions_are_their_formula():
    found = Sinusoidal().build(6, nnx.Rngs(0), SCHEMES["paper"])(jnp.asarray([[0, 5]]))
    angle = 5 * 10_000.0 ** (-np.arange(3) / 3)
    wanted = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(6)
    np.testing.assert_allclose(found[0, 0], [0, 1] * 3, atol=1e-6)
    np.testing.assert_allclose(found[0, 1], wanted, atol=1e-6)


def test_learned_positions_end():
    model = Model(replace(DECODER, positions=(Learned(8),)))
    with pytest.raises(ConfigError, match=r"rows of 12 tokens do not fit Learned\(length=8\)"):
        jax.eval_shape(model, model.shapes, tokens())


# Residual schemes, norms, activations.


def test_residual_schemes_have_the_factors_of_the_papers():
    encoder, decoder = Stage(2, 2), Stage(2, 2, decodes=True)
    alone = Stage(encoder=3), Stage(decoder=3, decodes=True)
    deep, sub = DeepNorm(), SubLN()
    np.testing.assert_allclose(deep.alpha(encoder), 1.00590, atol=1e-5)
    np.testing.assert_allclose(deep.alpha(decoder), 1.56508, atol=1e-5)
    for stage in alone:
        np.testing.assert_allclose([deep.alpha(stage), 1 / deep.gain(stage)], [6**0.25, 24**0.25])
        np.testing.assert_allclose(sub.gain(stage), math.log(6) ** 0.5)
    np.testing.assert_allclose(sub.gain(encoder), (math.log(6) * math.log(4) / 3) ** 0.5)
    np.testing.assert_allclose([sub.gain(decoder), sub.cross(decoder)], [math.log(6) ** 0.5, 1])
    assert PreNorm().alpha(decoder) == PostNorm().gain(encoder) == 1


@pytest.mark.parametrize("init", SCHEMES)
def test_weights_begin_with_the_gain_of_the_scheme(init):
    config = replace(DECODER, dim=64, feed=MLP(96), residual=DeepNorm(), init=init)
    block = Model(config).init(jax.random.key(0))["tower"]["blocks"]["block"]
    gain = 16**-0.25
    deviations = {
        "torchscale": {"q": 1 / 8 / 3**0.5, "v": gain / 8 / 3**0.5, "down": gain / (96 * 3) ** 0.5},
        "paper": {"q": 1 / 8, "v": gain / 8, "down": gain * (2 / 160) ** 0.5},
        "bert": {"q": 0.02, "v": gain * 0.02, "down": gain * 0.02},
    }
    found = {**block["attend"], "down": block["feed"]["down"]["kernel"]}
    for name, wanted in deviations[init].items():
        np.testing.assert_allclose(found[name].std(), wanted, rtol=0.05)
    assert bool(found["v_bias"].any()) == (init == "torchscale")


def test_norms_and_activations_are_their_formulas():
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    layer = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(Layer().build(8)(jnp.asarray(x)), layer, atol=1e-6)
    root = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(RMS().build(8)(jnp.asarray(x)), root, atol=1e-6)
    erf = np.vectorize(math.erf)(x / 2**0.5)
    wanted = {
        "gelu": x * (1 + erf) / 2,
        "gelu_tanh": x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "gelu_quick": x / (1 + np.exp(-1.702 * x)),
        "relu": np.maximum(x, 0),
        "relu2": np.maximum(x, 0) ** 2,
        "silu": x / (1 + np.exp(-x)),
        "swish": x / (1 + np.exp(-x)),
        "sigmoid": 1 / (1 + np.exp(-x)),
        "tanh": np.tanh(x),
        "softplus": np.log1p(np.exp(x)),
        "identity": x,
    }
    assert set(wanted) == set(ACTIVATIONS)
    for name, y in wanted.items():
        np.testing.assert_allclose(activate(name, jnp.asarray(x)), y, atol=1e-6, err_msg=name)
        assert activate(name, jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


# What training drops.


@pytest.mark.parametrize("name", ["units", "attention", "activation", "path"])
def test_each_rate_drops_in_training_and_never_in_evaluation(name):
    config = replace(DECODER, drop=Drop(**{name: 0.5}))
    model = Model(config)
    params, x = moved(model), tokens()
    run = jax.jit(lambda model, key: model.bind(params, key)(x).hidden, static_argnums=0)
    still = run(model.still, jax.random.key(0))
    first, again, other = (run(model, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - still).max() > 1e-3 and np.abs(first - other).max() > 1e-3


def test_dropped_probabilities_are_attention_where_the_rate_is_small():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 9, 4, 8))
    marks = jnp.where(jnp.arange(9) < 4, 1, 2) * jnp.ones((2, 1), jnp.int32)
    place = jnp.broadcast_to(jnp.arange(9), (2, 9))
    places = Places((place, place), (marks, marks))
    found = dropped(q, k, v, CAUSAL, PLAIN, places, (0.0, jax.random.key(1)))
    assert_close(found, attention(q, k, v, CAUSAL, segments=(marks, marks)), SAME)
    many = jax.vmap(lambda key: dropped(q, k, v, CAUSAL, PLAIN, places, (0.5, key)))
    mean = many(jax.random.split(jax.random.key(2), 2000)).mean(0)
    assert np.abs(mean - found).max() < 0.2


# Encoder-decoders.


@partial(jax.jit, static_argnums=0)
def scores(model, params, source, x, marks):
    network = model.bind(params)
    return network.unembed(network(source, x, source_segments=marks).hidden)


PLACED = {
    "learned": (Learned(32), RelativeBias(8, 16)),
    "sloping": (Alibi(),),
    "turned": (XPos(blockwise=4), RelativeBias(8, 16)),
}
placed = pytest.mark.parametrize("positions", PLACED.values(), ids=PLACED)


def test_what_is_generated_from_sources_is_what_whole_passes_say():
    model = Model(BOTH)
    params, lengths = moved(model), (7, 1, 4)
    sources = [tokens(k, (n,)).tolist() for k, n in enumerate(lengths)]
    write = partial(generate, model, params, Sources(sources, start=3), length=6)
    found = write(sampling=Sampling(temperature=0.0))
    padded = jnp.asarray([[*source, *[0] * (7 - len(source))] for source in sources])
    marks = (jnp.arange(7) < jnp.asarray(lengths)[:, None]).astype(jnp.int32)
    x = jnp.asarray([[3, *text[:-1]] for text in found])
    whole = scores(model, params, padded, x, marks)
    np.testing.assert_array_equal(found, whole.argmax(-1))
    one, same, other = (write(key=jax.random.key(k)) for k in (1, 1, 2))
    assert one == same != other
    ends = write(stop=found[0][2], sampling=Sampling(temperature=0.0))
    assert ends[0] == found[0][: found[0].index(found[0][2])]


@placed
def test_scores_token_by_token_are_those_of_a_whole_pass(positions):
    model = Model(replace(BOTH, positions=positions))
    params, source, x = moved(model), tokens(2, (2, 7)), tokens(3, (2, 9))
    marks = jnp.ones_like(source).at[1, 4:].set(0)

    @jax.jit
    def steps(params):
        network = model.bind(params)
        begun = network.begin(source, marks.sum(1), 3, 10)

        def step(carry, i):
            out = network.further(x[:, i][:, None], (begun.position + i)[:, None], carry)
            return out.cache, network.unembed(out.hidden)[:, 0]

        rest = jax.lax.scan(step, begun.carry, jnp.arange(9))[1]
        return jnp.concatenate([network.unembed(begun.hidden), rest.swapaxes(0, 1)], 1)

    whole = jnp.concatenate([jnp.full((2, 1), 3), x], 1)
    assert_close(steps(params), scores(model, params, source, whole, marks), SAME * 20)


@placed
def test_pairs_in_one_row_do_not_see_each_other_and_padding_changes_nothing(positions):
    model = Model(replace(BOTH, positions=positions))
    params, source, x = moved(model), tokens(2, (2, 7)), tokens(3, (2, 5))
    ones = jnp.ones_like(source)
    alone = scores(model, params, source, x, ones)
    left = lambda a: jnp.pad(a, ((0, 0), (3, 0)))
    assert_close(scores(model, params, left(source), x, left(ones)), alone, SAME * 20)
    marks = jnp.repeat(jnp.asarray([[1, 2]]), 7, axis=1), jnp.repeat(jnp.asarray([[1, 2]]), 5, 1)

    @jax.jit
    def together(params):
        network = model.bind(params)
        row = lambda a: a.reshape(1, -1)
        out = network(row(source), row(x), None, marks[1], source_segments=marks[0])
        return network.unembed(out.hidden).reshape(alone.shape)

    assert_close(together(params), alone, SAME * 20)


@pytest.mark.parametrize("share, tables", [("none", 3), ("decoder", 2), ("all", 1)])
def test_embeddings_are_shared_as_said(share, tables):
    shapes = Model(replace(BOTH, share=share)).shapes
    flat = [s.shape for s in jax.tree.leaves(shapes)]
    assert sum(set(shape) == {64, 32} for shape in flat) == tables


def pairs():
    """Targets that are their sources backwards; 1 begins them."""
    source = np.random.default_rng(0).integers(2, 12, (16, 5))
    target = np.concatenate([np.ones((16, 1), int), source[:, ::-1]], 1).astype(np.int32)
    ones = np.ones((16, 5), np.float32)
    return {
        "source": source.astype(np.int32),
        "source_segments": ones.astype(np.int32),
        "inputs": target[:, :-1],
        "targets": target[:, 1:],
        "weights": ones,
    }


def on(**axes: int) -> list[Any]:
    """One device, and a mesh of eight."""
    return [
        pytest.param({}, id="one"),
        pytest.param(axes, id="eight", marks=pytest.mark.slow),
    ]


def losses(config, loss, batch, steps, **axes):
    """The loss at each of some steps of training."""
    layout = Layout(make_mesh(**axes))
    task = train.Task(Model(config), optax.adam(1e-2), loss, layout, guard=Guard(spike=None))
    state, step = train.init(task, jax.random.key(0)), train.make_step(task)
    place = train.sharding_of(layout)
    where = {name: place(name, x.shape) for name, x in batch.items()}
    batch = jax.device_put(batch, where)
    out = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        out.append(float(metrics["loss"]))
    return out


@pytest.mark.parametrize("axes", on(data=2, fsdp=2, tensor=2))
def test_an_encoder_decoder_learns_on_any_mesh(axes):
    config = replace(BOTH, drop=Drop(units=0.1, path=0.1))
    found = losses(config, GivenSource(), pairs(), 12, **axes)
    assert found[-1] < 0.7 * found[0]
    assert_close(found[0], 4.7, 0.2)


# Masked tokens.


def text(rows=16, length=32):
    """Rows that count up from a random number, each with padding at its end."""
    first = np.random.default_rng(0).integers(2, 30, (rows, 1))
    x = (first + np.arange(length)) % 60
    seen = np.ones_like(x)
    seen[:, -4:] = 0
    shared = {"inputs": x, "targets": x, "segments": seen}
    return {**{k: v.astype(np.int32) for k, v in shared.items()}, "weights": seen.astype("f4")}


def test_tokens_are_hidden_as_in_bert():
    x = jnp.full((200, 400), 5, jnp.int32).at[:, :100].set(9)
    may = (x == 5).at[:, 300:].set(False)
    keys = jax.random.split(jax.random.key(0), 200)
    seen, chosen = MaskedTokens(63, rate=0.2).hide(x, may, keys, 64)
    assert not chosen[:, :100].any() and not chosen[:, 300:].any()
    np.testing.assert_array_equal(seen[~chosen], x[~chosen])
    assert abs(chosen[:, 100:300].mean() - 0.2) < 0.01
    shares = [(seen[chosen] == t).mean() for t in (63, 5)]
    np.testing.assert_allclose(shares, [0.8, 0.1 + 0.1 / 64], atol=0.02)


def test_evaluation_hides_always_the_same_however_rows_are_batched():
    model = Model(replace(ENCODER, positions=(Learned(32),), layers=1))
    params, batch = model.init(jax.random.key(0)), jax.tree.map(jnp.asarray, text(4))
    half = jax.tree.map(lambda a: a[:2], batch)
    loss = MaskedTokens(63, never=(7,))
    run = jax.jit(lambda model, batch, key: loss(model, params, batch, key), static_argnums=0)
    first, other = (run(model.still, batch, jax.random.key(k)) for k in (0, 1))
    assert_close(other.losses, first.losses, SAME)
    assert_close(run(model.still, half, jax.random.key(2)).weights, first.weights[:2], SAME)
    one, two = (run(model, batch, jax.random.key(k)).weights for k in (0, 1))
    assert (one != two).any()
    hidden = (first.weights > 0) | (one > 0)
    assert not hidden[batch["segments"] == 0].any() and not hidden[batch["inputs"] == 7].any()


@pytest.mark.parametrize("axes", on(fsdp=2, context=2, tensor=2))
def test_a_masked_encoder_learns_on_any_mesh(axes):
    config = replace(ENCODER, head=Masked(), residual=DeepNorm())
    found = losses(config, MaskedTokens(63, rate=0.3), text(), 20, **axes)
    assert found[-1] < 0.8 * found[0]


@pytest.mark.slow
def test_the_same_step_on_eight_devices_is_that_of_one():
    for config, loss, batch in (
        (replace(ENCODER, head=Masked()), MaskedTokens(63), text()),
        (BOTH, GivenSource(), pairs()),
    ):
        one = losses(config, loss, batch, 2)
        eight = losses(config, loss, batch, 2, data=2, fsdp=2, tensor=2)
        assert_close(eight, one, LAYOUT * 10)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: replace(DECODER, heads=5), "dim=32 must be a multiple of heads=5"),
        (lambda: replace(DECODER, layers=0), "layers must be at least 1"),
        (lambda: replace(DECODER, vocab=0), "vocab must be at least 1"),
        (lambda: replace(DECODER, feed=()), "not an empty tuple"),
        (lambda: replace(DECODER, feed=(MLP(8), MLP(8), MLP(8))), "multiple of the 3 kinds"),
        (lambda: replace(DECODER, positions=(XPos(), Rope())), "one is enough"),
        (lambda: replace(DECODER, positions=(XPos(blockwise=8), Alibi())), "choose one"),
        (lambda: replace(DECODER, dim=36, heads=4), "must be even for rotation"),
        (lambda: replace(DECODER, init="torchscal"), "did you mean 'torchscale'"),
        (lambda: replace(DECODER, remat="ful"), "did you mean 'full'"),
        (lambda: replace(ENCODER, positions=(XPos(blockwise=8),)), "for decoders"),
        (lambda: replace(BOTH, share="al"), "did you mean 'all'"),
        (lambda: replace(BOTH, source_vocab=9), "needs one vocabulary"),
        (lambda: XPos(blockwise=7), "even length"),
        (lambda: XPos(base=0.0), "positive base"),
        (lambda: Rope(1.0), "above 1"),
        (lambda: Sinusoidal(1.0), "above 1"),
        (lambda: Learned(0), "at least 1"),
        (lambda: RelativeBias(30), "multiple of 4"),
        (lambda: RelativeBias(32, 8), "distance must be above 8"),
        (lambda: MLP(0), "hidden must be at least 1"),
        (lambda: GLU(8, "gel"), "did you mean 'gelu'"),
        (lambda: Masked(activation="gel"), "did you mean 'gelu'"),
        (lambda: Layer(0.0), "eps of a norm must be positive"),
        (lambda: Drop(units=1.0), "drop.units must be from 0 to below 1"),
        (lambda: MaskedTokens(3, rate=0.0), "rate must be above 0"),
        (lambda: MaskedTokens(-1), "mask_token must be 0 or more"),
        (lambda: MaskedTokens(0, never=(1, -2)), "never must be 0 or more, not -2"),
        (lambda: hidden_tokens(MaskedTokens(9)), "mask_token=9 is none .*vocab at least 10, not 9"),
        (lambda: hidden_tokens(MaskedTokens(0, never=(1, 9))), "never=9 is none of the model's"),
        (lambda: GivenSource(z_loss=-1.0), "z_loss must not be negative"),
    ],
)
def test_what_does_not_fit_is_said(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("config", [ENCODER, DECODER, BOTH], ids=["encoder", "decoder", "both"])
def test_configs_are_data(config):
    config = replace(config, feed=(MLP(48), GLU(32)), residual=DeepNorm(), norm=RMS())
    check(config)
    assert from_data(to_data(config)) == config


def test_who_cannot_write_and_who_needs_a_start_are_told():
    ask = lambda config, prompts: generate(Model(config), {}, prompts, length=2)
    with pytest.raises(ConfigError, match="TransformerEncoder writes no text: that needs a decod"):
        ask(ENCODER, [[1]])
    with pytest.raises(ConfigError, match="give Sources"):
        ask(BOTH, [[1]])
    with pytest.raises(ConfigError, match="Sources are for encoder-decoders"):
        ask(DECODER, Sources([[1]], start=1))


def test_every_head_smooths_targets():
    hidden, targets = jax.random.normal(jax.random.key(0), (2, 3, 32)), tokens()[:2, :3]
    for head in (Plain(), Plain(tied=True), Masked()):
        model = Model(replace(DECODER, head=head))
        network = model.bind(model.init(jax.random.key(1)))
        found = network.logprobs(hidden, targets, None, 0.0, 0.3)
        assert_close(found, logprobs(network.unembed(hidden), targets, 0.3), SAME * 10)


def test_a_network_without_a_head_and_a_batch_without_a_source_are_refused():
    model = Model(replace(DECODER, head=None))
    with pytest.raises(ConfigError, match="has no head"):
        model.bind(model.shapes).unembed(jnp.ones((1, 1, 32)))
    with pytest.raises(ConfigError, match="source is missing"):
        GivenSource()(Model(BOTH), {}, {"inputs": tokens()}, jax.random.key(0))
    assert Model(replace(DECODER, head=Plain(tied=True))).size + 64 * 32 == Model(DECODER).size
    assert NextToken().z_loss == 0.0
