"""Rules: what they say is done, and what cannot be done is said."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jscale.mesh import (
    Layout,
    MeshShape,
    Override,
    Rules,
    abstract_mesh,
    choose,
    constrain,
    make_mesh,
    placements,
)
from jscale.mesh.rules import as_tuple
from jscale.mesh.shape import MESH_AXES, split_over_slices
from jscale.models import Llama, Model

LLAMA = Model(Llama(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64))


def layout(rules=None, **axes):
    return Layout(abstract_mesh(MeshShape(**axes)), rules or Rules())


def test_weights_and_activations_have_their_own_rules():
    here = layout(fsdp=2, tensor=2)
    assert here.weight_spec("w", P("embed", "mlp"), (32, 64)) == P(("fsdp",), ("tensor",))
    assert here.activation_spec(P("batch", "length", "embed")) == P(
        ("data", "fsdp", "expert"), ("context",), None
    )


def error(call, *args):
    with pytest.raises(ValueError) as caught:
        call(*args)
    return str(caught.value)


def test_a_size_that_does_not_divide_names_parameter_sizes_and_the_nearest_choice():
    said = error(layout(tensor=4).weight_shardings, LLAMA.shapes, LLAMA.axes)
    assert "blocks/block/attend/k" in said and "kv_heads" in said and "size 2" in said
    assert "tensor=4" in said and "2 way(s)" in said and "rules.weights.kv_heads=None" in said


def test_a_logical_axis_without_a_rule_is_an_error():
    said = error(layout().weight_spec, "w", P("embde"), (8,))
    assert "no rule for axis 'embde'" in said and "did you mean 'embed'" in said


def test_a_rule_that_names_no_mesh_axis_is_an_error():
    said = error(layout, Rules().with_weights(mlp="tensro"))
    assert "'mlp'" in said and "did you mean 'tensor'" in said


def test_two_dimensions_that_want_one_mesh_axis_are_an_error_unless_one_yields():
    rules = Rules().with_weights(mlp="fsdp")
    said = error(layout(rules, fsdp=2).weight_spec, "w", P("embed", "mlp"), (8, 8))
    assert "'embed' and 'mlp' both want mesh axis 'fsdp'" in said
    assert "rules.yields=('embed', 'mlp')" in said
    bent = Rules(weights=rules.weights, yields=("embed", "mlp"))
    layout(bent, fsdp=2).weight_shardings(LLAMA.shapes, LLAMA.axes)
    decisions = layout(bent, fsdp=2).decide("w", P("embed", "mlp"), (8, 8))
    assert [d.mesh_axes for d in decisions] == [("fsdp",), ()]
    assert decisions[1].reason == "mlp gave fsdp to embed"
    assert layout(bent).decide("w", P("embed", "mlp"), (8, 8))[1].reason == "rule"


def test_an_override_decides_for_the_parameters_it_matches():
    rules = Rules(overrides=(Override("blocks/.*/down", {"mlp": None}),))
    rows = {p.name: p for p in placements(layout(rules, tensor=2), LLAMA.shapes, LLAMA.axes)}
    down, up = rows["blocks/block/feed/down"], rows["blocks/block/feed/up"]
    assert down.decisions[1].mesh_axes == () and "override" in down.decisions[1].reason
    assert up.decisions[2].mesh_axes == ("tensor",) and up.bytes_per_device == up.bytes // 2


def test_an_override_that_matches_nothing_is_an_error():
    rules = Rules(overrides=(Override("block/.*/down", {"mlp": None}),))
    assert "matches no parameter" in error(layout(rules).weight_shardings, LLAMA.shapes, LLAMA.axes)
    assert "regular expression" in error(Override, "(", {})


def test_constrain_is_the_identity_outside_a_layout_and_checks_inside():
    x = jax.numpy.ones((8, 4, 2))
    assert constrain(x, "batch", "length", "embed") is x
    here = Layout(make_mesh(data=8))

    def inside(x):
        with here.active():
            return constrain(x, "batch", "length", "embed")

    out = jax.jit(inside)(x)
    assert out.sharding.shard_shape(out.shape) == (1, 4, 2)
    with here.active():
        assert "names 2 axes" in error(constrain, x, "batch", "length")


@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=6, max_size=6), st.data())
def test_spec_splits_each_dimension_evenly_and_uses_no_mesh_axis_twice(sizes, data):
    mesh = abstract_mesh(MeshShape(**dict(zip(MESH_AXES, sizes, strict=True))))
    names = data.draw(st.lists(st.sampled_from(list(Rules().weights)), max_size=4))
    shape = tuple(data.draw(st.integers(1, 24)) for _ in names)
    try:
        spec = Layout(mesh).weight_spec("w", P(*names), shape)
    except ValueError as problem:
        assert "divide" in str(problem) or "both want" in str(problem)
        return
    parts = [as_tuple(part) for part in spec]
    used = [axis for part in parts for axis in part]
    assert len(used) == len(set(used))
    for size, part in zip(shape, parts, strict=True):
        ways = 1
        for axis in part:
            ways *= mesh.shape[axis]
        assert size % ways == 0


def test_more_devices_than_there_are_shows_what_fits():
    said = error(lambda: make_mesh(fsdp=3, tensor=4))
    assert "needs 12 devices and there are 8" in said and "fsdp=8" in said
    assert "no mesh axis 'modle'" in error(lambda: make_mesh(modle=2))
    assert "must be at least 1" in error(lambda: MeshShape(data=0))


def test_fewer_devices_than_there_are_is_fine():
    assert make_mesh(fsdp=2).devices.size == 2
    assert make_mesh().shape == dict.fromkeys(MESH_AXES, 1)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 7, 8, 12, 64])
def test_the_chosen_mesh_is_legal_and_uses_all_devices_it_can(devices):
    shape, reason = choose(devices, Rules(), LLAMA.shapes, LLAMA.axes, 48)
    Layout(abstract_mesh(shape)).weight_shardings(LLAMA.shapes, LLAMA.axes)
    assert 48 % (shape.data * shape.fsdp) == 0 and reason
    expected = {7: 6, 64: 48}.get(devices, devices)  # 48 rows do not divide over 7 or 64
    assert shape.devices == expected


def test_slices_are_crossed_by_the_outer_axes():
    inner, outer = split_over_slices(MeshShape(data=4, fsdp=8, tensor=2), 2)
    assert outer == [1, 2, 1, 1, 1, 1] and inner == [1, 2, 8, 1, 1, 2]
    inner, outer = split_over_slices(MeshShape(data=2, fsdp=8), 4)
    assert outer == [1, 2, 2, 1, 1, 1] and inner == [1, 1, 4, 1, 1, 1]
    assert "3 slices" in error(split_over_slices, MeshShape(fsdp=8), 3)
