"""The border between modules and pytrees.

A network is written as a Flax NNX module, and trained as a plain function of a plain pytree. NNX
objects are built when a function is traced and never cross into or out of a compiled one, so a
train step moves dictionaries of arrays and nothing else.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray, PyTree

from jscale.mesh import Layout
from jscale.models.draws import Drawing
from jscale.models.steered import Placed, Steered, joined, named, only, without

Params = dict[str, Any]


@runtime_checkable
class Config(Protocol):
    """Everything that decides a network's shape; `build` makes the network.

    Activations are of dtype `compute`: the network's first layer casts to it, and every later
    layer follows its input.
    """

    def build(self, rngs: nnx.Rngs, compute: DTypeLike) -> nnx.Module: ...


@dataclass(frozen=True, eq=False)  # compared by identity: a config may hold mappings
class Model:
    """A network without its weights: the shapes and logical axes of these, and its mathematics.

    >>> from jscale.models import Llama
    >>> model = Model(Llama(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64))
    >>> tuple(model.axes["blocks"]["block"]["feed"]["up"])
    ('layers', 'embed', 'mlp')
    >>> model.shapes["blocks"]["block"]["feed"]["up"].shape
    (2, 32, 64)
    """

    config: Config
    compute: str = "float32"  # dtype of activations
    store: str = "float32"  # dtype of weights
    draws: bool = True  # whether it may draw (dropout) where it is given a key: not in evaluation
    frozen: tuple[str, ...] = ()  # patterns of the names of weights that do not learn
    bounded: bool = False  # whether layers keep to bounds that may lose tokens: in a step alone

    @cached_property
    def _split(self) -> tuple[Any, Any]:
        network = nnx.eval_shape(lambda: self._build(nnx.Rngs(0)))
        for path, layer in nnx.iter_graph(network):
            if isinstance(layer, Placed):
                layer.path, layer.bounded = named(path), self.bounded
        return nnx.split(network)

    @cached_property
    def placed(self) -> list[Placed]:
        """The layers that know where their weights are, without these."""
        layers = (layer for _, layer in nnx.iter_graph(self.bind(self.shapes)))
        return [layer for layer in layers if isinstance(layer, Placed)]

    @property
    def warnings(self) -> list[str]:
        """What must be told before it is used, layer by layer, each sentence once."""
        return list(dict.fromkeys(text for layer in self.placed if (text := layer.warning)))

    @cached_property
    def counted(self) -> str | None:
        """The path of a layer whose load something comes of; None where there is none."""
        return next((layer.path for layer in self.placed if layer.counted), None)

    @cached_property
    def limited(self) -> bool:
        """Whether layers have bounds to keep to."""
        return any(layer.limited for layer in self.placed)

    @cached_property
    def tight(self) -> "Model":
        """The same model, which keeps to its bounds and counts what they leave out."""
        return replace(self, bounded=True)

    def _build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.config.build(rngs, jnp.dtype(self.compute))

    @cached_property
    def shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The shape and dtype of every weight, as a nested dictionary."""
        pure = nnx.to_pure_dict(self._split[1])
        stored = lambda s: jax.ShapeDtypeStruct(s.shape, self._dtype(s))
        moved = frozenset(self.steered)
        return joined(jax.tree.map(stored, without(pure, moved)), only(pure, moved))

    def _dtype(self, x: Any) -> Any:
        return jnp.dtype(self.store) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype

    @cached_property
    def steered(self) -> dict[str, float]:
        """The weights that no gradient moves, by path, and how far each moves in a step."""
        return {
            named(path): variable.get_metadata()["rate"]
            for path, variable in nnx.to_flat_state(self._split[1])
            if isinstance(variable, Steered)
        }

    @cached_property
    def _unlearned(self) -> frozenset[str]:
        names = [named(path) for path, _ in nnx.to_flat_state(self._split[1])]
        still = {n for n in names for pattern in self.frozen if fnmatchcase(n, pattern)}
        return frozenset(still | set(self.steered))

    def learned(self, weights: PyTree) -> Any:
        """Of a tree like that of the weights, what an optimizer moves."""
        return without(weights, self._unlearned)

    def unlearned(self, weights: PyTree) -> Any:
        """Of a tree like that of the weights, what is steered or frozen."""
        return only(weights, self._unlearned)

    @cached_property
    def axes(self) -> PyTree[PartitionSpec]:
        """The logical axes of every weight, in the structure of the weights."""
        flat = {}
        for path, variable in nnx.to_flat_state(self._split[1]):
            names = variable.get_metadata().get("out_sharding")
            assert names is not None and len(names) == variable.ndim, (path, names)
            flat[path] = PartitionSpec(*names)
        return traverse_util.unflatten_dict(flat)

    @property
    def size(self) -> int:
        """How many weights there are."""
        return sum(s.size for s in jax.tree.leaves(self.shapes))

    @cached_property
    def shares(self) -> PyTree[float]:
        """Of each weight the share that a token uses: 1, and of experts the few that are chosen."""
        flat = {
            path: variable.get_metadata().get("share", 1.0)
            for path, variable in nnx.to_flat_state(self._split[1])
        }
        return traverse_util.unflatten_dict(flat)

    @property
    def active(self) -> int:
        """How many weights a token uses."""
        used = jax.tree.map(lambda s, share: s.size * share, self.shapes, self.shares)
        return round(sum(jax.tree.leaves(used)))

    def init(self, key: PRNGKeyArray, layout: Layout | None = None) -> Params:
        """Random weights, each born in its shards: no device or host ever holds the whole."""

        def init(key: PRNGKeyArray) -> Params:
            params = nnx.to_pure_dict(nnx.state(self._build(nnx.Rngs(key))))
            return jax.tree.map(lambda w, s: w.astype(s.dtype), params, self.shapes)

        shardings = layout.weight_shardings(self.shapes, self.axes) if layout else None
        return jax.jit(init, out_shardings=shardings)(key)

    @cached_property
    def still(self) -> "Model":
        """The same model, which draws nothing: for evaluation."""
        still = replace(self, draws=False)
        still.__dict__["_split"] = self._split  # known once: not made under whatever mesh is active
        return still

    def bind(self, params: Params, rng: PRNGKeyArray | None = None) -> Any:
        """The network with these weights, to be called while tracing (or eagerly, to look).

        With `rng` it draws what it draws in training: dropout, experts chosen at random.
        """
        graph, state = self._split
        state = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(state, params)
        network = nnx.merge(graph, state)
        if isinstance(network, Drawing) and self.draws:
            network.key = rng
        return network

    def __call__(self, params: Params, *inputs: Array | None, **more: Any) -> Any:
        """What the network returns for these inputs."""
        return self.bind(params)(*inputs, **more)
