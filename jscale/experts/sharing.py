"""How many devices share the experts of each layer, by what a run wrote of its layout."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

EXPERT = "/expert/"  # stands between a layer's path and its experts' weights


class Sharing(NamedTuple):
    """The number of devices by the path of the layer's weights, and the mesh axes that they are."""

    devices: Mapping[str, int]
    axes: tuple[str, ...] = ()

    def of(self, name: str) -> int:
        """Of a layer, or of the stack that it is in; 1 where nothing is known."""
        return self.devices.get(name, self.devices.get(name.rpartition("/")[0], 1))


ALONE = Sharing({})


def sharing_of(layout: Mapping[str, Any]) -> Sharing:
    """By `layout.json`, or by `jscale.explain.as_data`; nobody where it is not as jscale writes it.

    >>> dimension = {"axis": "experts", "size": 8, "over": ["expert"]}
    >>> weights = {"feed/routed/expert/up/kernel": {"dimensions": [dimension]}}
    >>> sharing_of({"mesh": {"expert": 4}, "parameters": weights}).of("feed/routed/0")
    4
    """
    devices: dict[str, int] = {}
    axes: tuple[str, ...] = ()
    try:
        for name, about in layout.get("parameters", {}).items():
            for dimension in about["dimensions"] if EXPERT in name else ():
                if dimension["axis"] == "experts":
                    over = [axis for axis in dimension["over"] if layout["mesh"][axis] > 1]
                    axes = tuple(dict.fromkeys((*axes, *over)))
                    count = math.prod(layout["mesh"][axis] for axis in over)
                    devices[name.partition(EXPERT)[0]] = count
    except (KeyError, TypeError, AttributeError):
        return ALONE
    return Sharing(devices, axes)
