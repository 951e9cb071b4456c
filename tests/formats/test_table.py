"""Tables of weights, read both ways: nothing is left over, nothing missing, nothing bent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jscale.errors import CheckpointError
from jscale.formats.table import Pair, Table

OVER = {"layer": range(3)}
TABLE = Table(
    (
        Pair("blocks/q", "layers.{layer}.q.weight", "(n h) d -> d n h", {"n": 2}, OVER),
        Pair("blocks/experts", "layers.{layer}.experts.{e}.w", "f d -> d f",
             over={"layer": range(3), "e": range(2)}),
        Pair("norm", "norm.weight"),
    ),
    ignored=(r"layers\.\d+\.scale",),
)  # fmt: skip
SHAPES = {
    "blocks": {
        "q": jax.ShapeDtypeStruct((3, 8, 2, 4), jnp.float32),
        "experts": jax.ShapeDtypeStruct((3, 2, 8, 5), jnp.float32),
    },
    "norm": jax.ShapeDtypeStruct((8,), jnp.bfloat16),
}


def release():
    draw = np.random.default_rng(0).standard_normal
    tensors = {"norm.weight": draw(8)}
    for layer in range(3):
        tensors[f"layers.{layer}.q.weight"] = draw((8, 8))
        tensors[f"layers.{layer}.scale"] = draw(4)
        for e in range(2):
            tensors[f"layers.{layer}.experts.{e}.w"] = draw((5, 8))
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def test_arrays_are_turned_and_stacked():
    tensors = release()
    ours = TABLE.read(tensors, SHAPES)
    np.testing.assert_array_equal(
        ours["blocks"]["q"][1], tensors["layers.1.q.weight"].T.reshape(8, 2, 4)
    )
    np.testing.assert_array_equal(
        ours["blocks"]["experts"][2, 1], tensors["layers.2.experts.1.w"].T
    )
    assert ours["norm"].dtype == jnp.bfloat16


def test_there_and_back():
    tensors = release()
    shapes = {**SHAPES, "norm": jax.ShapeDtypeStruct((8,), jnp.float32)}
    back = TABLE.write(TABLE.read(tensors, shapes))
    kept = {name: a for name, a in tensors.items() if "scale" not in name}
    assert set(back) == set(kept)
    for name, array in kept.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("layers.1.q.weight"), r"lacks layers.1.q.weight; did you mean"),
        (lambda t: t.update(extra=np.zeros(1)), "holds extra, which nothing uses"),
        (lambda t: t.update({"norm.weight": np.zeros(7)}), r"norm \(7,\), and the model wants \(8"),
        (lambda t: t.update({"layers.0.q.weight": np.zeros((9, 8))}), "does not fit .* divide"),
        (
            lambda t: [t.update({f"layers.{i}.q.weight": np.zeros((9, 8))}) for i in range(3)],
            r"layers.0.q.weight \(9, 8\) does not fit",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    tensors = release()
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        TABLE.read(tensors, SHAPES)


def test_our_weights_all_have_a_place():
    shapes = {**SHAPES, "head": jax.ShapeDtypeStruct((8,), jnp.float32)}
    with pytest.raises(CheckpointError, match="no weight of the release fills head"):
        TABLE.read(release(), shapes)
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
    with pytest.raises(CheckpointError, match="the release has no place for head"):
        TABLE.write(params)
    del params["head"], params["norm"]
    with pytest.raises(CheckpointError, match="wants 'norm'"):
        TABLE.write(params)
    without = {name: shape for name, shape in SHAPES.items() if name != "norm"}
    with pytest.raises(CheckpointError, match="fills 'norm', which the model lacks"):
        TABLE.read(release(), without)
