"""Devices are ordered so that the outer axes cross the slow links."""

from dataclasses import dataclass

import pytest

from jscale.mesh import MeshShape
from jscale.mesh.shape import arrange, slices


@dataclass(frozen=True)
class Gpu:
    """As much of a GPU as the ordering looks at."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


def cluster(nodes: int, each: int) -> list[Gpu]:
    return [Gpu(i, i // each) for i in range(nodes * each)]


@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(data=2, fsdp=4, tensor=2),
        MeshShape(fsdp=8, tensor=2),
        MeshShape(data=4, tensor=4),
        MeshShape(stage=2, tensor=8),
    ],
    ids=str,
)
def test_the_inner_axes_stay_within_a_node(shape):
    devices = cluster(2, 8)
    assert slices(devices) == 2
    grid = arrange(shape, devices)
    assert sorted(d.id for d in grid.flat) == list(range(16))
    for row in grid.reshape(-1, shape.tensor):
        assert len({d.process_index for d in row}) == 1, "tensor never crosses nodes"


def test_a_mesh_whose_inner_axes_would_cross_is_refused():
    with pytest.raises(ValueError, match="cannot be laid over 3 slices"):
        arrange(MeshShape(fsdp=4, tensor=6), cluster(3, 8))
