"""What the compiler of TPUs makes of a train step, read; its text differs from the processor's."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from jscale.ahead import compile_for
from jscale.launch.recipes.tiny import recipe
from jscale.mesh import MeshShape, abstract_mesh
from jscale.mesh.collectives import collectives
from jscale.mesh.scopes import Scope
from jscale.models import Llama
from jscale.precision import Precision

MESH = MeshShape(fsdp=4, tensor=2)
LAYERS, BFLOAT16, FLOAT32 = 3, 2, 4


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("libtpu") is None, reason="needs libtpu: pip install 'jscale[oracle]'"
)
def test_weights_are_gathered_each_way_and_gradients_reduced() -> None:
    tiny = recipe()
    model = Llama(512, 512, LAYERS, heads=8, kv_heads=4, hidden=1024, head=128, remat="full")
    value = replace(
        tiny,
        model=model,
        data=replace(tiny.data, length=256, batch=16),
        precision=Precision(compute="bfloat16"),
        mesh=MESH,
    )
    found = collectives(compile_for(value, "v5e-8").program, abstract_mesh(MESH))
    assert {axis for c in found for axis in c.axes} == {"fsdp", "tensor"}
    weights = {  # of a layer, in elements; a device has half of them, the other half is of "tensor"
        "layers/attend": 512 * 128 * (8 + 4 + 4 + 8),
        "layers/feed": 3 * 512 * 1024,
    }
    for name, size in weights.items():
        for backward in (False, True):  # the loop's length is nowhere noted: it is inferred
            mine = [c for c in found if c.times == LAYERS and c.scope == Scope(name, backward)]
            gathered = [c for c in mine if c.kind == "all-gather"]
            assert {c.axes for c in gathered} == {("fsdp",)}
            bytes_gathered = sum(c.result_bytes for c in gathered)
            # On the way back a weight may be gathered again for the recomputation.
            wanted = size // 2 * BFLOAT16
            assert wanted <= bytes_gathered <= (2 if backward else 1) * wanted
    reduced = [c for c in found if c.times == LAYERS and c.axes == ("fsdp",) and "reduce" in c.kind]
    assert "reduce-scatter" in {c.kind for c in reduced}
    assert sum(c.operand_bytes for c in reduced) == sum(weights.values()) // 2 * FLOAT32
