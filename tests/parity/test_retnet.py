"""RetNet against the original: every form's outputs and the gradients of all its parameters."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import original

from jscale.formats.torchscale.retnet import table
from jscale.models import Model
from jscale.models.feed import GLU, MLP
from jscale.models.moe import MoE
from jscale.models.residual import DeepNorm, PostNorm, PreNorm
from jscale.models.retnet import Chunkwise, Parallel, Recurrent, RetNet

NEAR = 2e-4  # of the peak of an output or a gradient, form by form
PLAIN = RetNet(vocab=101, dim=64, value=96, heads=4, layers=2, feed=GLU(80, "gelu"), remat="none")
FORMS = {
    "parallel": Parallel("torchscale"),
    "recurrent": Recurrent("torchscale"),
    "chunkwise": Chunkwise("torchscale", 4),
    "chunkwise-filled": Chunkwise("torchscale", 5),  # 12 tokens are no multiple of it
}
RESIDUALS = {
    "pre": dict(residual=PreNorm()),
    "post": dict(residual=PostNorm()),
    "deepnorm": dict(residual=DeepNorm()),
}
MORE = {
    "swish": dict(feed=GLU(80, "swish")),
    "tied": dict(tied=True),
    "one-head": dict(heads=1),
    "embed-norm": dict(embed_norm=True),
    "embed-scale": dict(embed_scale=8.0),  # √dim
    "one-layer": dict(layers=1),
}
BRIEF = "pre-parallel pre-recurrent pre-chunkwise-filled deepnorm-chunkwise tied-parallel".split()
GRID = [
    pytest.param(more, form, marks=[] if name in BRIEF else pytest.mark.slow, id=name)
    for group, forms in ((RESIDUALS, FORMS), (MORE, ("parallel", "chunkwise")))
    for (what, more), form in itertools.product(group.items(), forms)
    for name in [f"{what}-{form}"]
]


def decoder(c: RetNet, subln=False, **more):
    """The original of these sizes, with weights large enough for every factor to matter."""
    feed = c.feed[0] if isinstance(c.feed, tuple) else c.feed
    feed = feed.of if isinstance(feed, MoE) else feed
    assert isinstance(feed, GLU | MLP)
    torch = original.torch()
    chunks = c.form if isinstance(c.form, Chunkwise) else None
    config = original.torchscale("architecture.config").RetNetConfig(
        vocab_size=c.vocab,
        decoder_embed_dim=c.dim,
        decoder_value_embed_dim=c.value,
        decoder_retention_heads=c.heads,
        decoder_ffn_embed_dim=feed.hidden,
        decoder_layers=c.layers,
        activation_fn=feed.activation,
        deepnorm=c.residual == DeepNorm(),
        decoder_normalize_before=c.residual == PreNorm(),
        subln=subln,
        layernorm_embedding=c.embed_norm,
        no_scale_embedding=c.embed_scale == 1,
        share_decoder_input_output_embed=c.tied,
        layernorm_eps=c.eps,
        chunkwise_recurrent=chunks is not None,
        recurrent_chunk_size=chunks.places if chunks else 512,
        **more,
    )
    torch.manual_seed(0)
    embed = torch.nn.Embedding(c.vocab, c.dim)
    module = original.torchscale("architecture.retnet").RetNetDecoder(config, embed_tokens=embed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name:
                p.add_(0.2 * torch.randn_like(p))
            elif "q_proj" in name or "k_proj" in name:
                p.mul_(4.0)  # so that sums of scores exceed 1
    return module


def tokens(c: RetNet, length: int = 12):
    rng = np.random.default_rng(1)
    return rng.integers(0, c.vocab, (2, length)), rng.standard_normal((2, length, c.vocab))


def theirs(c: RetNet, module):
    """Their scores, and the gradients of all parameters of a random sum of these."""
    torch = original.torch()
    x, weights = (torch.tensor(a) for a in tokens(c))
    if isinstance(c.form, Recurrent):
        memory = {}
        step = lambda i: module(x[:, : i + 1], incremental_state=memory)[0]
        out = torch.cat([step(i) for i in range(x.shape[1])], 1)
    else:
        out = module(x)[0]
    (out * weights).sum().backward()
    return out.detach().numpy(), original.gradients(module)


def ours(c: RetNet, params):
    x, weights = (jnp.asarray(a) for a in tokens(c))

    def total(params):
        network = Model(c).bind(params)
        out = network.unembed(network(x).hidden)
        return (out * weights).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return out, grads


def close(name, found, wanted, tolerance=NEAR):
    error = np.abs(np.asarray(found) - wanted).max() / max(np.abs(wanted).max(), 1e-6)
    assert error <= tolerance, f"{name}: off by {error:.2g} of its peak"


@pytest.mark.parametrize("changes, form", GRID)
def test_each_form_is_the_original_s(changes, form):
    c = replace(PLAIN, form=FORMS[form], **changes)
    module = decoder(c)
    params = table(c).read(original.weights(module), Model(c).shapes)
    wanted, wanted_grads = theirs(c, module)
    out, grads = ours(c, params)
    close("output", out, wanted)
    found = table(c).write(grads)
    assert set(found) == set(wanted_grads)
    for name, gradient in found.items():
        close(name, gradient, wanted_grads[name])


@pytest.mark.parametrize("changes", RESIDUALS.values(), ids=RESIDUALS)
def test_the_forms_are_equal_where_epsilon_is_tiny(changes):
    """TorchScale's factors vanish with epsilon, and our default has none, so needs no tiny one."""
    plain = replace(PLAIN, **changes)
    params = Model(plain).init(jax.random.key(0))
    wanted = {eps: ours(replace(plain, eps=eps), params)[0] for eps in (1e-20, 1e-6)}
    for form in (Parallel, Recurrent, Chunkwise):
        tiny = replace(plain, eps=1e-20, form=form("torchscale"))
        close(form.__name__, ours(tiny, params)[0], wanted[1e-20], 1e-5)
        close(form.__name__, ours(replace(plain, form=form()), params)[0], wanted[1e-6], 1e-5)


def test_token_by_token_from_a_prompt_is_the_original_s_recurrence():
    """Which the original itself cannot begin with a prompt of several tokens."""
    c = replace(PLAIN, form=Recurrent("torchscale"))
    module = decoder(c)
    read = table(c).read(original.weights(module), Model(c).shapes)
    params = jax.tree.map(jnp.asarray, read)
    x = jnp.asarray(tokens(c)[0])
    network = Model(c).bind(params)
    out = network(x[:, :7], cache=network.cache(2, 12))
    hidden = [out.hidden]
    for i in range(7, 12):
        out = network(x[:, i : i + 1], positions=jnp.full((2, 1), i), cache=out.cache)
        hidden.append(out.hidden)
    close("output", network.unembed(jnp.concatenate(hidden, 1)), theirs(c, module)[0])


def test_weights_go_and_come_back():
    c = replace(PLAIN, embed_norm=True)
    weights = original.weights(decoder(c))
    back = table(c).write(table(c).read(weights, Model(c).shapes))
    assert set(weights) - set(back) == {"retnet_rel_pos.angle", "retnet_rel_pos.decay"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name])
