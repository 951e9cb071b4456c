"""BEiT-3: what each kind of token sees, its embeddings, and the objectives it learns by."""

import runpy
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import LAYOUT, SAME, assert_close

from jscale import train
from jscale.config.annotations import check
from jscale.config.data import from_data, to_data
from jscale.contrastive import Contrastive, compared
from jscale.errors import ConfigError
from jscale.evaluation.heldout import heldout_means
from jscale.guard import Guard
from jscale.losses import NextToken
from jscale.masked_image_text import MaskedImageText
from jscale.masked_tokens import MaskedTokens
from jscale.mesh import Layout, make_mesh
from jscale.models import BEiT3, Model, TransformerEncoder
from jscale.models.beit3 import Joint, Patches, Pixels
from jscale.models.feed import GLU, MLP, Drop
from jscale.models.moe import MoE
from jscale.models.norms import RMS
from jscale.models.positions import Learned, RelativeBias, Sinusoidal, XPos
from jscale.models.residual import DeepNorm
from jscale.prepare import task_of
from jscale.recipe import Samples

CONFIG = BEiT3(
    vocab=64,
    dim=32,
    layers=2,
    heads=4,
    feed=MLP(48),
    patches=Patches(12, 4, 3),
    positions=(Learned(16), XPos(8.0), RelativeBias(8, 16)),
    joint=Joint(16),
    pixels=Pixels(),
    init="paper",
    remat="none",
)
HIDING = MaskedImageText(MaskedTokens(63, rate=0.3), pixels=2.0)


