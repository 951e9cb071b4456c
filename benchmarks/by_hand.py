"""A Llama's train step in plain JAX, written for one job and nothing else: what a step can cost.

No modules, no layouts, no guard, no metrics but loss and gradient norm. Projections that read the
same array are one product (weights are stored so). Attention is computed in tiles of queries and,
as norms and SwiGLU, made again in the backward pass; the loss makes its gradient while the logits
are at hand; AdamW and clipping are one pass. With a mesh, weights are split over it and gathered
layer by layer (FSDP).
"""

# B batch, T length, D model size, N heads, H head size, F hidden size, V vocabulary, L layers.

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model and of a batch."""

    vocab: int
    dim: int
    layers: int
    heads: int
    hidden: int
    length: int
    batch: int


RATE, B1, B2, EPS, DECAY, CLIP = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0
TILE, TOKENS = 128, 512  # queries (128 beat 256), and tokens of the loss, at a time


def weights_of(tree: dict) -> dict:
    """Weights in this file's form from those of `jscale.models.Llama`."""
    block, L = tree["blocks"]["block"], tree["blocks"]["block"]["attend"]["q"].shape[0]
    D = tree["embed"]["table"].shape[1]
    attend, feed = block["attend"], block["feed"]
    flat = lambda w: w.reshape(L, D, -1)
    return {
        "embed": jnp.copy(tree["embed"]["table"]),
        "qkv": jnp.concatenate([flat(attend[n]) for n in "qkv"], 2),
        "out": jnp.copy(attend["o"].reshape(L, -1, D)),
        "gate_up": jnp.concatenate([feed["gate"], feed["up"]], 2),
        "down": jnp.copy(feed["down"]),
        "norm1": jnp.copy(block["attend_norm"]["scale"]),
        "norm2": jnp.copy(block["feed_norm"]["scale"]),
        "norm": jnp.copy(tree["norm"]["scale"]),
        "head": jnp.copy(tree["head"]["kernel"]),
    }


def specs() -> dict:
    """How weights are split over the mesh axis "fsdp": along the model size, as ours are."""
    stacked = {"qkv": P(None, "fsdp"), "gate_up": P(None, "fsdp")}
    back = {"out": P(None, None, "fsdp"), "down": P(None, None, "fsdp")}
    ends = {"embed": P(None, "fsdp"), "head": P("fsdp"), "norm": P()}
    return {**stacked, **back, **ends, "norm1": P(), "norm2": P()}


@jax.custom_vjp
def norm(x: Any, scale: Any) -> Any:
    return norm_forward(x, scale)[0]


def norm_forward(x: Any, scale: Any) -> Any:
    shrink = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return x * shrink * scale, (x, scale, shrink)


def norm_backward(saved: Any, g: Any) -> Any:
    x, scale, shrink = saved
    unit, slope = x * shrink, g * scale
    dx = shrink * (slope - unit * jnp.mean(slope * unit, -1, keepdims=True))
    return dx, (g * unit).sum((0, 1))


norm.defvjp(norm_forward, norm_backward)


@jax.custom_vjp
def feed(both: Any, down: Any) -> Any:
    """SwiGLU from its two projections, which alone are kept for the backward pass."""
    return feed_forward(both, down)[0]


def feed_forward(both: Any, down: Any) -> Any:
    gate, up = jnp.split(both, 2, -1)
    return (jax.nn.silu(gate) * up) @ down, (both, down)


def feed_backward(saved: Any, g: Any) -> Any:
    both, down = saved
    gate, up = jnp.split(both, 2, -1)
    share = jax.nn.sigmoid(gate)
    passed, slope = gate * share, g @ down.T
    slopes = slope * up * (share + passed * (1 - share)), slope * passed
    return jnp.concatenate(slopes, -1), jnp.einsum("btd,btf->df", g, passed * up).T


feed.defvjp(feed_forward, feed_backward)


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend_forward(q: Any, k: Any, v: Any) -> Any:
    T = q.shape[2]
    outs, sums = [], []
    for start in range(0, T, TILE):
        end = min(start + TILE, T)
        s = jnp.einsum("bnth,bnsh->bnts", q[:, :, start:end], k[:, :, :end])
        s = jnp.where(jnp.arange(start, end)[:, None] >= jnp.arange(end), s, -1e30)
        peak = s.max(-1, keepdims=True)
        p = jnp.exp(s - peak)
        total = p.sum(-1, keepdims=True)
        outs.append(jnp.einsum("bnts,bnsh->bnth", p, v[:, :, :end]) / total)
        sums.append(peak + jnp.log(total))
    out, lse = jnp.concatenate(outs, 2), jnp.concatenate(sums, 2)
    return out, (q, k, v, out, lse)


def attend_backward(saved: Any, g: Any) -> Any:
    q, k, v, out, lse = saved
    T, dot = q.shape[2], (g * out).sum(-1, keepdims=True)
    dq, dk, dv = [], jnp.zeros_like(k), jnp.zeros_like(v)
    for start in range(0, T, TILE):
        end = min(start + TILE, T)
        mine = slice(start, end)
        s = jnp.einsum("bnth,bnsh->bnts", q[:, :, mine], k[:, :, :end])
        seen = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        p = jnp.where(seen, jnp.exp(s - lse[:, :, mine]), 0)
        dp = jnp.einsum("bnth,bnsh->bnts", g[:, :, mine], v[:, :, :end])
        ds = p * (dp - dot[:, :, mine])
        dq.append(jnp.einsum("bnts,bnsh->bnth", ds, k[:, :, :end]))
        grow = lambda x, end=end: jnp.pad(x, ((0, 0), (0, 0), (0, T - end), (0, 0)))
        dk += grow(jnp.einsum("bnts,bnth->bnsh", ds, q[:, :, mine]))
        dv += grow(jnp.einsum("bnts,bnth->bnsh", p, g[:, :, mine]))
    return jnp.concatenate(dq, 2), dk, dv


