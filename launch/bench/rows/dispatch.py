"""Dispatch and combine: rows to experts and back; what must move, and how long that may take.

Experts multiply by a number of their own, so that all there is to do is moving; as products would,
they read their rows from memory and write results there. On several devices tokens and experts are
split over all of them.
"""

# T tokens, C choices per token, E experts, M = T·C rows, D the size of a row.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jscale.launch.bench.subject import (
    Contender,
    Subject,
    Values,
    Work,
    differentiable,
    draw,
    exactly,
)
from jscale.pallas_kernels.device import device
from jscale.pallas_kernels.dispatch import (
    AllToAll,
    Dispatcher,
    Gather,
    Local,
    Ragged,
    combine,
    dispatch,
)
from jscale.pallas_kernels.grouped_matmul.reference import group_of
from jscale.pallas_kernels.grouped_matmul.rows import taken

AXIS = "expert"
MOST = 2**26  # numbers that a table of tokens by places may have


@dataclass(frozen=True)
class Case:
    """Tokens that choose experts as unequally as routers do, each some that differ."""

    tokens: int = 4096
    choices: int = 2
    experts: int = 16
    dim: int = 256
    devices: int = 1
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        split = f" over {self.devices} devices" if self.devices > 1 else ""
        least = work(self)["training"].bytes / 1e6
        return (
            f"{self.tokens:,} tokens of {self.dim:,} to {self.choices} of {self.experts} experts"
            f"{split}, {self.dtype}; there and back with gradients, {least:,.4g} MB must move"
        )

    @property
    def chosen(self) -> np.ndarray:
        """The experts of each token [T, C], the same every time."""
        random = np.random.default_rng(0)
        likely = np.log(random.dirichlet(np.full(self.experts, 4.0)))
        noise = random.gumbel(size=(self.tokens, self.experts))
        return np.argsort(-(likely + noise), axis=1)[:, : self.choices]

    @property
    def traffic(self) -> np.ndarray:
        """Rows from each device to each other [n, n]."""
        owner = self.chosen.reshape(self.devices, -1) // (self.experts // self.devices)
        return np.stack([np.bincount(one, minlength=self.devices) for one in owner])


def cases(platform: str, quick: bool) -> Sequence[Case]:
    """Qwen3-30B-A3B's and Mixtral's on accelerators; each again over all devices at hand."""
    if quick:
        found = [Case(64, 2, 8, 16, dtype="float32" if platform == "cpu" else "bfloat16")]
    elif platform == "cpu":
        found = [Case(dtype="float32"), Case(2048, 8, 64, 512, dtype="float32")]
    else:
        found = [Case(16_384, 8, 128, 2048), Case(16_384, 2, 8, 4096)]
    n = jax.device_count()
    fits = [case for case in found if n > 1 and case.experts % n == 0 and case.tokens % n == 0]
    return found + [replace(case, devices=n) for case in fits]


def inputs(case: Case) -> dict[str, Any]:
    """Tokens, weights of choices, and choices; on several devices, split over them."""
    found = draw({"x": (case.tokens, case.dim), "weights": (case.tokens, case.choices)}, case.dtype)
    found["choices"] = jnp.asarray(case.chosen, jnp.int32)
    if case.devices == 1:
        return found
    split = jax.NamedSharding(mesh_of(case), jax.P(AXIS))
    return {name: jax.device_put(x, split) for name, x in found.items()}


def mesh_of(case: Case) -> jax.sharding.Mesh:
    """All devices of the case along one axis."""
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((case.devices,), (AXIS,), axis_types=auto)


def work(case: Case) -> dict[str, Work]:
    """Tokens read, rows written; experts' rows and results; results read, sums written.

    The way back is as long, and reads results once more for the weights' gradients. A simulated
    device is a part of the processor whose seconds are counted; a real one moves its own share,
    whatever of it must go over wires.
    """
    share = 1 if device().platform == "cpu" else case.devices
    tokens = jnp.dtype(case.dtype).itemsize * case.tokens * case.dim / share
    rows = case.choices * tokens
    sums = 2.0 * case.tokens * case.choices * case.dim / share
    there_and_back = Work(sums, 2 * tokens + 4 * rows)
    backward = Work(2 * sums, 2 * tokens + 5 * rows)
    return {
        "forward": there_and_back,
        "backward": backward,
        "training": Work(3 * sums, there_and_back.bytes + backward.bytes),
    }


def factors(experts: int, dtype: Any) -> Any:
    """What experts multiply by."""
    return (1 + jnp.arange(experts) / experts).astype(dtype)


def experts_on(rows: Any, factor: Any) -> Any:
    """Each row times its factor, in a branch, so that nothing else is computed along with it."""
    always = factor.reshape(-1)[0] > 0
    return lax.cond(always, lambda x: x * factor, lambda x: x, rows)


