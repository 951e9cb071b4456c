"""The three tolerances of the house, relative to the largest value of an array; never relaxed."""

import jax
import numpy as np

SAME = 1e-6  # the same mathematics in float32
LAYOUT = 1e-5  # the same program on another mesh
BFLOAT16 = 2e-2  # bfloat16 against float32


def assert_close(actual, wanted, tolerance: float) -> None:
    """Every array of `actual` is within `tolerance` of its twin, relative to the twin's peak."""
    flat, tree = jax.tree_util.tree_flatten_with_path(wanted)
    others, other_tree = jax.tree.flatten(actual)
    assert tree == other_tree, f"{other_tree} is not {tree}"
    for (path, b), a in zip(flat, others, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, f"{jax.tree_util.keystr(path)}: {a.shape} is not {b.shape}"
        if a.size == 0:
            continue
        error, peak = np.abs(a - b).max(), np.abs(b).max()
        assert error <= tolerance * max(peak, 1e-12), (
            f"{jax.tree_util.keystr(path)}: off by {error:.3g}, {error / max(peak, 1e-12):.3g} of"
            f" its peak {peak:.3g}; allowed {tolerance}"
        )
