"""The train step: one for every objective."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from jscale.accumulate import Sums, add, gradients
from jscale.audit import squares
from jscale.errors import ConfigError
from jscale.experts.counts import metrics
from jscale.guard import Guard, Watch, judge
from jscale.losses import Batch, Loss, Terms, evaluate_loss, measured
from jscale.mesh import Layout
from jscale.models.load import Loads, penalty
from jscale.models.model import Model, Params
from jscale.models.steered import joined, map_named, moved, named
from jscale.optim import Optimizer
from jscale.optim.placement import state_axes
from jscale.precision import Precision, cast

Metrics = dict[str, Float[Array, "..."]]
COUNTS = ("skipped", "streak", "spikes", "scale", "replays")


class State(NamedTuple):
    """All that training changes. Its `step` is also the position in the data."""

    step: Int[Array, ""]
    params: Params
    optimizer: PyTree[Array]
    rng: UInt32[Array, "..."]
    watch: Watch

    def __repr__(self) -> str:
        arrays = [x for x in jax.tree.leaves(self) if hasattr(x, "dtype")]
        size = sum(x.size * x.dtype.itemsize for x in arrays)
        return f"<State of {len(arrays)} arrays, {size / 1e6:,.1f} MB in all>"


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained and how: all that the step is compiled from."""

    model: Model
    optimizer: optax.GradientTransformation
    loss: Loss
    layout: Layout
    precision: Precision = Precision()
    guard: Guard = Guard()
    accumulate: int = 1
    replays: bool = False  # whether this is the step that is done where tokens found no room

    @property
    def tight(self) -> "Task":
        """The same task, whose layers keep to their bounds: a step that loses tokens is void.

        Where it has none it is the task itself.
        """
        return replace(self, model=self.model.tight) if self.model.limited else self

    @property
    def replay(self) -> "Task":
        """The same task without bounds, for the steps that `tight` could not do."""
        return replace(self, replays=True)


def shapes(task: Task) -> State:
    """The shape, dtype and sharding of every array of the state; nothing is computed.

    Raises:
        ConfigError: the layout cannot be applied to the parameters.
    """
    layout, model = task.layout, task.model
    params = layout.weight_shardings(model.shapes, model.axes)
    specs = jax.tree.map(lambda s: s.spec, model.learned(params))
    moments = state_axes(task.optimizer, model.learned(model.shapes), specs)
    moments = jax.tree.map(lambda spec: NamedSharding(layout.mesh, spec), moments)
    plain = jax.eval_shape(lambda: start(task, jax.random.key(0)))
    whole = jax.tree.map(lambda _: layout.replicated(), plain)
    shardings = whole._replace(params=params, optimizer=moments)
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), plain, shardings
    )


def start(task: Task, key: PRNGKeyArray, params: Params | None = None) -> State:
    params = task.model.init(key) if params is None else params
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=task.optimizer.init(task.model.learned(params)),
        rng=jax.random.key_data(jax.random.fold_in(key, 1)),
        watch=Watch.start(task.precision.scaled),
    )


def init(task: Task, key: PRNGKeyArray) -> State:
    """A fresh state, every array born in its shards."""
    shardings = jax.tree.map(lambda s: s.sharding, shapes(task))
    return jax.jit(lambda key: start(task, key), out_shardings=shardings)(key)


def start_from(task: Task, key: PRNGKeyArray, params: PyTree[Any]) -> State:
    """A fresh state, but for these parameters, put into their shards."""
    shardings = jax.tree.map(lambda s: s.sharding, shapes(task))
    placed = jax.device_put(params, shardings.params)
    return jax.jit(lambda key, params: start(task, key, params), out_shardings=shardings)(
        key, placed
    )


def sharding_of(layout: Layout) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """The sharding of a batch's array by name and shape: rows over the batch's mesh axes, the
    sequence over the length's, further dimensions whole."""

    def where(name: str, shape: tuple[int, ...]) -> NamedSharding:
        axes = ("batch", "length")[: len(shape)]
        return layout.activation_sharding(*axes, *(None,) * (len(shape) - len(axes)))

    return where


