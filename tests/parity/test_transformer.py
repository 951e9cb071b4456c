"""Encoder, decoder and encoder-decoder against the original: outputs and all gradients."""

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import original

from jscale.formats.torchscale.transformer import table
from jscale.models import Model
from jscale.models.feed import MLP
from jscale.models.gates import CosineRouter
from jscale.models.moe import MoE
from jscale.models.positions import Learned, RelativeBias, XPos
from jscale.models.residual import DeepNorm, PostNorm, PreNorm, SubLN
from jscale.models.transformer import EncoderDecoder, TransformerDecoder, TransformerEncoder
from jscale.models.transformer.config import Embedding
from jscale.models.transformer.head import Plain

NEAR = 2e-5  # of outputs and of gradients, whose peaks are around 1 or more
SIZES: Any = dict(vocab=101, dim=32, heads=4, feed=MLP(48), positions=(Learned(20),), remat="none")
ENCODER = TransformerEncoder(layers=2, **SIZES)
DECODER = TransformerDecoder(layers=2, **SIZES)
BOTH = EncoderDecoder(layers=(2, 3), share="none", **SIZES)
RESIDUALS = {"pre": PreNorm(), "post": PostNorm(), "deepnorm": DeepNorm(), "subln": SubLN()}
POSITIONS = {
    "learned": (Learned(20),),
    "xpos": (XPos(8.0),),
    "bias": (Learned(20), RelativeBias(8, 10)),
    "both": (XPos(), RelativeBias(32, 128)),
    "none": (),
}
ACTIVATIONS = ("gelu", "relu", "swish")


