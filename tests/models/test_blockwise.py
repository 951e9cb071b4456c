"""Experts in eight bits: equal to rounding block by block in loops, near bfloat16, and smaller."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from close import LAYOUT, SAME, assert_close
from flax import nnx

from jscale.errors import ConfigError
from jscale.mesh import Layout, make_mesh
from jscale.models import TransformerDecoder
from jscale.models.blockwise import Blockwise
from jscale.models.decoder import Context
from jscale.models.experts import Rows, run
from jscale.models.feed import GLU, MLP, Clamp, Style
from jscale.models.gates import LinearRouter, TopK
from jscale.models.model import Model
from jscale.models.moe import MoE
from jscale.models.norms import RMS
from jscale.models.positions import Rope
from jscale.pallas_kernels.dispatch import Received
from jscale.pallas_kernels.grouped_matmul import grouped_matmul

FP8 = ml_dtypes.float8_e4m3fn


def rounded(block, scales):
    """A block of numbers as eight bits with one scale have them."""
    largest = np.abs(block).max(initial=0.0)
    if largest == 0:
        return block
    scale = np.float32(largest / np.float32(448))
    scale = np.float32(2.0 ** np.ceil(np.log2(scale))) if scales == "powers" else scale
    return (block / scale).astype(FP8).astype(np.float32) * scale


def by_blocks(x, tile, scales):
    """A matrix rounded block by block."""
    out = np.zeros_like(x)
    for i in range(0, x.shape[0], tile[0]):
        for j in range(0, x.shape[1], tile[1]):
            here = np.s_[i : i + tile[0], j : j + tile[1]]
            out[here] = rounded(x[here], scales)
    return out


def wanted(how, x, w, sizes, rows, g):
    """The product and both gradients, expert by expert."""
    b, scales = how.size, how.scales
    near = by_blocks(x, (1, b), scales)
    out, dx, dw = np.zeros(g.shape, np.float32), np.zeros_like(x), np.zeros_like(w)
    end = 0
    for e, size in enumerate(sizes):
        mine, end = np.arange(end, end + size), end + size
        matrix, own, by = by_blocks(w[e], (b, b), scales), near[rows[mine]], g[mine]
        out[mine] = own @ matrix
        np.add.at(dx, rows[mine], by_blocks(by, (1, b), scales) @ matrix.T)
        dw[e] = by_blocks(own, (b, 1), scales).T @ by_blocks(by, (b, 1), scales)
    return out, dx, dw


@partial(jax.jit, static_argnums=0)
def both(how, x, w, sizes, g, rows=None):
    """The product and both gradients as they are; without blocks, in the rows' own precision."""
    plain = lambda x, w: grouped_matmul(x, w, sizes, rows=rows)
    blocks = lambda x, w: how.products(x, (w,), sizes, rows)[0]
    out, back = jax.vjp(plain if how is None else blocks, x, w)
    return out, *back(g)


SIZES = {
    "uneven": (5, 0, 21, 6),  # an expert without rows, tiles that are not full
    "one-takes-all": (0, 32, 0, 0),
    "none": (0, 0, 0, 0),
    "some-of-nobody": (3, 2, 1, 9),
}