def update(task: Task, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One step of training: the mathematics, not yet compiled."""
    model, steered = task.model, task.model.unlearned(state.params)
    learned = model.learned(state.params)
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    where = model.learned(task.layout.weight_shardings(model.shapes, model.axes))

    def terms(params: Params, batch: Batch, rng: PRNGKeyArray) -> Terms:
        return evaluate_loss(task.loss, model, joined(params, steered), batch, rng)

    with task.layout.active():
        params = cast(learned, task.precision.reduce)
        scale = state.watch.scale if task.precision.scaled else None
        grads, sums = gradients(terms, params, batch, rng, task.accumulate, scale)
    check_loads(task, sums.loads)
    # Left free, a gradient may come back without its sharding: pin it.
    grads = jax.lax.with_sharding_constraint(grads, where)
    with jax.named_scope("guard"):
        each = squares(grads, model.learned(model.axes))
        norm = jnp.sqrt(jnp.stack([rows.sum() for rows in each.values()]).sum())
        loss = means(sums)["loss"]
        finite = jnp.isfinite(norm) & jnp.isfinite(loss) & (sums.weight > 0)
        apply, watch = judge(task.guard, state.watch, loss, finite, task.precision.scaled)
        watch = watch._replace(replays=watch.replays + task.replays)
    with jax.named_scope("optimizer"):
        now, fits = state._replace(params=learned), nothing_lost(sums.loads)
        apply &= fits
        learned, moments = apply_where(apply, partial(descend, task, where, norm), now, grads)
        steered = steer(model, steered, sums.loads, apply)
        step, watch = jax.tree.map(
            lambda new, old: jnp.where(fits, new, old),
            (state.step + 1, watch),
            (state.step, state.watch),
        )
        new = State(step, joined(learned, steered), moments, state.rng, watch)
    more = {**metrics(sums.loads, steered), **each}
    return new, {**report(sums, norm, watch), **more}


def nothing_lost(loads: Loads) -> Bool[Array, ""]:
    """Whether every choice found room on its device."""
    return jnp.all(jnp.array([load.overflow.sum() == 0 for load in loads.values()], bool))


def check_loads(task: Task, loads: Loads) -> None:
    """See that the loss hands on what experts had to do, where something comes of it.

    Raises:
        ConfigError: it does not.
    """
    if not loads and (layer := task.model.counted):
        raise ConfigError(
            f"loss={type(task.loss).__name__} leaves out the load of {layer}, by which its experts"
            " are balanced: return Terms(…, loads=output.loads)"
        )


def steer(model: Model, weights: PyTree, loads: Loads, apply: Bool[Array, ""]) -> PyTree:
    """The weights that no gradient moves, after a step with these loads that is applied or not."""

    def new(path: tuple[Any, ...], old: Array) -> Array:
        name = named(path)
        load = loads.get(name.rpartition("/")[0])
        if name not in model.steered or load is None:  # frozen, or of no use to this loss
            return old
        return jnp.where(apply, moved(old, load.chosen, model.steered[name]), old)

    return map_named(new, weights)


Updated = tuple[Params, PyTree[Array]]


def descend(
    task: Task, where: PyTree[NamedSharding], norm: Array, state: State, grads: PyTree
) -> Updated:
    """The parameters and the optimizer's state after this gradient of that global norm."""
    grads = jax.tree.map(lambda g, w: g.astype(w.dtype), grads, state.params)
    # Clipping takes the norm as it is: no second reading of all gradients.
    optimizer = optax.with_extra_args_support(task.optimizer)
    updates, moments = optimizer.update(grads, state.optimizer, state.params, norm=norm)
    params = optax.apply_updates(state.params, updates)
    return jax.lax.with_sharding_constraint(params, where), moments


def apply_where(
    apply: Bool[Array, ""], update: Callable[..., Updated], state: State, grads: PyTree[Array]
) -> Updated:
    """`update(state, grads)` where `apply`, else what was.

    On CPU as a branch: choosing number by number there copies the whole optimizer state first. On
    other devices a branch may make the host wait for the gradient, and choosing costs nothing.
    """

    def choose(apply: Array, state: State, grads: PyTree[Array]) -> Updated:
        old = state.params, state.optimizer
        return jax.tree.map(lambda a, b: jnp.where(apply, a, b), update(state, grads), old)

    def branch(apply: Array, state: State, grads: PyTree[Array]) -> Updated:
        skip = lambda state, grads: (state.params, state.optimizer)
        return jax.lax.cond(apply, update, skip, state, grads)

    return jax.lax.platform_dependent(apply, state, grads, cpu=branch, default=choose)


def means(sums: Sums) -> dict[str, Any]:
    """The mean loss and metrics, and the tokens (or other terms) that they are means of."""
    mean = lambda total, count: total / jnp.where(count == 0, 1.0, count)
    each = {name: mean(*pair) for name, pair in sums.metrics.items()}
    loss = mean(sums.loss, sums.weight) + penalty(sums.loads)
    return {**each, "loss": loss, "tokens": sums.weight}


def report(sums: Sums, norm: Array, watch: Watch) -> Metrics:
    counts = {name: getattr(watch, name) for name in COUNTS}
    out = {**means(sums), "grad_norm": norm, **counts}
    return {name: jnp.asarray(value, jnp.float32) for name, value in out.items()}


def evaluation_params(model: Model, optimizer: Optimizer, state: State) -> Params:
    """The parameters to evaluate and to release, which may differ from those being trained."""
    learned = optimizer.evaluation_params(model.learned(state.params), state.optimizer)
    return joined(learned, model.unlearned(state.params))


def make_step(task: Task) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The jitted step; it consumes (donates) the state that it is given.

    Where layers have bounds and tokens found no room, the state comes back as it was, with the
    count of them in `moe_overflow`: the step of `task.replay` does it then.
    """
    shardings = jax.tree.map(lambda s: s.sharding, shapes(task))
    task = task if task.replays else task.tight

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:  # its name in traces
        return update(task, state, batch)

    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(shardings, task.layout.replicated()),
    )


@lru_cache(maxsize=8)
def make_evaluation(task: Task) -> Callable[[Params, Batch], Sums]:
    """A jitted function of parameters and batch that gives the sums of the loss, no gradient.

    The loss is that which is `measured`: no label smoothing.
    """
    loss, model = measured(task.loss), task.model.still

    def evaluate(params: Params, batch: Batch) -> Sums:
        with task.layout.active():
            sums = add(evaluate_loss(loss, model, params, batch, jax.random.key(0)))
            return sums._replace(loss=sums.loss + penalty(sums.loads) * sums.weight, loads={})

    return jax.jit(evaluate, out_shardings=task.layout.replicated())