@lru_cache
def weights(config):
    """Weights of which none is 0 or 1, so that each of them shows; without a program."""
    rng = np.random.default_rng(0)

    def value(path, array):
        scale = "scale" in jax.tree_util.keystr(path)
        size = 0.2 if len(array.shape) < 3 else 0.15
        return jnp.asarray(scale + size * rng.standard_normal(array.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(value, Model(config).shapes)


def moved(model):
    return weights(model.config)


def batch(rows=8, length=6):
    """Images and rows of text, each of another length."""
    rng = np.random.default_rng(0)
    seen = np.arange(length) < 2 + np.arange(rows)[:, None] % (length - 1)
    return {
        "images": jnp.asarray(rng.standard_normal((rows, 12, 12, 3)), jnp.float32),
        "inputs": jnp.asarray(rng.integers(0, 60, (rows, length)), jnp.int32),
        "segments": jnp.asarray(seen, jnp.int32),
    }


# What it reads.


@pytest.mark.parametrize("size, channels", [(4, 3), (3, 1), (12, 2)])
def test_patches_are_embedded_as_by_a_strided_convolution(size, channels):
    c = replace(CONFIG, patches=Patches(12, size, channels))
    network = Model(c).bind(moved(Model(c)))
    images = jax.random.normal(jax.random.key(2), (2, 12, 12, channels))
    kernel = network.patches.kernel[...].reshape(size, size, channels, 32)
    wanted = jax.lax.conv_general_dilated(
        images, kernel, (size, size), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = network.patches(images)
    assert_close(found[:, 1:], wanted.reshape(2, -1, 32) + network.patches.bias[...], SAME * 10)
    assert_close(found[:, 0], jnp.broadcast_to(network.patches.first[...], (2, 32)), SAME)


def test_hidden_patches_and_padding_leave_no_trace():
    model, data = Model(CONFIG), batch(2)
    params = moved(model)
    masked = jnp.zeros((2, 9), bool).at[:, 4].set(True)

    @jax.jit
    def run(images, tokens):
        return model(params, tokens, images, masked, data["segments"])

    before = run(data["images"], data["inputs"])
    # The middle patch of three by three, and tokens beyond the end.
    images = data["images"].at[:, 4:8, 4:8].add(1.0)
    tokens = jnp.where(data["segments"] > 0, data["inputs"], 7)
    after = run(images, tokens)
    assert_close(after.image, before.image, SAME)
    seen = data["segments"][..., None] > 0
    assert_close(after.text * seen, before.text * seen, SAME)
    moved_ = run(data["images"].at[:, 0, 0].add(1.0), data["inputs"])
    assert np.abs(moved_.text - before.text).max() > 1e-3  # text sees the image


def test_padding_on_the_left_changes_nothing():
    model, data = Model(CONFIG), batch(2)
    params = moved(model)
    run = jax.jit(lambda tokens, segments: model(params, tokens, data["images"], None, segments))
    tokens = data["inputs"]
    plain = run(tokens, jnp.ones_like(tokens))
    left = lambda x, fill: jnp.pad(x, ((0, 0), (3, 0)), constant_values=fill)
    wide = run(left(tokens, 5), left(jnp.ones_like(tokens), 0))
    assert_close(wide.text[:, 3:], plain.text, SAME * 20)
    assert_close(wide.image, plain.image, SAME * 20)


@pytest.mark.slow
def test_each_kind_alone_uses_its_own_weights_only():
    model, data = Model(CONFIG), batch(2)
    params = moved(model)

    def total(params, **given):
        return sum(jnp.square(h).sum() for h in model(params, **given) if h is not None)

    def used(**given):
        grads = jax.jit(jax.grad(lambda params: total(params, **given)))(params)
        block = grads["blocks"]["block"]
        return [
            bool(any(jnp.abs(g).max() > 0 for g in jax.tree.leaves([block[p][way] for p in block])))
            for way in ("image", "text")
        ]

    assert used(images=data["images"]) == [True, False]
    assert used(tokens=data["inputs"]) == [False, True]
    assert used(images=data["images"], tokens=data["inputs"]) == [True, True]


def test_text_alone_is_an_encoder():
    sizes: Any = dict(vocab=64, dim=32, layers=2, heads=4, feed=MLP(48), remat="none")
    positions = (Learned(16), XPos(), RelativeBias(8, 16))
    model = Model(BEiT3(patches=Patches(12, 4), positions=positions, **sizes))
    params, data = moved(model), batch()

    def half(tree):
        if isinstance(tree, dict) and set(tree) == {"image", "text"}:
            return tree["text"]
        return {name: half(x) for name, x in tree.items()} if isinstance(tree, dict) else tree

    text = half(params)
    tower = {name: text[name] for name in ("blocks", "norm", "places", "biases")}
    like = {"embed": text["embed"], "head": text["head"], "tower": tower}
    encoder = Model(TransformerEncoder(positions=positions, **sizes))
    wanted = jax.jit(encoder)(like, data["inputs"], None, data["segments"]).hidden
    found = jax.jit(model)(params, data["inputs"], None, None, data["segments"]).text
    assert_close(found, wanted, SAME * 10)


@pytest.mark.slow
def test_what_is_dropped_differs_and_is_still_in_evaluation():
    model = Model(replace(CONFIG, drop=Drop(0.1, 0.1, 0.1, 0.2), remat="dots"))
    params, data = moved(model), batch()

    @jax.jit
    def run(key):
        return model.bind(params, key)(data["inputs"], data["images"]).joined

    one, two = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(one - two).max() > 1e-2
    assert_close(run(jax.random.key(0)), one, SAME)
    still = jax.jit(lambda key: model.still.bind(params, key)(data["inputs"]).text)
    assert_close(still(jax.random.key(0)), still(jax.random.key(1)), SAME)


def test_activations_are_of_the_dtype_that_is_asked_for():
    model = Model(replace(CONFIG, residual=DeepNorm()), compute="bfloat16")
    data = batch(2)
    out = jax.eval_shape(model, model.shapes, data["inputs"], data["images"])
    assert out.image.dtype == out.text.dtype == jnp.bfloat16


# What it learns by.


def test_the_contrastive_loss_and_its_gradients_are_their_formula():
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, 7, 5)))
    real, scale = np.array([1, 1, 0, 1, 1, 0, 1], bool), 3.0

    def wanted(a, b, scale):
        near = scale * a[real] @ b[real].T
        log = lambda x, axis: x - np.log(np.exp(x).sum(axis, keepdims=True))
        loss = -(np.diagonal(log(near, 1)) + np.diagonal(log(near, 0))) / 2
        return loss, near.argmax(1) == np.arange(real.sum())

    def total(a, b, scale):
        losses, right = compared(a, b, scale, jnp.asarray(real))
        return (losses * real).sum(), (losses, right)

    given = [jnp.asarray(x, jnp.float32) for x in (a, b, scale)]
    (_, (losses, right)), grads = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*given)
    loss, hit = wanted(a, b, scale)
    np.testing.assert_allclose(losses[real], loss, atol=1e-5)
    np.testing.assert_array_equal(right[real], hit)
    step = 1e-6
    for which, grad in enumerate(grads):
        x = [np.array(v, np.float64) for v in (a, b, scale)]
        at = (3, 2) if which < 2 else ()
        ends = []
        for sign in (1, -1):
            x[which][at] += sign * step
            ends.append(wanted(*x)[0].sum())
            x[which][at] -= sign * step
        np.testing.assert_allclose(grad[at], (ends[0] - ends[1]) / (2 * step), atol=1e-4)