@pytest.mark.parametrize("scales", ["powers", "any"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_products_are_those_of_blocks_that_are_rounded_one_by_one(sizes, scales):
    """Odd lengths, a row of zeros, outliers, rows that are taken twice."""
    R, M, E, D, F, how = 20, 32, 4, 21, 19, Blockwise(8, scales)
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
    x, w, g, rows = draw(R, D), draw(E, D, F), draw(M, F), random.integers(0, R, M)
    x[3], x[4, 2], x[5, :8], w[2, 1, 1], g[0] = 0, 3e4, 1e-30, -2e3, 0
    found = both(how, x, w, jnp.array(sizes), jnp.asarray(g), rows)
    assert_close(found, wanted(how, x, w, sizes, rows, g), SAME)


def test_several_stacks_of_matrices_are_one_call_for_each():
    how, sizes = Blockwise(16), jnp.array([3, 0, 5])
    keys = jax.random.split(jax.random.key(0), 3)
    x, *ws = (
        jax.random.normal(k, s)
        for k, s in zip(keys, [(8, 24), (3, 24, 40), (3, 24, 40)], strict=True)
    )
    together = lambda x, ws: sum(jnp.sin(y).sum() for y in how.products(x, ws, sizes))
    apart = lambda x, ws: sum(jnp.sin(how.products(x, (w,), sizes)[0]).sum() for w in ws)
    found, other = (jax.jit(jax.grad(f, (0, 1)))(x, tuple(ws)) for f in (together, apart))
    assert_close(found, other, SAME)


def test_what_is_no_number_stays_none_and_rows_of_nobody_are_not_read():
    how, sizes, w = Blockwise(8), jnp.array([2, 2]), jnp.ones((2, 16, 8))
    x = jnp.ones((6, 16)).at[4:].set(jnp.nan)  # after the last group
    g = jnp.ones((6, 8)).at[4:].set(jnp.nan)
    out, dx, dw = both(how, x, w, sizes, g)
    np.testing.assert_array_equal(out, jnp.full((6, 8), 16.0).at[4:].set(0))
    assert jnp.isfinite(dx[:4]).all() and jnp.isfinite(dw).all()
    for odd in (jnp.nan, jnp.inf):
        assert jnp.isnan(both(how, x.at[1, 3].set(odd), w, sizes, g)[0][1]).all()


def test_scales_of_powers_of_two_lose_nothing_in_bfloat16():
    """Rounding the rounded changes nothing: what is multiplied are the eight bits themselves."""
    x = jax.random.normal(jax.random.key(0), (64, 200)) * jnp.logspace(-20, 20, 64)[:, None]
    near = Blockwise().rounded(x, (1, 128), jnp.float32)
    assert (near.astype(jnp.bfloat16) == near).all()
    error = jnp.abs(near - x) / jnp.abs(x).max(1, keepdims=True)
    assert 0 < error.max() < 1 / 16


def cosine(a, b):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return a @ b / np.sqrt(a @ a * (b @ b))


@pytest.mark.parametrize("scales", ["powers", "any"])
def test_products_and_gradients_point_where_those_of_bfloat16_do(scales):
    keys = jax.random.split(jax.random.key(1), 3)
    draw = lambda key, *shape: jax.random.normal(key, shape, jnp.bfloat16)
    x, w, sizes = draw(keys[0], 600, 256), draw(keys[1], 3, 256, 384), jnp.array([300, 0, 300])
    given = x, w, sizes, draw(keys[2], 600, 384)
    near = list(map(cosine, both(Blockwise(128, scales), *given), both(None, *given)))
    assert min(near) > 0.999


@dataclass(frozen=True)
class Layer:
    """A feed-forward of rows of D numbers as a whole network."""

    feed: MoE | GLU
    style: Style = Style()

    def build(self, rngs, compute):
        return self.feed.build(D, rngs, self.style)


B, T, D = 4, 16, 32


def computed(config, params=None, axes=(), back=1.0):
    """The outputs of a layer, and the gradients of its weights and its inputs."""
    x = jax.random.normal(jax.random.key(0), (B, T, D))
    context = Context(jnp.broadcast_to(jnp.arange(T), (B, T)), jnp.ones((B, T), jnp.int32))
    model, layout = Model(config), Layout(make_mesh(**dict(axes)))
    params = model.init(jax.random.key(1), layout) if params is None else params

    def loss(params, x):
        with layout.active():
            y, _ = model.bind(params)(x, context)
        return jnp.sin(3 * y).sum(), y

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)


KINDS = {
    "glu": (GLU(48, precision=Blockwise(16)), Style(inner=RMS())),
    "mlp": (MLP(48, precision=Blockwise(16)), Style()),
    "clamp": (GLU(40, bias=True, clamp=Clamp(), precision=Blockwise(16)), Style()),
}


@pytest.mark.parametrize("of, style", KINDS.values(), ids=KINDS)
def test_a_layer_of_experts_is_near_the_same_in_full(of, style):
    """The outputs, and all gradients: the router's too, which is as it was."""
    config = Layer(MoE(8, of, LinearRouter(), TopK(2)), style)
    full = replace(config, feed=replace(config.feed, of=replace(of, precision=None)))
    found, other = (jax.tree.leaves(computed(each)) for each in (config, full))
    near = [cosine(a, b) for a, b in zip(found, other, strict=True)]
    assert min(near) > 0.99 and max(near) < 1 - 1e-6


def test_a_hidden_size_in_whole_tiles_is_the_same_on_any_mesh():
    config = Layer(MoE(8, GLU(32, precision=Blockwise(16)), choice=TopK(2)))
    mesh = dict(expert=2, fsdp=2, tensor=2)
    assert_close(computed(config, axes=mesh.items()), computed(config), LAYOUT)


def test_what_is_kept_for_the_backward_pass_is_smaller():
    """The compiler's account of four layers and their gradients, on rows of bfloat16."""
    L, M, E, W, F = 4, 4096, 2, 128, 256
    shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(sizes, dtype)
    weights = {"gate": shape(L, E, W, F), "up": shape(L, E, W, F), "down": shape(L, E, F, W)}

    def needed(precision):
        of = GLU(F, precision=precision)
        expert = nnx.eval_shape(lambda: of.build(W, nnx.Rngs(0), Style()))

        def loss(x, weights, sizes):
            received = Received(x, jnp.arange(M), sizes, jnp.zeros((), jnp.int32))
            layer = lambda x, w: (x + run(expert, w, Rows(received._replace(x=x), ()), None), None)
            return jax.lax.scan(layer, x, weights)[0].astype(jnp.float32).sum()

        given = shape(M, W), weights, shape(E, dtype=jnp.int32)
        program = jax.jit(jax.grad(loss, (0, 1))).lower(*given).compile()
        account = program.memory_analysis()
        assert account is not None
        return account.temp_size_in_bytes

    assert needed(Blockwise()) < 0.6 * needed(None)


@lru_cache
def curve(precision):
    """The losses of a small language model on sequences that each go up in their own steps."""
    vocab, steps = 32, 30
    first, more = jax.random.randint(jax.random.key(5), (2, steps, 32, 1), 0, vocab)
    tokens = (first + (1 + more % 3) * jnp.arange(17)) % vocab
    feed = MoE(4, GLU(64, precision=precision), LinearRouter(), TopK(2))
    sizes: Any = dict(vocab=vocab, dim=32, layers=2, heads=2, remat="none")
    model = Model(TransformerDecoder(feed=feed, positions=(Rope(),), **sizes), "bfloat16")
    optimizer = optax.adam(1e-3)

    def loss(params, tokens):
        network = model.bind(params)
        logits = network.unembed(network(tokens[:, :-1]).hidden).astype(jnp.float32)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return each.mean()

    def step(carry, tokens):
        params, moments = carry
        now, gradient = jax.value_and_grad(loss)(params, tokens)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), now

    params = model.init(jax.random.key(0))
    return jax.jit(lambda p, t: jax.lax.scan(step, p, t)[1])(
        (params, optimizer.init(params)), tokens
    )


@pytest.mark.slow
def test_a_small_language_model_learns_as_it_does_without():
    plain, small = curve(None), curve(Blockwise(16))
    assert plain[-1] < 0.5 * plain[0]
    np.testing.assert_allclose(small, plain, rtol=0.02)


def test_only_experts_can_have_it():
    with pytest.raises(ConfigError, match="only experts, of a MoE, can have precision=Blockwise"):
        computed(Layer(GLU(32, precision=Blockwise())))
    with pytest.raises(ConfigError, match="size must be at least 1, not 0"):
        Blockwise(0)
    with pytest.raises(ConfigError, match="did you mean 'powers'"):
        Blockwise(scales="power")
