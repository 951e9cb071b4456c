"""The mesh: six named axes over the devices, any of which may be 1.

From the slowest links to the fastest:

    stage    pipeline stages                    data     replicas of the whole model
    fsdp     weights split, gathered when used  expert   experts of a mixture
    context  the sequence split                 tensor   single matrices split
"""

import math
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from jscale.errors import ConfigError
from jscale.mesh.devices import devices as all_devices

MESH_AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")
CROSSING = MESH_AXES[:3]  # axes that may lie across slow links


@dataclass(frozen=True)
class MeshShape:
    """How many ways each axis splits the devices; their product is the number of devices used.

    Raises:
        ConfigError: an axis is not a positive integer.
    """

    stage: int = 1  # pipeline stages
    data: int = 1  # replicas of the whole model
    fsdp: int = 1  # ways the weights are split, gathered when used
    expert: int = 1  # ways the experts of a mixture are split
    context: int = 1  # ways the sequence is split
    tensor: int = 1  # ways single matrices are split

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(
                    f"mesh axis {field.name!r} must be at least 1, not {getattr(self, field.name)};"
                    " 1 means that the axis splits nothing"
                )

    @property
    def devices(self) -> int:
        return math.prod(astuple(self))

    def __str__(self) -> str:
        used = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)]
        return " ".join(u for u in used if not u.endswith("=1")) or "one device"


def factorizations(devices: int, shape: MeshShape) -> list[str]:
    """A few meshes near `shape` that use exactly `devices` devices, for an error message."""
    out = []
    for axis in ("fsdp", "data", "tensor"):
        rest = replace(shape, **{axis: 1}).devices
        if devices % rest == 0:
            out.append(str(replace(shape, **{axis: devices // rest})))
    return list(dict.fromkeys(out + [str(MeshShape(fsdp=devices))]))[:3]


def slices(devices: list[Any]) -> int:
    """How many TPU slices or GPU nodes the devices span: 1 when no slow link lies between."""
    index = {getattr(d, "slice_index", 0) or 0 for d in devices}
    if len(index) > 1:
        return len(index)
    gpu = devices[0].platform == "gpu"
    return len({d.process_index for d in devices}) if gpu else 1


def split_over_slices(shape: MeshShape, count: int) -> tuple[list[int], list[int]]:
    """Factor each axis into (within a slice, across slices), the outermost axes crossing first.

    Raises:
        ConfigError: no split of the outer axes covers the slices.
    """
    inner, outer, left = list(astuple(shape)), [1] * len(MESH_AXES), count
    for i in range(len(CROSSING)):
        outer[i] = math.gcd(inner[i], left)
        inner[i] //= outer[i]
        left //= outer[i]
    if left > 1:
        raise ConfigError(
            f"the mesh ({shape}) cannot be laid over {count} slices: only {', '.join(CROSSING)} may"
            f" cross from one to another, so make one of these a multiple of {count}"
        )
    return inner, outer


def arrange(shape: MeshShape, devices: list[Any]) -> np.ndarray:
    """Devices as an array of the mesh's shape, neighbours on fast links along the last axes."""
    if devices[0].platform == "cpu":
        return np.asarray(devices).reshape(astuple(shape))
    count = slices(devices)
    if count == 1:
        return mesh_utils.create_device_mesh(
            astuple(shape), devices, allow_split_physical_axes=True
        )
    inner, outer = split_over_slices(shape, count)
    by_process = len({getattr(d, "slice_index", 0) or 0 for d in devices}) == 1
    return mesh_utils.create_hybrid_device_mesh(
        inner,
        outer,
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=True,
    )


def make_mesh(
    shape: MeshShape | None = None, devices: list[Any] | None = None, **axes: int
) -> Mesh:
    """A mesh of real devices: `make_mesh(fsdp=4, tensor=2)`, or `make_mesh(MeshShape(...))`.

    Every one of `MESH_AXES` is present; those not named have size 1. Axes are Auto: the SPMD
    partitioner decides what is not stated. Given fewer axes than devices, the first ones are used.

    Raises:
        ConfigError: an unknown axis, or more devices asked for than there are.
    """
    unknown = set(axes) - set(MESH_AXES)
    if unknown:
        raise ConfigError(f"no mesh axis {unknown.pop()!r}; the axes are {', '.join(MESH_AXES)}")
    shape = shape or MeshShape(**axes)
    present = list(devices) if devices is not None else all_devices()
    if shape.devices > len(present):
        raise ConfigError(
            f"the mesh ({shape}) needs {shape.devices} devices and there are {len(present)};"
            f" these fit: {'; '.join(factorizations(len(present), shape))}; or simulate more"
            f" on the processor: --devices {shape.devices}, jscale.simulate({shape.devices})"
        )
    grid = arrange(shape, present[: shape.devices])
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def abstract_mesh(shape: MeshShape) -> AbstractMesh:
    """The mesh without devices: shardings, shapes and lowering work on it, running does not."""
    return AbstractMesh(astuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
