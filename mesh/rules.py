"""Rules: which mesh axes each logical axis is split over, as data.

Weights and activations have a table each, over the same logical names: splitting "embed" of the
weights but not of the activations is what FSDP is. A rule that cannot be applied raises; the two
ways of bending one are written into the rules themselves, and shown: an `Override` for the
parameters that a pattern matches, and `yields`, the logical axes that give way when an earlier
dimension of the same array has already taken their mesh axis.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jscale.errors import ConfigError
from jscale.mesh.exchange import AllToAll, Gather, Ring

MeshAxes = str | tuple[str, ...] | None


def as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


WEIGHTS: dict[str, MeshAxes] = {
    "layers": "stage",
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "experts": "expert",
    "scale": None,
}

ACTIVATIONS: dict[str, MeshAxes] = {
    "batch": ("data", "fsdp", "expert"),
    "length": "context",
    "keys": None,
    "embed": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "experts": "expert",
    "vocab": "tensor",
}


@dataclass(frozen=True)
class Override:
    """For the parameters whose whole name matches `pattern`, other rules for some logical axes.

    Names are paths such as `blocks/block/feed/up`; the pattern is a regular expression.
    """

    pattern: str  # of the whole name of a parameter, as a regular expression
    weights: Mapping[str, MeshAxes]  # rules that differ for it

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(
                f"the pattern {self.pattern!r} of a rule is no regular expression: {error}"
            ) from error

    def matches(self, name: str) -> bool:
        return re.fullmatch(self.pattern, name) is not None


@dataclass(frozen=True)
class Rules:
    """How logical axes map to mesh axes.

    `weights` and `activations` give each logical axis the mesh axes it is split over (a name, a
    tuple of names, or None for none). `overrides` apply to parameters by name, the last match
    winning. `yields` names the logical axes that are left whole where an earlier dimension of the
    same array has taken their mesh axis; any other such conflict is an error. `exchange` is what
    attention exchanges where several devices share a sequence; None: chosen by heads and lengths.
    """

    weights: Mapping[str, MeshAxes] = field(default_factory=lambda: dict(WEIGHTS))
    activations: Mapping[str, MeshAxes] = field(default_factory=lambda: dict(ACTIVATIONS))
    overrides: tuple[Override, ...] = ()
    yields: tuple[str, ...] = ()
    exchange: Gather | Ring | AllToAll | None = None

    def with_weights(self, **axes: MeshAxes) -> "Rules":
        """These rules with other axes for some weights: `Rules().with_weights(embed="data")`."""
        return replace(self, weights={**self.weights, **axes})