def grid():
    """Every residual scheme with every kind of positions; the other options take turns."""
    for i, (scheme, places) in enumerate(itertools.product(RESIDUALS, POSITIONS)):
        for kind, config in (("encoder", ENCODER), ("decoder", DECODER), ("both", BOTH)):
            changes: Any = dict(
                residual=RESIDUALS[scheme],
                positions=POSITIONS[places],
                feed=MLP(48, ACTIVATIONS[i % 3]),
                embedding=Embedding(scaled=i % 2 == 1, norm=i % 4 >= 2),
            )
            if kind == "both":
                changes |= dict(share=("none", "decoder", "all")[i % 3])
            else:
                changes |= dict(head=Plain(tied=i % 2 == 0 and kind == "decoder"))
            if kind != "decoder":
                changes |= dict(last_norm=i % 5 != 3)
            chosen = (i + i // 5) % 5 == len(kind) % 3 and (i // 5 + len(kind)) % 2 == 0
            marks = [] if chosen else [pytest.mark.slow]
            name = f"{kind}-{scheme}-{places}"
            yield pytest.param(replace(config, **changes), id=name, marks=marks)


def dense(c):
    """The first feed-forward of a config, of which its experts are others of the same size."""
    feed = c.feed[0] if isinstance(c.feed, tuple) else c.feed
    return feed.of if isinstance(feed, MoE) else feed


def options(c):
    """The original's fields for a config, but for sizes that are named after its stacks."""
    xpos = next((p for p in c.positions if isinstance(p, XPos)), None)
    bias = next((p for p in c.positions if isinstance(p, RelativeBias)), RelativeBias())
    biased = any(isinstance(p, RelativeBias) for p in c.positions)
    return dict(
        vocab_size=c.vocab,
        activation_fn=dense(c).activation,
        no_scale_embedding=not c.embedding.scaled,
        layernorm_embedding=c.embedding.norm,
        deepnorm=isinstance(c.residual, DeepNorm),
        subln=isinstance(c.residual, SubLN),
        xpos_rel_pos=xpos is not None,
        xpos_scale_base=xpos.base if xpos else 512,
        rel_pos_buckets=bias.buckets if biased else 0,
        max_rel_pos=bias.distance if biased else 0,
        layernorm_eps=c.norm.eps,
    )


def stack(c, which, layers):
    return {
        f"{which}_embed_dim": c.dim,
        f"{which}_attention_heads": c.heads,
        f"{which}_ffn_embed_dim": dense(c).hidden,
        f"{which}_layers": layers,
        f"{which}_normalize_before": c.residual.before,
    }


def module(c, **more):
    """The original of a config."""
    torch = original.torch()
    torch.manual_seed(0)
    configs = original.torchscale("architecture.config")
    part = lambda name: original.torchscale(f"architecture.{name}")
    tokens = lambda: torch.nn.Embedding(c.vocab, c.dim)
    embedding = original.torchscale("component.embedding").PositionalEmbedding
    learned = any(isinstance(p, Learned) for p in c.positions)
    places = lambda: embedding(22, c.dim) if learned else None
    if isinstance(c, TransformerEncoder):
        config = configs.EncoderConfig(
            **options(c), **stack(c, "encoder", c.layers), normalize_output=c.last_norm, **more
        )
        made = part("encoder").Encoder(config, tokens(), places())
    elif isinstance(c, TransformerDecoder):
        config = configs.DecoderConfig(
            **options(c),
            **stack(c, "decoder", c.layers),
            share_decoder_input_output_embed=c.head == Plain(tied=True),
            **more,
        )
        made = part("decoder").Decoder(config, tokens(), places())
    else:
        config = configs.EncoderDecoderConfig(
            **options(c),
            **stack(c, "encoder", c.layers[0]),
            **stack(c, "decoder", c.layers[1]),
            normalize_output=c.last_norm,
            share_decoder_input_output_embed=c.share != "none",
            share_all_embeddings=c.share == "all",
            **more,
        )
        target = None if c.share == "all" else tokens()
        made = part("encoder_decoder").EncoderDecoder(config, tokens(), places(), target, places())
    return made


def moved(made):
    """The same, with what begins as ones and zeros moved from there: vectors, tokens of its own."""
    torch = original.torch()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 1 or p.shape[:2] == (1, 1):
                p.add_(0.2 * torch.randn_like(p))
    return made


def inputs(c, length=12, padded=3):
    """Tokens, for a second row with padding at its end, and what weighs the scores."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, c.vocab, (2, length))
    weights = rng.standard_normal((2, length, c.vocab)) / c.vocab
    seen = np.ones((2, length), np.int32)
    if padded:
        seen[1, -padded:] = 0
    source = rng.integers(0, c.vocab, (2, 9))
    return source, tokens, seen, weights * seen[..., None]


def theirs(c, made):
    torch = original.torch()
    source, tokens, seen, weights = (torch.tensor(a) for a in inputs(c))
    if isinstance(c, TransformerEncoder):
        out = made(tokens, encoder_padding_mask=seen == 0)["encoder_out"]
    elif isinstance(c, TransformerDecoder):
        out = made(tokens, self_attn_padding_mask=seen == 0)[0]
    else:
        out = made(source, tokens)[0]
    (out * weights).sum().backward()
    return out.detach().numpy(), original.gradients(made)


def ours(c, params):
    source, tokens, seen, weights = (jnp.asarray(a) for a in inputs(c))

    def total(params):
        network = Model(c).bind(params)
        if isinstance(c, EncoderDecoder):
            hidden = network(source, tokens).hidden
        else:
            hidden = network(tokens, segments=seen).hidden
        out = network.unembed(hidden)
        return (out * weights).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return np.asarray(out), grads


def compare(found, wanted, seen):
    """Outputs where they are `seen`, and gradients by their names, are near those wanted."""
    (out, grads), (wanted, wanted_grads) = found, wanted
    error = np.abs(np.where(seen, out - wanted, 0)).max()
    print(f"output {error:.2g} of {np.abs(wanted).max():.3g}")
    assert error <= NEAR
    assert set(grads) == set(wanted_grads)
    worst = max(np.abs(grads[name] - wanted_grads[name]).max() for name in grads)
    print(f"gradients {worst:.2g} of {max(np.abs(g).max() for g in grads.values()):.3g}")
    assert worst <= NEAR


@pytest.mark.parametrize("c", list(grid()))
def test_outputs_and_gradients_are_the_original_s(c):
    made = moved(module(c))
    params = table(c).read(original.weights(made), Model(c).shapes)
    wanted = theirs(c, made)
    out, grads = ours(c, params)
    seen = np.broadcast_to(inputs(c)[2][..., None] > 0, out.shape)
    compare((out, table(c).write(grads)), wanted, seen)


BEGINNINGS = [
    pytest.param(
        config,
        scheme,
        id=f"{name}-{scheme}",
        # By default both schemes that scale, where each has the most to get wrong.
        marks=[] if name == "both" and scheme in ("deepnorm", "subln") else pytest.mark.slow,
    )
    for name, config in {"encoder": ENCODER, "decoder": DECODER, "both": BOTH}.items()
    for scheme in RESIDUALS
]


@pytest.mark.parametrize("config, scheme", BEGINNINGS)
def test_weights_begin_as_the_original_s(config, scheme):
    c = replace(config, residual=RESIDUALS[scheme], dim=64, feed=MLP(96))
    wanted = original.weights(module(c))
    found = table(c).write(Model(c).init(jax.random.key(0)))
    assert set(wanted) == set(found)
    for name, array in found.items():
        a, b = np.asarray(array), wanted[name]
        if "embed" in name or "output_projection" in name:  # normal
            assert abs(a.std() / (64**-0.5 if "tokens" in name else b.std()) - 1) < 0.05, name
        elif not b.any() or (b == 1).all():
            np.testing.assert_array_equal(a, b, name)
        else:  # uniform: the largest of so many is near the bound, never above it
            assert np.abs(np.abs(a).max() / np.abs(b).max() - 1) < 0.15, name


@pytest.mark.parametrize("experts", [False, True], ids=["all-shared", "experts"])
def test_weights_go_and_come_back(experts):
    c: Any = replace(BOTH, share="all", positions=(XPos(), RelativeBias()))
    more = {}
    if experts:  # in every other layer, chosen by a cosine
        original.process_group()
        experts_of = MoE(4, MLP(48), CosineRouter("torchscale"))
        c = replace(ENCODER, layers=4, feed=(MLP(48), experts_of))
        more = dict(moe_freq=2, moe_expert_count=4, use_xmoe=True)
    weights = original.weights(module(c, **more))
    back = table(c).write(table(c).read(weights, Model(c).shapes))
    assert all(".xpos.scale" in name for name in set(weights) - set(back))
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name])


@pytest.mark.parametrize("buckets, distance", [(32, 128), (8, 10), (16, 64), (64, 300), (4, 2)])
@pytest.mark.parametrize("ahead", [True, False])
def test_distances_fall_into_the_original_s_buckets(buckets, distance, ahead):
    torch = original.torch()
    bias = original.torchscale("component.relative_position_bias").RelativePositionBias
    away = np.arange(-700, 701)
    if not ahead and buckets == 4:
        distance = 3
    wanted = bias._relative_position_bucket(torch.tensor(away), ahead, buckets, distance)
    found = RelativeBias(buckets, distance, ahead).bucket(jnp.asarray(away))
    np.testing.assert_array_equal(found, wanted.numpy())