@partial(jax.jit, static_argnums=(0, 1))
def terms(loss, still, data, key):
    model = Model(CONFIG)
    return loss(model.still if still else model, weights(CONFIG), data, key)


@pytest.mark.parametrize("loss", [Contrastive(), pytest.param(HIDING, marks=pytest.mark.slow)])
def test_rows_without_text_count_for_nothing(loss):
    data = batch()
    longer = {k: jnp.concatenate([x, x[:2]]) for k, x in data.items()}
    longer["segments"] = longer["segments"].at[8:].set(0)
    short, long = (terms(loss, True, x, jax.random.key(0)) for x in (data, longer))
    assert_close(long.losses[:8] * long.weights[:8], short.losses * short.weights, SAME * 20)
    assert not long.weights[8:].any()


def test_a_row_hides_tokens_or_patches():
    keys = jax.random.split(jax.random.key(0), 400)
    real = jnp.ones((400, 6), bool).at[:, 4:].set(False)
    text, patches = MaskedImageText(MaskedTokens(63), patches=0.3).turns(keys, real, 50)
    both = text.any(1)
    assert not (both & patches.any(1)).any() and not text[:, 4:].any()
    assert abs(both.mean() - 0.5) < 0.08 and abs(patches[~both].mean() - 0.3) < 0.02


@pytest.mark.slow
def test_evaluation_hides_always_the_same():
    data = batch()
    one, two = (terms(HIDING, True, data, jax.random.key(k)) for k in (0, 1))
    assert_close(two, one, SAME)
    half = jax.tree.map(lambda x: x[:4], data)
    assert_close(terms(HIDING, True, half, jax.random.key(0)).losses, one.losses[:4], SAME * 20)
    drawn = [terms(HIDING, False, data, jax.random.key(k)).weights for k in (0, 1)]
    assert (drawn[0] != drawn[1]).any()


def test_hidden_patches_are_guessed_by_their_pixels():
    data = batch()
    found = terms(HIDING, True, data, jax.random.key(0))
    cut = np.asarray(data["images"]).reshape(8, 3, 4, 3, 4, 3)
    cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(8, 9, 48)
    masked, text = found.weights[:, 6:] > 0, np.asarray(found.weights[:, :6])
    assert masked.any() and text.any()
    rows = ~text.any(1)  # whose text is whole
    assert not np.asarray(masked)[~rows].any()

    @jax.jit
    def painted(masked):
        network = Model(CONFIG).bind(weights(CONFIG))
        return network.paint(
            network(data["inputs"], data["images"], masked, data["segments"]).image
        )

    wanted = 2.0 * np.square(painted(masked) - cut).mean(-1)
    assert_close(found.losses[:, 6:][rows], wanted[rows], SAME * 50)


