"""The device that a function under trace is for, which need not be one that is here."""

from typing import NamedTuple

import jax


class Device(NamedTuple):
    """A platform (`cpu`, `gpu`, `tpu`), the vendor's name of the chip, and what is seen of it.

    `whole` says that the arrays under trace are split over several devices by the partitioner: a
    kernel, which it cannot split, must not be used there outside `shard_map`. `checked` says that a
    `shard_map` around checks which arrays vary from device to device (`check_vma`, its default).
    """

    platform: str
    kind: str
    whole: bool = False
    checked: bool = False


def device() -> Device:
    """The device of the mesh under which a function is traced; JAX's default where it names none.

    A mesh that was made without devices names none, and still says what is split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    split = [name for name in mesh.axis_names if name not in mesh.manual_axes]
    whole = any(mesh.shape[name] > 1 for name in split)
    checked = _checked(mesh.manual_axes)
    described = mesh.abstract_device
    if described is not None:
        return Device(described.platform, described.device_kind, whole, checked)
    here = jax.devices()[0]
    return Device(here.platform, here.device_kind, whole, checked)


def _checked(axes: tuple[str, ...]) -> bool:
    """Whether a device's own number, which surely varies along the axes, is known to."""
    kind = jax.typeof(jax.lax.axis_index(axes[0])) if axes else None
    return bool(getattr(getattr(kind, "manual_axis_type", None), "varying", ()))
