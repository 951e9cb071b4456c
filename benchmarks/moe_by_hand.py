"""The train step of a small Mixtral in plain JAX, its experts computed in one of several ways.

All but the feed-forward is of by_hand.py. A `Way` is a function of tokens, their experts and
weights, and the experts' matrices: tokens sorted and multiplied by `jax.lax.ragged_dot`; sorted and
laid out in blocks of one expert each, with gradients written by hand; or brought to slots of their
experts by products with one-hot tables, as in GShard, with just so many slots that none is dropped.
"""

# B batch, T length, M tokens, D model size, E experts, C choices, R rows (M·C), F hidden size,
# J blocks of b rows, S tokens of a group, P slots of an expert, L layers.

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
from by_hand import adamw, attend, mean_loss, norm, rotate

BLOCK = 128  # rows (64 and 256 were no faster)


@dataclass(frozen=True)
class Sizes(by_hand.Sizes):
    """The sizes of a model whose feed-forwards are experts, each as large as `hidden`."""

    experts: int
    choices: int


# (x [M, D], chosen [M, C], weights [M, C], gate and up [E, D, 2F], down [E, F, D]) → [M, D]
Way = Callable[[Any, Any, Any, Any, Any], Any]


def weights_of(tree: dict) -> dict:
    """Weights in this file's form from those of `jscale.models.Mixtral`."""
    block, L = tree["blocks"]["block"], tree["blocks"]["block"]["attend"]["q"].shape[0]
    D = tree["embed"]["table"].shape[1]
    attend, routed = block["attend"], block["feed"]["routed"]
    flat, expert = lambda w: w.reshape(L, D, -1), routed["expert"]
    return {
        "embed": jnp.copy(tree["embed"]["table"]),
        "qkv": jnp.concatenate([flat(attend[n]) for n in "qkv"], 2),
        "out": jnp.copy(attend["o"].reshape(L, -1, D)),
        "router": jnp.copy(routed["router"]["kernel"]),
        "gate_up": jnp.concatenate([expert["gate"]["kernel"], expert["up"]["kernel"]], 3),
        "down": jnp.copy(expert["down"]["kernel"]),
        "norm1": jnp.copy(block["attend_norm"]["scale"]),
        "norm2": jnp.copy(block["feed_norm"]["scale"]),
        "norm": jnp.copy(tree["norm"]["scale"]),
        "head": jnp.copy(tree["head"]["kernel"]),
    }


@jax.custom_vjp
def swiglu(both: Any) -> Any:
    """silu(gate) · up of the two side by side, which alone are kept for the backward pass."""
    gate, up = jnp.split(both, 2, -1)
    return jax.nn.silu(gate) * up


def swiglu_backward(both: Any, g: Any) -> Any:
    gate, up = jnp.split(both, 2, -1)
    share = jax.nn.sigmoid(gate)
    passed = gate * share
    return (jnp.concatenate([g * up * (share + passed * (1 - share)), g * passed], -1),)


swiglu.defvjp(lambda both: (swiglu(both), both), swiglu_backward)


@jax.custom_vjp
def take(x: Any, token: Any, place: Any) -> Any:
    """x[token], 0 for token M; `place` [M, C] are the rows of each token, which its slope sums."""
    return x.at[token].get(mode="fill", fill_value=0)


def take_backward(place: Any, g: Any) -> Any:
    return sum(g[place[:, c]] for c in range(place.shape[1])), None, None


take.defvjp(lambda x, token, place: (take(x, token, place), place), take_backward)


@jax.custom_vjp
def give_back(y: Any, weights: Any, origin: Any, place: Any) -> Any:
    """Σ_c weights[m, c] · y[place[m, c]]; `origin` is the choice of each row, R where none."""
    return sum(weights[:, c, None] * y[place[:, c]] for c in range(place.shape[1]))


def give_back_backward(saved: Any, g: Any) -> Any:
    y, weights, origin, place = saved
    own = weights.reshape(-1).at[origin].get(mode="fill", fill_value=0)
    token = origin // place.shape[1]
    dy = g.at[token].get(mode="fill", fill_value=0) * own[:, None]
    dw = [jnp.einsum("md,md->m", y[place[:, c]], g) for c in range(place.shape[1])]
    return dy, jnp.stack(dw, 1), None, None


give_back.defvjp(lambda *given: (give_back(*given), given), give_back_backward)


