"""The device that a function under trace is for, which need not be one that is here."""

from typing import NamedTuple

import jax


class Device(NamedTuple):
    """A platform (`cpu`, `gpu`, `tpu`), the vendor's name of the chip, and what is seen of it.

    `whole` says that the arrays under trace are split over several devices by the partitioner: a
    kernel, which it cannot split, must not be used there outside `shard_map`.
    """

    platform: str
    kind: str
    whole: bool = False


def device() -> Device:
    """The device of the mesh under which a function is traced; without one, JAX's default."""
    mesh = jax.sharding.get_abstract_mesh()
    described = mesh.abstract_device
    if mesh.empty or described is None:
        here = jax.devices()[0]
        return Device(here.platform, here.device_kind)
    split = [name for name in mesh.axis_names if name not in mesh.manual_axes]
    whole = any(mesh.shape[name] > 1 for name in split)
    return Device(described.platform, described.device_kind, whole)
