"""What the tests of grouped matmul share: problems, and the comparison with the reference."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jscale.pallas_kernels.grouped_matmul import grouped_matmul
from jscale.pallas_kernels.grouped_matmul.reference import reference

FLOAT32, BFLOAT16 = 1e-5, 1e-2  # relative Frobenius error
QUICK = {"xla_backend_optimization_level": 0}  # small programs: compiling them is what takes time


def near(found, wanted, limit):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - b) <= limit * max(np.linalg.norm(b), 1e-6)


@cache  # so that problems of the same shapes are compiled once
def both(run):
    """The product, and the gradients of the rows and of the matrices by a given cotangent."""

    def compute(x, w, sizes, rows, back):
        out, pull = jax.vjp(lambda x, w: run(x, w, sizes, rows), x, w)
        return out, *pull(back)

    return jax.jit(compute, compiler_options=QUICK)


def everything(run, x, w, sizes, rows, back):
    return both(run)(x, w, sizes, rows, back)


@cache
def named(name):
    return lambda x, w, sizes, rows: grouped_matmul(x, w, sizes, rows=rows, implementation=name)


def draw(seed, R, D, F, sizes, gathered=None, dtype=jnp.float32):
    """Numbers for groups of these sizes; `gathered` is how many rows are taken, of any."""
    rng = np.random.default_rng(seed)  # not JAX's, which would compile for every shape
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    x, w = normal(R, D), jnp.asarray(rng.standard_normal((len(sizes), D, F)) * D**-0.5, dtype)
    rows = None if gathered is None else jnp.asarray(rng.integers(0, R, gathered), jnp.int32)
    back = normal(R if gathered is None else gathered, F)
    return x, w, jnp.asarray(sizes, jnp.int32), rows, back


def poisoned(x, w, sizes, rows, back):
    """The same, where rows that no group has, and the matrices of groups without rows, are NaN."""
    kept, nothing = int(sizes.sum()), np.asarray(sizes) == 0
    x, w, back = (np.array(a) for a in (x, w, back))
    w[nothing], back[kept:] = np.nan, np.nan
    if rows is None:
        x[kept:] = np.nan
    else:
        x = np.concatenate([x, np.full_like(x[:1], np.nan)])
        rows = np.array(rows)
        rows[kept:] = len(x) - 1
        rows = jnp.asarray(rows)
    return jnp.asarray(x), jnp.asarray(w), sizes, rows, jnp.asarray(back)


def exact(x, w, sizes, rows, back):
    """What the reference finds in float32, with 0 for NaN."""
    clean = (jnp.nan_to_num(a.astype(jnp.float32)) for a in (x, w, back))
    x, w, back = clean
    return everything(reference, x, w, sizes, rows, back)


@st.composite
def sizes_of(draw_, rows, groups):
    """Groups with nobody in them, with everybody, and rows that no group has."""
    cuts = draw_(st.lists(st.integers(0, rows), min_size=groups, max_size=groups))
    return np.diff([0, *sorted(cuts)]).tolist()


@st.composite
def problems(draw_):
    """What `draw` takes, for any groups of any rows, taken by index or not."""
    M, E = draw_(st.integers(0, 40)), draw_(st.integers(1, 9))
    sizes = draw_(sizes_of(M, E))
    gathered = draw_(st.booleans())
    R = draw_(st.integers(1, 20)) if gathered else M
    D, F = draw_(st.sampled_from([(1, 1), (5, 3), (8, 16)]))
    return draw_(st.integers(0, 99)), R, D, F, sizes, M if gathered else None


UGLY = {
    "one takes all": [0, 0, 33, 0],
    "none": [0, 0, 0, 0],
    "rest": [3, 0, 5, 1],
    "many": [1, 0, 2] * 11,
}


def around(way, run):
    """The same within a transformation of JAX."""

    def wrapped(x, w, sizes, rows):
        one = lambda x: run(x, w, sizes, rows)
        if way == "vmap":
            each = jax.vmap(lambda x, sizes: run(x, w, sizes, rows))
            return each(jnp.stack([2 * x, x]), jnp.stack([sizes[::-1], sizes]))[1]
        if way == "remat":
            return jax.checkpoint(one)(x)
        return jax.lax.scan(lambda c, x: (c, one(x)), 0, x[None])[1][0]

    return wrapped
