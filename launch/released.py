"""The sizes of released models by name, for recipes."""

from collections.abc import Mapping
from typing import Any, TypeVar

from jscale.errors import ConfigError, did_you_mean
from jscale.models.cards import CARDS

Family = TypeVar("Family")


def released(kind: type[Family], size: str) -> Family:
    """The config of a release, by a size that `jscale models` lists: `released(Mixtral, "8x7b")`.

    Raises:
        ConfigError: there is no such size.
    """
    sizes: Mapping[str, Any] = CARDS[kind].sizes if kind in CARDS else {}
    if size not in sizes:
        raise ConfigError(f"there is no {kind.__name__} {size!r}; {did_you_mean(size, sizes)}")
    return sizes[size]