# An optimizer whose state is the gradient that it was given.
RECORD = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),
)


def loss_and_grads(loss, **axes):
    layout = Layout(make_mesh(**axes))
    task = train.Task(Model(CONFIG), RECORD, loss, layout, guard=Guard(spike=None))
    state = train.start_from(task, jax.random.key(0), weights(CONFIG))
    where = train.sharding_of(layout)
    data = batch()
    data = jax.device_put(data, {name: where(name, x.shape) for name, x in data.items()})
    state, metrics = train.make_step(task)(state, data)
    return float(metrics["loss"]), float(metrics["grad_norm"]), state.optimizer


@lru_cache
def alone(loss):
    return loss_and_grads(loss)


SOME = dict(data=2, fsdp=2, tensor=2)
FIRST = Contrastive(), SOME
LAYOUTS = [
    pytest.param(loss, axes, marks=[] if (loss, axes) == FIRST else pytest.mark.slow)
    for loss in (Contrastive(), HIDING)
    for axes in (SOME, dict(data=8), dict(fsdp=4, tensor=2), dict(stage=2, tensor=4))
]


@pytest.mark.parametrize("loss, axes", LAYOUTS, ids=str)
def test_every_layout_gives_the_gradients_of_one_device(loss, axes):
    assert_close(loss_and_grads(loss, **axes), alone(loss), LAYOUT)


def test_a_sequence_that_is_split_is_refused():
    model, data = Model(CONFIG), batch(2)
    shapes = model.shapes  # before a mesh is active
    with Layout(make_mesh(context=2)).active(), pytest.raises(ConfigError, match="must have 1"):
        jax.eval_shape(model, shapes, data["inputs"], data["images"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Contrastive(), HIDING], ids=str)
def test_losses_fall_on_a_mesh(loss):
    layout = Layout(make_mesh(data=2, fsdp=2, tensor=2))
    model = Model(replace(CONFIG, drop=Drop(units=0.05, path=0.05)))
    task = train.Task(model, optax.adam(3e-3), loss, layout)
    state, step = train.init(task, jax.random.key(0)), train.make_step(task)
    found = []
    for _ in range(40):
        state, metrics = step(state, batch())
        found.append(float(metrics["loss"]))
    assert found[-1] < 0.6 * found[0]


@pytest.mark.slow
def test_captions_never_seen_are_found_for_their_images(tmp_path):
    path = Path(__file__).parents[2] / "examples" / "images_and_captions.py"
    recipe = runpy.run_path(str(path))["recipe"]()
    recipe = replace(recipe, data=replace(recipe.data, cache=str(tmp_path)))
    task, data = task_of(recipe, make_mesh()), recipe.data.open(0)
    state, step = train.init(task, jax.random.key(0)), train.make_step(task)
    for k in range(recipe.steps):
        state, _ = step(state, data.train.global_batch(k))
    found = heldout_means(task, state.params, data, 4)
    print(found)
    assert found["accuracy"] > 0.4  # by chance 1 in 32


