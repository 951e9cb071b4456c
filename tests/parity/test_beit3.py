"""BEiT-3 against the original: outputs and all gradients, on images, text and both."""

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import original
from parity.test_transformer import compare, moved, options, stack

from jscale.errors import ConfigError
from jscale.formats.torchscale import table
from jscale.models import BEiT3, Model
from jscale.models.beit3 import Joint, Patches, Pixels
from jscale.models.feed import GLU, MLP
from jscale.models.positions import Learned, RelativeBias, XPos
from jscale.models.residual import DeepNorm, PostNorm, PreNorm, SubLN
from jscale.models.transformer.config import Embedding

SIZES: Any = dict(vocab=101, dim=32, layers=2, heads=4, feed=MLP(48), remat="none")
CONFIG = BEiT3(patches=Patches(12, 4, 3), positions=(Learned(20),), **SIZES)
RESIDUALS = {"pre": PreNorm(), "post": PostNorm(), "deepnorm": DeepNorm(), "subln": SubLN()}
POSITIONS = {
    "learned": (Learned(20),),
    "xpos": (Learned(20), XPos(8.0)),
    "bias": (Learned(20), RelativeBias(8, 10)),
    "both": (Learned(20), XPos(), RelativeBias(32, 128)),
}
ALWAYS, IN_TURN = ("image", "padded-text", "all"), ("text", "both", "masked", "padded")
ACTIVATIONS = ("gelu", "relu", "swish")
PATCHES = (Patches(12, 4, 3), Patches(10, 5, 1), Patches(6, 2, 4))
DEFAULT = {
    ("subln", "both", "all"),
    ("deepnorm", "learned", "padded-text"),
    ("pre", "bias", "masked"),
}


def grid():
    """Every residual scheme with every kind of positions and of inputs; other options in turn."""
    for j, (scheme, places) in enumerate(itertools.product(RESIDUALS, POSITIONS)):
        turn = IN_TURN[(j + j // 4) % 4]
        for k, mode in enumerate((*ALWAYS, turn)):
            i = 4 * j + j // 4 + k
            changes: Any = dict(
                residual=RESIDUALS[scheme],
                positions=POSITIONS[places],
                feed=MLP(48, ACTIVATIONS[i % 3]),
                embedding=Embedding(scaled=i % 2 == 1, norm=i % 4 >= 2),
                patches=PATCHES[(i // 3) % 3],
                head=None if i % 5 == 0 else CONFIG.head,
            )
            marks = [] if (scheme, places, mode) in DEFAULT else [pytest.mark.slow]
            name = f"{scheme}-{places}-{mode}"
            yield pytest.param(replace(CONFIG, **changes), mode, id=name, marks=marks)


def module(c):
    """The original of a config."""
    original.torch().manual_seed(0)
    learned = next(p for p in c.positions if isinstance(p, Learned))
    config = original.torchscale("architecture.config").EncoderConfig(
        **options(c),
        **stack(c, "encoder", c.layers),
        multiway=True,
        max_source_positions=learned.length + 2,
        img_size=c.patches.image,
        patch_size=c.patches.size,
        in_chans=c.patches.channels,
        no_output_layer=c.head is None,
    )
    return original.torchscale("model.BEiT3").BEiT3(config)


def inputs(c, mode):
    """Tokens, images, masked patches and segments (None where not given), and what weighs."""
    rng = np.random.default_rng(1)
    tokens: Any = rng.integers(0, c.vocab, (2, 7))
    images: Any = rng.standard_normal((2, c.patches.image, c.patches.image, c.patches.channels))
    masked: Any = rng.random((2, c.patches.count)) < 0.4
    segments: Any = np.ones((2, 7), np.int32)
    segments[1, -3:] = 0
    tokens = None if mode in ("image",) else tokens
    images = None if "text" in mode else images.astype(np.float32)
    masked = masked if mode in ("masked", "all") else None
    segments = segments if mode in ("padded", "padded-text", "all") else None
    length = (0 if images is None else 1 + c.patches.count) + (0 if tokens is None else 7)
    size = c.dim if c.head is None else c.vocab
    weights = 4 * rng.standard_normal((2, length, size)).astype(np.float32) / size
    if segments is not None:
        weights[:, length - 7 :] *= segments[..., None]
    return tokens, images, masked, segments, weights


def theirs(c, made, mode):
    torch = original.torch()
    tokens, images, masked, segments, weights = inputs(c, mode)
    tensor: Any = lambda a: None if a is None else torch.tensor(a)
    out = made(
        textual_tokens=tensor(tokens),
        visual_tokens=None if images is None else tensor(images).permute(0, 3, 1, 2),
        text_padding_position=None if segments is None else tensor(segments == 0),
        vision_masked_position=tensor(masked),
    )["encoder_out"]
    (out * tensor(weights)).sum().backward()
    return out.detach().numpy(), original.gradients(made)


def ours(c, params, mode):
    arrays = [None if a is None else jnp.asarray(a) for a in inputs(c, mode)]
    *given, weights = arrays

    def total(params):
        network = Model(c).bind(params)
        out = network(*given).joined
        out = out if c.head is None else network.unembed(out)
        return (out * weights).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return np.asarray(out), grads, np.asarray(weights != 0)


@pytest.mark.parametrize("c, mode", list(grid()))
def test_outputs_and_gradients_are_the_original_s(c, mode):
    made = moved(module(c))
    params = table(c).read(original.weights(made), Model(c).shapes)
    wanted = theirs(c, made, mode)
    out, grads, seen = ours(c, params, mode)
    compare((out, table(c).write(grads)), wanted, seen)


@pytest.mark.parametrize("scheme", [pytest.param(s, marks=pytest.mark.slow) for s in RESIDUALS])
def test_weights_begin_as_the_original_s(scheme):
    c = replace(CONFIG, residual=RESIDUALS[scheme], dim=64, feed=MLP(96))
    wanted = original.weights(module(c))
    found = table(c).write(Model(c).init(jax.random.key(0)))
    assert set(wanted) == set(found)
    for name, array in found.items():
        a, b = np.asarray(array), wanted[name]
        if "text_embed" in name or "positions" in name or "output_projection" in name:  # normal
            assert abs(a.std() / b.std() - 1) < 0.08, name
        elif not b.any() or (b == 1).all():
            np.testing.assert_array_equal(a, b, name)
        else:  # uniform: the largest of so many is near the bound, never above it
            assert np.abs(np.abs(a).max() / np.abs(b).max() - 1) < 0.15, name


def test_weights_go_and_come_back():
    c = replace(CONFIG, positions=POSITIONS["both"])
    weights = original.weights(module(c))
    back = table(c).write(table(c).read(weights, Model(c).shapes))
    assert all(".xpos.scale" in name for name in set(weights) - set(back))
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name])


@pytest.mark.parametrize(
    "changes, weight",
    [
        (dict(joint=Joint(8)), "joint/image"),
        (dict(pixels=Pixels()), "pixels/bias"),
        (dict(feed=GLU(48)), "blocks/block/feed/image/gate/kernel"),
    ],
)
def test_what_the_original_has_not_is_an_error(changes, weight):
    with pytest.raises(ConfigError, match=f"has no weight such as '{weight}'"):
        table(replace(CONFIG, **changes))