def ragged(x: Any, chosen: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    """Sorted by expert, and multiplied by XLA's ragged product."""
    E, flat = down.shape[0], chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(flat.size)).reshape(chosen.shape)
    sizes = jnp.bincount(flat, length=E).astype(jnp.int32)
    h = jax.lax.ragged_dot(take(x, order // chosen.shape[1], place), gate_up, sizes)
    return give_back(jax.lax.ragged_dot(swiglu(h), down, sizes), weights, order, place)


@jax.custom_vjp
def product(x: Any, w: Any, expert: Any) -> Any:
    """Blocks [J, b, D] by the matrices of their experts; blocks of an expert follow one another."""
    return jnp.einsum("jbd,jdf->jbf", x, w[expert])


def product_backward(saved: Any, g: Any) -> Any:
    x, w, expert = saved
    each = jnp.einsum("jbd,jbf->jdf", x, g)
    dw = jax.ops.segment_sum(each, expert, w.shape[0], indices_are_sorted=True)
    return jnp.einsum("jbf,jdf->jbd", g, w[expert]), dw, None


product.defvjp(lambda *given: (product(*given), given), product_backward)


def blocks(x: Any, chosen: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    """Sorted by expert, each expert's rows filled up to whole blocks, multiplied block by block."""
    E, flat, C = down.shape[0], chosen.reshape(-1), chosen.shape[1]
    b, R = BLOCK, flat.size
    J = (R + E * (b - 1)) // b  # however the rows are divided
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=E)
    ends = jnp.cumsum(-(-sizes // b))  # in blocks
    expert = jnp.minimum(jnp.searchsorted(ends, jnp.arange(J), side="right"), E - 1)
    first = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]]) * b - (jnp.cumsum(sizes) - sizes)
    slot = jnp.arange(R) + first[flat[order]]
    origin = jnp.full(J * b, R, order.dtype).at[slot].set(order)
    place = jnp.zeros_like(order).at[order].set(slot).reshape(chosen.shape)
    rows = take(x, origin // C, place).reshape(J, b, -1)
    y = product(swiglu(product(rows, gate_up, expert)), down, expert)
    return give_back(y.reshape(J * b, -1), weights, origin, place)


def one_hot(groups: int, slots: int) -> Way:
    """By products with one-hot tables; each of so many groups has so many slots of an expert."""

    def run(x: Any, chosen: Any, weights: Any, gate_up: Any, down: Any) -> Any:
        E, D, C = down.shape[0], x.shape[1], chosen.shape[1]
        expert = jax.nn.one_hot(chosen.reshape(groups, -1), E, dtype=jnp.int32)
        place = (jnp.cumsum(expert, 1) * expert).sum(-1) - 1
        at = jax.nn.one_hot(place, slots).reshape(groups, -1, C, slots)
        expert = expert.astype(x.dtype).reshape(groups, -1, C, E)
        weights = weights.reshape(groups, -1, C)
        there = jnp.einsum("gsce,gscp->gsep", expert, at)
        back = jnp.einsum("gsce,gscp,gsc->gsep", expert, at, weights)
        rows = jnp.einsum("gsep,gsd->egpd", there, x.reshape(groups, -1, D))
        y = jnp.einsum("egpd,edf->egpf", rows, gate_up)
        y = jnp.einsum("egpf,efd->egpd", swiglu(y), down)
        return jnp.einsum("gsep,egpd->gsd", back, y).reshape(x.shape)

    return run


def routed(sizes: Sizes, scores: Any, forced: Any) -> tuple[Any, Any]:
    """The experts of tokens, or those that are forced on them, and a softmax of their scores."""
    chosen = jax.lax.top_k(scores, sizes.choices)[1] if forced is None else forced
    return chosen, jax.nn.softmax(jnp.take_along_axis(scores, chosen, 1))


def hidden(sizes: Sizes, way: Way, forced: Any, p: dict, tokens: Any) -> tuple[Any, Any]:
    """The last hidden states [M, D], and the experts of all layers' tokens [L, M, C]."""
    B, T, N = sizes.batch, sizes.length, sizes.heads
    H = sizes.dim // N
    angle = jnp.arange(T)[:, None] * 10_000.0 ** (-jnp.arange(0, H, 2) / H)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]

    def block(x: Any, w: dict) -> Any:
        y = (norm(x, w["norm1"]) @ w["qkv"]).reshape(B, T, 3 * N, H)
        q, k, v = jnp.split(y, 3, 2)
        q, k = rotate(q, cos, sin) * H**-0.5, rotate(k, cos, sin)
        o = attend(*(a.swapaxes(1, 2) for a in (q, k, v))).swapaxes(1, 2).reshape(B, T, -1)
        x = x + o @ w["out"]
        y = norm(x, w["norm2"]).reshape(B * T, -1)
        chosen, weights = routed(sizes, y @ w["router"], forced)
        return x + way(y, chosen, weights, w["gate_up"], w["down"]).reshape(x.shape), chosen

    stacked = {n: p[n] for n in ("qkv", "out", "router", "gate_up", "down", "norm1", "norm2")}
    x, chosen = jax.lax.scan(block, p["embed"][tokens], stacked)
    return norm(x, p["norm"]).reshape(B * T, -1), chosen


def slots_needed(sizes: Sizes, forced: Any, p: dict, tokens: Any) -> int:
    """How often an expert is chosen at most in one sequence, with these weights."""
    chosen = jax.jit(partial(hidden, sizes, blocks, forced))(p, tokens)[1]
    rows = np.asarray(chosen).reshape(sizes.layers * sizes.batch, -1)
    return max(int(np.bincount(row).max()) for row in rows)


def make_step(sizes: Sizes, way: Way, forced: Any = None) -> Any:
    """The jitted step of by_hand.py's state, tokens and targets."""
    chunks = max(1, sizes.batch * sizes.length // by_hand.TOKENS)

    def loss(p: dict, tokens: Any, targets: Any) -> Any:
        x, _ = hidden(sizes, way, forced, p, tokens)
        return mean_loss(chunks, x, p["head"], targets.reshape(-1))

    def step(state: Any, tokens: Any, targets: Any) -> Any:
        p, m, v, count = state
        value, g = jax.value_and_grad(loss)(p, tokens, targets)
        p, m, v, size = adamw(p, g, m, v, count + 1)
        return (p, m, v, count + 1), (value, size)

    return jax.jit(step, donate_argnums=0)
