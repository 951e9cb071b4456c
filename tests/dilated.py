"""Inputs of dilated attention, its gradients, and what is the same."""

import jax
import jax.numpy as jnp
import numpy as np

FLOAT32 = 1e-5  # relative Frobenius error


def draw(seed, B, T, heads, H=8, V=6, dtype=jnp.float32):
    N, K = heads
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, V)
    pairs = zip(keys, shapes, strict=True)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in pairs]


def everything(run, *given):
    """The result, and the gradients of all inputs."""

    def loss(*inputs):
        out = run(*inputs)
        slope = jax.random.normal(jax.random.key(9), out.shape)
        return (out.astype(jnp.float32) * slope).sum(), out

    rule = jax.value_and_grad(loss, tuple(range(len(given))), has_aux=True)
    (_, out), grads = jax.jit(rule)(*given)
    return out, *grads


def same(found, wanted, limit=FLOAT32):
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all() and a.shape == b.shape
        # A gradient may be exactly 0: numbers are of size 1, and so is what they are compared with.
        assert np.linalg.norm(a - b) <= limit * max(np.linalg.norm(b), 0.1 * np.sqrt(b.size))
