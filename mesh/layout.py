"""Logical axes to mesh axes.

Models name their dimensions ("embed", "heads"); a `Layout` says which mesh axes, if any, each name
is split over. Changing the parallelism of a model means changing its layout, never its code.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from jscale.errors import ConfigError, did_you_mean
from jscale.mesh.rules import MeshAxes, Rules, as_tuple

Axes = PartitionSpec  # of logical names, until a layout makes it one of mesh axes

_current: ContextVar["Layout | None"] = ContextVar("layout", default=None)


class Decision(NamedTuple):
    """What became of one dimension: its logical axis, the mesh axes that split it, and why."""

    axis: str | None
    mesh_axes: tuple[str, ...]
    reason: str


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a parameter, `blocks/block/feed/up`, from its path in the tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@dataclass(frozen=True, eq=False)  # compared by identity: rules are mappings, and have no hash
class Layout:
    """A mesh (real or abstract) and the rules that lay arrays out on it.

    Raises:
        ConfigError: a rule names a mesh axis that the mesh does not have.
    """

    mesh: Mesh | AbstractMesh
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        tables = [self.rules.weights, self.rules.activations]
        tables += [override.weights for override in self.rules.overrides]
        for table in tables:
            for axis, wanted in table.items():
                self._check_exists(axis, wanted)

    def _check_exists(self, axis: str, wanted: MeshAxes) -> None:
        for name in as_tuple(wanted):
            if name not in self.mesh.shape:
                raise ConfigError(
                    f"the rule for logical axis {axis!r} names mesh axis {name!r}, which the mesh"
                    f" does not have; {did_you_mean(name, self.mesh.shape)}"
                )

    def _table(self, parameter: str) -> tuple[dict[str, MeshAxes], dict[str, str]]:
        """The weights' table for one parameter, and for each axis which override decided it."""
        table, decided = dict(self.rules.weights), {}
        for override in self.rules.overrides:
            if override.matches(parameter):
                table |= override.weights
                decided |= dict.fromkeys(override.weights, f"override {override.pattern!r}")
        return table, decided

    def decide(self, parameter: str, axes: Axes, shape: tuple[int, ...]) -> list[Decision]:
        """What becomes of each dimension of a parameter, and why.

        Raises:
            ConfigError: a logical axis has no rule, its size does not divide, or two dimensions
                want the same mesh axis.
        """
        table, decided = self._table(parameter)
        where = f"parameter {parameter} {tuple(axes)} of shape {shape}"
        if len(axes) != len(shape):
            raise ConfigError(f"{where} names {len(axes)} axes for {len(shape)} dimensions")
        taken: dict[str, str] = {}
        out = []
        for axis, size in zip(axes, shape, strict=True):
            wanted, reason = self._wanted(axis, table, decided.get(axis or "", "rule"), where)
            free = self._free(axis, wanted, taken, where)
            given = [a for a in wanted if a not in free and self.mesh.shape[a] > 1]
            if given:
                reason = "; ".join(f"{axis} gave {a} to {taken[a]}" for a in given)
            self._check_divides(axis, size, free, where)
            out.append(Decision(axis, free, reason))
        return out

    def _wanted(
        self, axis: str | None, table: dict[str, MeshAxes], reason: str, where: str
    ) -> tuple[tuple[str, ...], str]:
        if axis is None:
            return (), "no name"
        if axis not in table:
            raise ConfigError(f"{where}: no rule for axis {axis!r}; {did_you_mean(axis, table)}")
        return as_tuple(table[axis]), reason

    def _free(
        self, axis: str | None, wanted: tuple[str, ...], taken: dict[str, str], where: str
    ) -> tuple[str, ...]:
        """The wanted mesh axes that no earlier dimension has taken; marks them as taken."""
        clash = [a for a in wanted if a in taken]
        if clash and self.mesh.shape[clash[0]] > 1 and axis not in self.rules.yields:
            raise ConfigError(
                f"{where}: axes {taken[clash[0]]!r} and {axis!r} both want mesh axis {clash[0]!r};"
                f" give one of them another rule, or let the later one give way wherever they meet:"
                f" rules.yields=({taken[clash[0]]!r}, {axis!r})"
            )
        free = tuple(a for a in wanted if a not in taken)
        taken.update(dict.fromkeys(free, str(axis)))
        return free

    def _check_divides(
        self, axis: str | None, size: int, free: tuple[str, ...], where: str
    ) -> None:
        ways = math.prod(self.mesh.shape[a] for a in free)
        if size % ways == 0:
            return
        sizes = ", ".join(f"{a}={self.mesh.shape[a]}" for a in free)
        legal = max(d for d in range(1, ways + 1) if size % d == 0 and ways % d == 0)
        raise ConfigError(
            f"{where}: axis {axis!r} of size {size} does not divide over {sizes}; the nearest that"
            f" does is {legal} way(s), or keep it whole: rules.weights.{axis}=None (and"
            f" rules.activations.{axis}=None)"
        )

    def weight_spec(self, parameter: str, axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
        """The partition spec of a parameter with these logical axes; raises as `decide` does."""
        return PartitionSpec(*(d.mesh_axes or None for d in self.decide(parameter, axes, shape)))

    def weight_shardings(self, shapes: PyTree, axes: PyTree) -> PyTree[NamedSharding]:
        """The shardings of a tree of parameters, from their shapes and logical axes.

        Raises:
            ConfigError: as `decide`; or an override matches no parameter.
        """
        names: list[str] = []

        def place(path: tuple, shape: Any, axes: Axes) -> NamedSharding:
            names.append(path_name(path))
            return NamedSharding(self.mesh, self.weight_spec(names[-1], axes, shape.shape))

        out = jax.tree_util.tree_map_with_path(place, shapes, axes)
        for override in self.rules.overrides:
            if not any(override.matches(name) for name in names):
                raise ConfigError(
                    f"the override {override.pattern!r} matches no parameter;"
                    f" {did_you_mean(override.pattern, names)}"
                )
        return out

    def activation_spec(self, axes: Axes) -> PartitionSpec:
        """The partition spec of an activation with these logical axes; raises as `decide` does."""
        taken: dict[str, str] = {}
        where = f"an activation {tuple(axes)}"
        parts = []
        for axis in axes:
            wanted, _ = self._wanted(axis, dict(self.rules.activations), "", where)
            parts.append(self._free(axis, wanted, taken, where) or None)
        return PartitionSpec(*parts)

    def activation_sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, self.activation_spec(Axes(*axes)))

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_ways(self) -> int:
        """How many ways the rules split a batch: its size must be a multiple of this."""
        return self._ways("batch")

    @property
    def length_ways(self) -> int:
        """How many ways the rules split a sequence: its length must be a multiple of this."""
        return self._ways("length")

    def _ways(self, axis: str) -> int:
        return math.prod(self.mesh.shape[a] for a in as_tuple(self.rules.activations.get(axis)))

    @cached_property
    def decoding(self) -> "Layout":
        """This layout for text that grows by one token at a time: a length of 1 is not split."""
        activations = {**self.rules.activations, "length": None}
        return Layout(self.mesh, replace(self.rules, activations=activations))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make `constrain` mean this layout, and JAX know of its mesh, by which kernels learn what
        device they are for. Enter it inside a traced function, never around one: jit does not see
        it, so entering it outside would let a cached trace keep an old layout."""
        token = _current.set(self)
        mesh = self.mesh if isinstance(self.mesh, AbstractMesh) else self.mesh.abstract_mesh
        try:
            with jax.sharding.use_abstract_mesh(mesh):
                yield
        finally:
            _current.reset(token)


def current() -> Layout | None:
    """The layout that is active while tracing, if any."""
    return _current.get()


def constrain(x: Shaped[Array, "*shape"], *axes: str | None) -> Shaped[Array, "*shape"]:
    """Lay an activation out by its logical axes. Outside a layout this is the identity."""
    layout = current()
    if layout is None:
        return x
    if len(axes) != x.ndim:
        raise ConfigError(f"constrain names {len(axes)} axes {axes} for an array of {x.ndim}")
    return jax.lax.with_sharding_constraint(x, layout.activation_sharding(*axes))