@jax.custom_vjp
def attend(q: Any, k: Any, v: Any) -> Any:
    """Causal attention of scaled queries, [B, N, T, H]."""
    return attend_forward(q, k, v)[0]


attend.defvjp(attend_forward, attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def mean_loss(chunks: int, hidden: Any, head: Any, targets: Any) -> Any:
    """The mean cross-entropy of [M, D] hidden states."""
    return loss_forward(chunks, hidden, head, targets)[0]


def loss_forward(chunks: int, hidden: Any, head: Any, targets: Any) -> Any:
    M, V = hidden.shape[0], head.shape[1]

    def chunk(dhead: Any, part: Any) -> Any:
        h, t = part
        logits = h @ head
        lse = jax.nn.logsumexp(logits, -1)
        nll = lse - jnp.take_along_axis(logits, t[:, None], -1)[:, 0]
        slopes = (jnp.exp(logits - lse[:, None]) - (jnp.arange(V) == t[:, None])) / M
        return dhead + h.T @ slopes, (nll.sum(), slopes @ head.T)

    parts = hidden.reshape(chunks, -1, hidden.shape[1]), targets.reshape(chunks, -1)
    if chunks == 1:
        dhead, (nll, dhidden) = chunk(0.0, (hidden, targets))
    else:
        dhead, (nll, dhidden) = jax.lax.scan(chunk, jnp.zeros_like(head), parts)
    return nll.sum() / M, (dhidden.reshape(hidden.shape), dhead)


def loss_backward(chunks: int, saved: Any, g: Any) -> Any:
    return saved[0] * g, saved[1] * g, None


mean_loss.defvjp(loss_forward, loss_backward)


def loss(sizes: Sizes, mesh: Mesh | None, p: dict, tokens: Any, targets: Any) -> Any:
    """The mean loss of a batch."""
    B, T, N = sizes.batch, sizes.length, sizes.heads
    H = sizes.dim // N
    whole = lambda w: w if mesh is None else put(w, P())
    put = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    rows = lambda x: x if mesh is None else put(x, P("fsdp"))
    angle = jnp.arange(T)[:, None] * 10_000.0 ** (-jnp.arange(0, H, 2) / H)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    x = rows(whole(p["embed"])[tokens])

    def block(x: Any, w: dict) -> Any:
        w = jax.tree.map(whole, w)
        y = (norm(x, w["norm1"]) @ w["qkv"]).reshape(B, T, 3 * N, H)
        q, k, v = jnp.split(y, 3, 2)
        q, k = rotate(q, cos, sin) * H**-0.5, rotate(k, cos, sin)
        o = attend(*(a.swapaxes(1, 2) for a in (q, k, v))).swapaxes(1, 2).reshape(B, T, -1)
        x = rows(x + o @ w["out"])
        return rows(x + feed(norm(x, w["norm2"]) @ w["gate_up"], w["down"])), None

    stacked = {n: p[n] for n in ("qkv", "out", "gate_up", "down", "norm1", "norm2")}
    x = norm(jax.lax.scan(block, x, stacked)[0], p["norm"])
    here = B * T // (1 if mesh is None else mesh.size)
    chunks = max(1, here // TOKENS)
    return mean_loss(chunks, x.reshape(B * T, -1), whole(p["head"]), targets.reshape(-1))


def adamw(p: dict, g: dict, m: dict, v: dict, step: Any) -> tuple[dict, dict, dict, Any]:
    """One update, and the norm of the gradient."""
    size = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(g)))
    clip = jnp.minimum(1.0, CLIP / size)

    def one(p: Any, g: Any, m: Any, v: Any, decay: float) -> Any:
        g = g * clip
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        up = (m / (1 - B1**step)) / (jnp.sqrt(v / (1 - B2**step)) + EPS)
        return p - RATE * (up + decay * p), m, v

    out = {n: one(p[n], g[n], m[n], v[n], 0.0 if "norm" in n else DECAY) for n in p}
    first, second, third = ({n: o[i] for n, o in out.items()} for i in range(3))
    return first, second, third, size


def make_step(sizes: Sizes, mesh: Mesh | None = None) -> Any:
    """The jitted step of (weights, first, second moments, count), tokens and targets."""

    def step(state: Any, tokens: Any, targets: Any) -> Any:
        p, m, v, count = state
        value, g = jax.value_and_grad(partial(loss, sizes, mesh))(p, tokens, targets)
        if mesh is not None:
            put = jax.lax.with_sharding_constraint
            g = {n: put(g[n], NamedSharding(mesh, s)) for n, s in specs().items()}
        p, m, v, size = adamw(p, g, m, v, count + 1)
        return (p, m, v, count + 1), (value, size)

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    where = {n: NamedSharding(mesh, s) for n, s in specs().items()}
    one = NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=((where, where, where, one), (one, one)))


def start(weights: dict, mesh: Mesh | None = None) -> Any:
    """The state before the first step."""
    if mesh is not None:
        weights = {
            n: jax.device_put(weights[n], NamedSharding(mesh, s)) for n, s in specs().items()
        }
    zeros = lambda: jax.tree.map(jnp.zeros_like, weights)
    count = jnp.float32(0)
    if mesh is not None:
        count = jax.device_put(count, NamedSharding(mesh, P()))
    return weights, zeros(), zeros(), count