def through(by: Dispatcher, experts: int, x: Any, weights: Any, choices: Any) -> Any:
    """Rows to this device's experts, and back."""
    received, ticket = dispatch(x, choices, experts, by)
    own = received.sizes.shape[0]
    first = lax.axis_index(AXIS) * own if own < experts else 0
    group = jnp.minimum(first + group_of(received.sizes, received.rows.shape[0]), experts - 1)
    factor = factors(experts, x.dtype)[group][:, None]
    y = experts_on(taken(received.x, received.rows), factor)
    return combine(y, weights, ticket, by)


def run(case: Case, by: Dispatcher) -> Callable[..., Any]:
    """One way, over the devices of the case."""
    one = partial(through, by, case.experts)
    if case.devices == 1:
        return lambda x, weights, choices: one(x, weights, choices)
    each = jax.P(AXIS)
    split = jax.shard_map(
        one, mesh=mesh_of(case), in_specs=(each,) * 3, out_specs=each, check_vma=False
    )
    return lambda x, weights, choices: split(x, weights, choices)


def contenders(case: Case) -> dict[str, Contender | str]:
    """Ways to dispatch, their buffers as large as these choices need."""
    if case.devices == 1:
        alone = dict.fromkeys(("gather", "all-to-all", "ragged"), "needs several devices")
        return {"local": differentiable(run(case, Local())), **alone}
    comes = int(case.traffic.sum(0).max())
    ways = {
        "gather": Gather(AXIS, comes),
        "all-to-all": AllToAll(AXIS, int(case.traffic.max())),
        "ragged": Ragged(AXIS, comes),
    }
    apart = {"local": "has all experts on every device"}
    return {name: differentiable(run(case, by)) for name, by in ways.items()} | apart


def chosen(case: Case) -> str:
    """Nobody is chosen by itself; the one with the least traffic."""
    return "local" if case.devices == 1 else "ragged"


def values(case: Case, given: Mapping[str, Any]) -> Values:
    """Without moving anything."""

    def still(x: Any, weights: Any, choices: Any) -> Any:
        return x * (weights * factors(case.experts, x.dtype)[choices]).sum(1, keepdims=True)

    return exactly(still, given)


def by_segments(case: Case) -> Callable[..., Any]:
    """Sorted, taken and summed by JAX's own functions, whose gradients scatter."""

    def one(x: Any, weights: Any, choices: Any) -> Any:
        flat = choices.reshape(-1)
        order = jnp.argsort(flat)
        token = order // choices.shape[1]
        factor = factors(case.experts, x.dtype)[flat[order]][:, None]
        y = experts_on(jnp.take(x, token, axis=0), factor) * weights.reshape(-1)[order][:, None]
        return jax.ops.segment_sum(y.astype(jnp.float32), token, x.shape[0]).astype(x.dtype)

    return one


def by_one_hot(case: Case) -> Callable[..., Any]:
    """Products with a table of which token stands at which place of which expert, as in GShard."""
    room = int(np.bincount(case.chosen.reshape(-1)).max())

    def one(x: Any, weights: Any, choices: Any) -> Any:
        expert = jax.nn.one_hot(choices.reshape(-1), case.experts, dtype=jnp.int32)
        place = (jnp.cumsum(expert, 0) * expert).sum(1) - 1
        at = jax.nn.one_hot(place, room, dtype=x.dtype)
        at = at.reshape(*choices.shape, room)
        expert = expert.astype(x.dtype).reshape(*choices.shape, -1)
        there = jnp.einsum("tce,tcp->tep", expert, at)
        back = jnp.einsum("tce,tcp,tc->tep", expert, at, weights)
        factor = factors(case.experts, x.dtype)[:, None, None]
        y = experts_on(jnp.einsum("tep,td->epd", there, x), factor)
        return jnp.einsum("tep,epd->td", back, y)

    return one


def rivals(case: Case) -> dict[str, Contender | str]:
    """What is written without a kernel or a custom gradient, on one device."""
    if case.devices > 1:
        return dict.fromkeys(("take, segment_sum", "one-hot products"), "is for one device")
    found: dict[str, Contender | str] = {"take, segment_sum": differentiable(by_segments(case))}
    table = case.tokens * case.experts * int(np.bincount(case.chosen.reshape(-1)).max())
    if table > MOST:
        return found | {"one-hot products": f"needs a table of {table:,} numbers"}
    return found | {"one-hot products": differentiable(by_one_hot(case))}


SUBJECT = Subject(
    *("dispatch", Case, cases, inputs, work, values, contenders, chosen), rivals=rivals
)