# What does not fit.


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: replace(CONFIG, heads=5), "dim=32 must be a multiple of heads=5"),
        (lambda: replace(CONFIG, vocab=0), "vocab must be at least 1"),
        (lambda: replace(CONFIG, feed=MoE(4, MLP(8))), r"feed is MLP\(…\) or GLU\(…\)"),
        (lambda: replace(CONFIG, positions=(XPos(blockwise=8),)), "is causal"),
        (lambda: Patches(12, 5), "must be a multiple of patches.size=5"),
        (lambda: Patches(0), "patches.image must be at least 1"),
        (lambda: Joint(0), "joint.dim must be at least 1"),
        (lambda: Joint(8, 0.001), "temperature must be at least 0.01"),
        (lambda: replace(HIDING, patches=1.0), "patches must be above 0 and below 1"),
        (lambda: replace(HIDING, pixels=0.0), "pixels must be positive"),
    ],
)
def test_what_does_not_fit_is_said(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def run(config: Any = CONFIG, loss=None, **changes):
    """Trace a network, or a loss, on a batch with some arrays changed; None: without it."""
    model = Model(config)
    data = {name: x for name, x in {**batch(2), **changes}.items() if x is not None}
    if loss is None:
        given = dict(tokens=data.pop("inputs", None), **data)
        return jax.eval_shape(lambda p: model.bind(p)(**given), model.shapes)
    return jax.eval_shape(lambda p: loss(model, p, data, jax.random.key(0)), model.shapes)


@pytest.mark.parametrize(
    "case, message",
    [
        (lambda: run(images=None, inputs=None, segments=None), "neither is given"),
        (lambda: run(inputs=None), "segments is of tokens"),
        (lambda: run(images=None, masked=jnp.ones((2, 9), bool)), "masked is of images"),
        (lambda: run(images=jnp.ones((2, 16, 16, 3))), r"\(16, 16, 3\).*for \(12, 12, 3\)"),
        (lambda: run(masked=jnp.ones((2, 4), bool)), "mask of 4 patches .* images of 9"),
        (lambda: run(loss=Contrastive(), images=None), "images is missing"),
        (lambda: run(loss=HIDING, segments=None), "segments is missing"),
        (lambda: run(replace(CONFIG, joint=None), Contrastive()), r"joint=Joint\(256\)"),
        (lambda: run(replace(CONFIG, pixels=None), HIDING), r"pixels=Pixels\(\)"),
        (lambda: run(replace(CONFIG, head=None), HIDING), "has no head"),
        (lambda: run(loss=MaskedImageText(MaskedTokens(100))), "mask_token=100 is none"),
        (
            lambda: run(TransformerEncoder(64, 32, 2, 4, MLP(8)), Contrastive()),
            "not a TransformerEncoder",
        ),
        (lambda: run(TransformerEncoder(64, 32, 2, 4, MLP(8)), HIDING), "guesses pixels"),
    ],
)
def test_what_is_not_given_is_said(case, message):
    with pytest.raises(ConfigError, match=message):
        case()


def test_tokens_that_are_never_hidden_are_not():
    text, tokens = MaskedTokens(63, rate=0.9, never=(3, 5)), jnp.arange(64).reshape(4, 16) % 8
    keys = jax.random.split(jax.random.key(0), 4)
    _, chosen = text.hide(tokens, jnp.ones(tokens.shape, bool), keys, 64)
    never = jnp.isin(tokens, jnp.array([3, 5]))
    assert not chosen[never].any() and chosen[~never].mean() > 0.7


def test_of_captions_that_are_the_same_any_is_right():
    vectors = jnp.eye(4)[jnp.array([0, 0, 1, 2])]
    _, right = compared(vectors, vectors, jnp.float32(10.0), jnp.ones(4, bool))
    assert right.all()
    _, right = compared(vectors, vectors[::-1], jnp.float32(10.0), jnp.ones(4, bool))
    assert not right[0] and not right[3]


def test_what_cannot_be_trained_on_images_is_refused_before_anything_is_read():
    path = Path(__file__).parents[2] / "examples" / "images_and_captions.py"
    recipe = runpy.run_path(str(path))["recipe"]()
    for changed, message in (
        (replace(recipe, loss=NextToken()), r"does not read the images of data=CaptionedImages"),
        (replace(recipe, loss=MaskedTokens(3)), r"set loss=Contrastive\(\) or MaskedImageText"),
        (replace(recipe, samples=Samples(("a",), every=1, length=2)), "BEiT3 writes no text"),
    ):
        with pytest.raises(ConfigError, match=message):
            task_of(changed, make_mesh())


def test_configs_are_data():
    config = replace(CONFIG, feed=GLU(32), norm=RMS(), positions=(Sinusoidal(),))
    for value in (config, Contrastive(), HIDING):
        check(value)
        assert from_data(to_data(value)) == value
