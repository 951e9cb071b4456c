"""ViT and LLaVA as networks: images on meshes, places of image tokens, what is refused."""

import runpy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jscale import train
from jscale.errors import ConfigError
from jscale.generate import Sampling, Shown, generate
from jscale.image_classes import ImageClasses
from jscale.losses import evaluate_loss
from jscale.mesh import Layout, make_mesh
from jscale.models import Llama, LLaVA, Model, ViT
from jscale.models.beit3 import Patches
from jscale.models.llava import CLIPTower
from jscale.prepare import task_of
from jscale.shown_text import ShownText

VIT = ViT(16, 2, 4, 24, Patches(6, 3), classes=8, remat="none")
TEXT = Llama(vocab=32, dim=16, layers=1, heads=4, kv_heads=2, hidden=24, remat="none")
LLAVA = LLaVA(TEXT, CLIPTower(16, 2, 4, 24, Patches(6, 3), remat="none"), image_token=31)
EXAMPLES = Path(__file__).parents[2] / "examples"


def batch(rows: int = 8) -> dict[str, jax.Array]:
    """Rows of two images each, at other places, with text."""
    draw = np.random.default_rng(0)
    x = draw.integers(0, 31, (rows, 17))
    for n in range(rows):
        for at in (n % 3, 6 + n % 4):
            x[n, at : at + 4] = 31
    found = {
        "images": draw.standard_normal((rows, 2, 6, 6, 3)),
        "labels": np.append(draw.integers(0, 8, rows - 1), -1),
        "inputs": x[:, :-1],
        "targets": x[:, 1:],
        "weights": (x[:, 1:] != 31).astype(np.float32),
    }
    return {
        name: jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32)
        for name, x in found.items()
    }


def slopes(config, loss, batch, **axes):
    """A loss and its gradient on a mesh."""
    model, layout = Model(config), Layout(make_mesh(**axes))
    params = model.init(jax.random.key(1), layout)

    def total(params):
        terms = loss(model, params, batch, jax.random.key(0))
        return (terms.losses * terms.weights).sum() / terms.weights.sum()

    with layout.active():
        return jax.jit(jax.value_and_grad(total))(params)


@pytest.mark.parametrize("loss", [ImageClasses(0.1), ShownText()], ids=lambda x: type(x).__name__)
def test_every_layout_gives_the_gradients_of_one_device(loss):
    rows, config = batch(), LLAVA
    if isinstance(loss, ImageClasses):
        rows, config = {"images": rows["images"][:, 0], "labels": rows["labels"]}, VIT
    one, eight = (slopes(config, loss, rows, **axes) for axes in ({}, dict(fsdp=4, tensor=2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 3e-5, 1e-5), one, eight)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(one))


def test_images_stand_at_their_tokens_and_are_seen_by_what_comes_after():
    model, rows = Model(LLAVA), batch(1)
    params, x, images = model.init(jax.random.key(0)), rows["inputs"], rows["images"]
    network = model.bind(params)
    hidden = lambda images: network(x, images=images).hidden
    seen, other = hidden(images), hidden(images.at[:, 1].add(1.0))  # at 0 to 3, and 6 to 9
    np.testing.assert_array_equal(seen[:, :6], other[:, :6])
    assert (jnp.abs(seen - other)[:, 6:].max(-1) > 1e-6).all()
    assert jnp.isnan(hidden(images[:, 0])).all()  # there are tokens for two
    one = network(x.at[0, 6:10].set(1), images=images[:, 0]).hidden
    np.testing.assert_allclose(one[:, :6], seen[:, :6], atol=1e-5)
    assert jnp.isnan(network(x.at[0, 0].set(1), images=images).hidden).any()  # 7 of 8 tokens
    assert jnp.isfinite(network(x.at[0, :10].set(1)).hidden).all()  # text alone


