"""How known models are laid out on known meshes, written down: a change must be meant.

`python tests/test_golden.py` writes the files anew; read the difference before committing it.
"""

import json
from pathlib import Path

import pytest

from jscale.mesh import Layout, MeshShape, Override, Rules, abstract_mesh, placements
from jscale.models import Llama, Model

FOLDER = Path(__file__).parent / "golden"
LLAMA_8B = Llama(128_256, 4096, 32, 32, 8, 14_336, rope=5e5)
LLAMA_405B = Llama(128_256, 16_384, 126, 128, 8, 53_248, rope=5e5)
TIED = Llama(4096, 192, 4, 4, 2, 512, tied=True)
CASES = {
    "llama-8b-fsdp-64": (LLAMA_8B, MeshShape(fsdp=64), Rules()),
    "llama-8b-data-2-fsdp-16-tensor-8": (LLAMA_8B, MeshShape(data=2, fsdp=16, tensor=8), Rules()),
    "llama-405b-fsdp-512-tensor-8": (LLAMA_405B, MeshShape(fsdp=512, tensor=8), Rules()),
    "llama-405b-pipeline": (LLAMA_405B, MeshShape(stage=9, fsdp=32, tensor=8), Rules()),
    "tied-fsdp-8": (TIED, MeshShape(fsdp=8), Rules()),
    "tied-override": (
        TIED,
        MeshShape(fsdp=4, tensor=2),
        Rules(overrides=(Override("embed/table", {"vocab": ("fsdp", "tensor"), "embed": None}),)),
    ),
}


def dump(config: Llama, shape: MeshShape, rules: Rules) -> dict[str, object]:
    """Every parameter's shape, what splits each dimension, and its bytes on one device."""
    model, layout = Model(config), Layout(abstract_mesh(shape), rules)

    def row(placement):
        split = {
            str(d.axis): [a for a in d.mesh_axes if layout.mesh.shape[a] > 1]
            for d in placement.decisions
        }
        axes = {axis: "*".join(by) or None for axis, by in split.items()}
        return {"shape": list(placement.shape), "split": axes, "bytes": placement.bytes_per_device}

    found = placements(layout, model.shapes, model.axes)
    return {"mesh": str(shape), "parameters": {p.name: row(p) for p in found}}


@pytest.mark.parametrize("name", CASES)
def test_layout_is_as_written_down(name):
    assert dump(*CASES[name]) == json.loads((FOLDER / f"{name}.json").read_text())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(dump(*case), indent=1) + "\n")
