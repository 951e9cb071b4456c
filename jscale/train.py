"""The train step: one for every objective."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt32

from jscale.accumulate import Sums, add, gradients
from jscale.guard import Guard, Watch, judge
from jscale.losses import Batch, Loss
from jscale.mesh import Layout
from jscale.models.model import Model, Params
from jscale.optim.placement import state_axes
from jscale.precision import Precision, cast

Metrics = dict[str, Float[Array, ""]]


class State(NamedTuple):
    """All that training changes. Its `step` is also the position in the data."""

    step: Int[Array, ""]
    params: Params
    optimizer: PyTree[Array]
    rng: UInt32[Array, "..."]
    watch: Watch


@dataclass(frozen=True)
class Task:
    """What is trained and how: all that the step is compiled from."""

    model: Model
    optimizer: optax.GradientTransformation
    loss: Loss
    layout: Layout
    precision: Precision = Precision()
    guard: Guard = Guard()
    accumulate: int = 1


def shapes(task: Task) -> State:
    """The shape, dtype and sharding of every array of the state; nothing is computed.

    Raises:
        ConfigError: the layout cannot be applied to the parameters.
    """
    layout, model = task.layout, task.model
    params = layout.weight_shardings(model.shapes, model.axes)
    specs = jax.tree.map(lambda s: s.spec, params)
    moments = state_axes(task.optimizer, model.shapes, specs)
    moments = jax.tree.map(lambda spec: NamedSharding(layout.mesh, spec), moments)
    plain = jax.eval_shape(lambda: start(task, jax.random.key(0)))
    whole = jax.tree.map(lambda _: layout.replicated(), plain)
    shardings = whole._replace(params=params, optimizer=moments)
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), plain, shardings
    )


def start(task: Task, key: PRNGKeyArray) -> State:
    params = task.model.init(key)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=task.optimizer.init(params),
        rng=jax.random.key_data(jax.random.fold_in(key, 1)),
        watch=Watch.start(task.precision.scaled),
    )


def init(task: Task, key: PRNGKeyArray) -> State:
    """A fresh state, every array born in its shards."""
    shardings = jax.tree.map(lambda s: s.sharding, shapes(task))
    return jax.jit(lambda key: start(task, key), out_shardings=shardings)(key)


def batch_shardings(layout: Layout, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Rows over the batch's mesh axes, the sequence over the length's."""
    names = ("batch", "length")
    sharding = lambda x: layout.activation_sharding(*names[: x.ndim], *(None,) * (x.ndim - 2))
    return {name: sharding(x) for name, x in batch.items()}


def update(task: Task, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One step of training: the mathematics, not yet compiled."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    where = task.layout.weight_shardings(task.model.shapes, task.model.axes)
    with task.layout.active():
        terms = lambda params, batch, rng: task.loss(task.model, params, batch, rng)
        params = cast(state.params, task.precision.reduce)
        grads, sums = gradients(terms, params, batch, rng, task.accumulate, state.watch.scale)
    # Left free, a gradient may come back without its sharding: pin it.
    grads = jax.lax.with_sharding_constraint(grads, where)
    norm = optax.tree.norm(grads)
    loss = sums.loss / jnp.where(sums.weight == 0, 1.0, sums.weight)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss) & (sums.weight > 0)
    apply, watch = judge(task.guard, state.watch, loss, finite, task.precision.scaled)
    grads = jax.tree.map(lambda g, w: g.astype(w.dtype), grads, state.params)
    updates, moments = task.optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    params = jax.lax.with_sharding_constraint(params, where)
    keep = lambda new, old: jnp.where(apply, new, old)
    new = State(
        step=state.step + 1,
        params=jax.tree.map(keep, params, state.params),
        optimizer=jax.tree.map(keep, moments, state.optimizer),
        rng=state.rng,
        watch=watch,
    )
    return new, report(sums, loss, norm, watch)


def report(sums: Sums, loss: Array, norm: Array, watch: Watch) -> Metrics:
    means = {
        name: total / jnp.where(count == 0, 1.0, count)
        for name, (total, count) in sums.metrics.items()
    }
    counts = {name: getattr(watch, name) for name in ("skipped", "streak", "spikes", "scale")}
    out = {"loss": loss, "tokens": sums.weight, "grad_norm": norm, **means, **counts}
    return {name: jnp.asarray(value, jnp.float32) for name, value in out.items()}


def make_step(task: Task) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The jitted step; it consumes (donates) the state that it is given."""
    shardings = jax.tree.map(lambda s: s.sharding, shapes(task))
    return jax.jit(
        lambda state, batch: update(task, state, batch),
        donate_argnums=0,
        out_shardings=(shardings, task.layout.replicated()),
    )


def make_evaluation(task: Task) -> Callable[[Params, Batch], Sums]:
    """A jitted function of parameters and batch that gives the sums of the loss, no gradient."""

    def evaluate(params: Params, batch: Batch) -> Sums:
        with task.layout.active():
            return add(task.loss(task.model, params, batch, jax.random.key(0)))

    return jax.jit(evaluate, out_shardings=task.layout.replicated())