def test_writing_reads_an_image_once_and_the_same():
    model, draw = Model(LLAVA), np.random.default_rng(0)
    params = jax.tree.map(lambda w: 3 * w, model.init(jax.random.key(0)))
    prompts = [[1, *[31] * 4, 2, 3], [*[31] * 4, 5]]
    images = draw.standard_normal((2, 6, 6, 3)).astype(np.float32)
    shown = lambda images: generate(
        model, params, Shown(prompts, images), length=4, sampling=Sampling(0.0)
    )
    found = shown(images)
    for prompt, image, out in zip(prompts, images, found, strict=True):
        text = list(prompt)
        for token in out:
            with_all = model.bind(params)(jnp.asarray([text]), images=jnp.asarray(image)[None])
            assert token == int(model.bind(params).unembed(with_all.hidden)[0, -1].argmax())
            text.append(token)
    with pytest.raises(ConfigError, match="2 prompts are shown images of 1 rows"):
        shown(images[:1])
    text = Model(TEXT)
    with pytest.raises(ConfigError, match="a Llama reads no images"):
        generate(text, text.init(jax.random.key(0)), Shown(prompts, images), length=1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: replace(VIT, heads=5), "dim=16 must be a multiple of heads=5"),
        (lambda: replace(VIT, classes=0), "classes must be at least 1"),
        (lambda: replace(VIT, hidden=0), "hidden must be at least 1"),
        (lambda: replace(LLAVA, layer=-4), "layer=-4 is none of the tower's 2"),
        (lambda: replace(LLAVA, layer=3), "layer=3 is none of the tower's 2"),
        (lambda: replace(LLAVA, image_token=-1), "image_token must be 0 or more"),
        (lambda: replace(LLAVA, activation="jelu"), "no activation 'jelu'; did you mean"),
        (lambda: replace(LLAVA, text=VIT), "LLaVA's text is a decoder such as Llama"),
        (lambda: ImageClasses(1.0), "smoothing must be from 0 to below 1"),
        (lambda: ShownText(-1.0), "z_loss must not be negative"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_objectives_and_networks_that_do_not_belong_together_are_told():
    rows = batch()
    for loss, config, lacking, message in (
        (ImageClasses(), VIT, "labels", r"labels is missing; data=LabelledImages\("),
        (ImageClasses(), TEXT, "", "needs a model that tells classes, .* not a Llama"),
        (ShownText(), LLAVA, "images", r"images is missing; data=ShownImages\("),
        (ShownText(), TEXT, "", "needs a decoder that reads images, .* not a Llama"),
    ):
        model = Model(config)
        given = {name: x for name, x in rows.items() if name != lacking}
        with pytest.raises(ConfigError, match=message):
            evaluate_loss(loss, model, model.shapes, given, jax.random.key(0))


def test_classes_that_are_not_there_and_images_of_other_sizes():
    model, rows = Model(VIT), batch()
    params, images = model.init(jax.random.key(0)), rows["images"][:, 0]
    labels = rows["labels"].at[0].set(8)
    terms = ImageClasses()(model, params, {"images": images, "labels": labels}, jax.random.key(0))
    assert jnp.isnan(terms.losses[0]) and jnp.isfinite(terms.losses[1:]).all()
    assert terms.weights.tolist() == [1] * 7 + [0]
    with pytest.raises(ConfigError, match=r"images of \(5, 6, 3\)"):
        model.bind(params).classify(images[:, 1:])
    with Layout(make_mesh(context=2)).active(), pytest.raises(ConfigError, match="must have 1"):
        jax.eval_shape(lambda p, x: model.bind(p).classify(x), model.shapes, images)
    with pytest.raises(ConfigError, match="this network has no pooler"):
        model.bind(params).pooled(jnp.ones((1, 5, 16)))


def trained(file: str, folder: Path, steps: int):
    """An example's recipe trained so many steps, and its data."""
    recipe = runpy.run_path(str(EXAMPLES / file))["recipe"]()
    recipe = replace(recipe, data=replace(recipe.data, cache=str(folder)))
    task, data = task_of(recipe, make_mesh()), recipe.data.open(0)
    state, step = train.init(task, jax.random.key(0)), train.make_step(task)
    for number in range(steps):
        state, _ = step(state, data.train.rows_of(number, 0, 32))
    return task.model, state.params, data, recipe.model


@pytest.mark.slow
def test_shapes_of_images_never_seen_are_told(tmp_path):
    model, params, data, _ = trained("image_classes.py", tmp_path, 600)
    right = count = 0.0
    for number in range(4):
        rows = {name: jnp.asarray(x) for name, x in data.heldout.rows_of(number, 0, 32).items()}
        terms = ImageClasses()(model, params, rows, jax.random.key(0))
        right, count = (
            float(a + b) for a, b in zip((right, count), terms.metrics["accuracy"], strict=True)
        )
    assert right / count > 0.6


@pytest.mark.slow
def test_a_llava_describes_images_that_it_has_never_seen(tmp_path):
    model, params, data, sizes = trained("describe_images.py", tmp_path, 300)
    rows = data.heldout.rows_of(0, 0, 32)
    bos, eos, places = data.tokenizer.bos, data.tokenizer.eos, sizes.places
    prompts = [[sizes.image_token] * places + [bos]] * 8
    shown = Shown(prompts, np.asarray(rows["images"][:8]))
    found = generate(model, params, shown, length=12, sampling=Sampling(0.0), stop=eos)
    said = [set(data.tokenizer.decode(tokens).split()) for tokens in found]
    meant = [set(data.tokenizer.decode(row).split()) for row in rows["targets"][:8, places:]]
    colours = "red green blue yellow purple white".split()
    right = [s & {*colours} == m & {*colours} for s, m in zip(said, meant, strict=True)]
    assert sum(right) >= 6, (said, meant)
