"""Parts shared by the models: weights with named axes, projections, norms, the scanned stack."""

# B batch, T length, D model size, F hidden size, V vocabulary, L layers.

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError, did_you_mean
from jscale.mesh import Axes, alone, constrain, per_shard, split_over
from jscale.models.turns import Make, Turn, folded, unfolded
from jscale.pallas_kernels.linear_cross_entropy import Expected, linear_cross_entropy


def weight(rngs: nnx.Rngs, fan_in: int, **shape: int) -> nnx.Param:
    """A normal weight with named dimensions, as in `weight(rngs, 64, embed=64, mlp=256)`.

    Its deviation is 1/√fan_in, `fan_in` being how many products make one output, so that outputs
    are as large as inputs (LeCun et al. 1998).
    """
    value = fan_in**-0.5 * jax.random.normal(rngs.params(), tuple(shape.values()))
    return nnx.Param(value, out_sharding=tuple(shape), eager_sharding=False)


def constant(value: float, **shape: int) -> nnx.Param:
    """A weight with named dimensions whose numbers begin alike, as in `constant(0.0, mlp=8)`."""
    full = jnp.full(tuple(shape.values()), value)
    return nnx.Param(full, out_sharding=tuple(shape), eager_sharding=False)


def project(equation: str, x: Float[Array, "..."], w: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum(equation, x, w)` in the dtype of `x`, the gradient of `w` in the dtype of `w`.

    With weights in float32 and activations in bfloat16, the partial gradients that the devices sum
    are then float32 too, where casting the weights beforehand would sum rounded ones.
    """
    if x.dtype == w.dtype:
        return jnp.einsum(equation, x, w)
    return _project(equation, x, w)


def _project_forward(equation: str, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.einsum(equation, x, w.astype(x.dtype)), (x, w)


def _project_backward(equation: str, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = saved
    (x_axes, w_axes), out_axes = equation.split("->")[0].split(","), equation.split("->")[1]
    dx = jnp.einsum(f"{out_axes},{w_axes}->{x_axes}", g, w.astype(x.dtype))
    dw = jnp.einsum(f"{x_axes},{out_axes}->{w_axes}", x, g, preferred_element_type=w.dtype)
    return dx, dw


_project = jax.custom_vjp(
    lambda equation, x, w: _project_forward(equation, x, w)[0], nondiff_argnums=(0,)
)
_project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def project_at_once(
    x: Float[Array, "B T D"], *weights: Float[Array, "D ..."]
) -> Float[Array, "B T E"]:
    """`project` by several weights in one product, E numbers that belong to them in turn.

    They are put together once more for the gradient: no copy of them is kept until then.
    """
    return x @ _together(x, weights)


def _together(x: Any, weights: tuple[Any, ...]) -> Float[Array, "D E"]:
    return jnp.concatenate([w.reshape(w.shape[0], -1) for w in weights], 1).astype(x.dtype)


def _at_once_forward(x: Any, *weights: Any) -> tuple[Array, tuple[Any, ...]]:
    return x @ _together(x, weights), (x, *weights)


def _at_once_backward(saved: tuple[Any, ...], g: Any) -> tuple[Array, ...]:
    x, *weights = saved
    dx = jnp.einsum("bte,de->btd", g, _together(x, tuple(weights)))
    dw = by_weights(x, g, weights[0].dtype)
    ends = np.cumsum([w.size // w.shape[0] for w in weights])
    parts = jnp.split(dw, ends[:-1], 1)
    return dx, *(part.reshape(w.shape) for part, w in zip(parts, weights, strict=True))


def by_weights(x: Any, g: Any, dtype: DTypeLike) -> Float[Array, "D E"]:
    """The gradient of the weights of `x @ w`, summed in their dtype; g is that of the product."""
    if x.dtype == dtype:  # with the factors as JAX's own derivative has them: faster on CPU
        return jnp.einsum("bte,btd->ed", g, x).T
    return jnp.einsum("btd,bte->de", x, g, preferred_element_type=dtype)


project_at_once.defvjp(_at_once_forward, _at_once_backward)


def logprobs(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"] | None = None,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    cap: float | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The log-probability of each target and log Σ exp of its scores, which are never all held.

    With `smoothing` ε a target is (1 − ε) · target + ε / V; with a `cap` c scores are
    c · tanh(scores / c). `weights` and `z_loss` tell which gradient to expect, as `Expected` does;
    each device scores its rows, places and part of the vocabulary.
    """
    split = split_over("batch", "length", "vocab")
    parts = Axes(None, "vocab" if split else None)
    rows = Axes("batch", "length")

    def score(h: Array, w: Array, targets: Array, weights: Array | None) -> tuple[Array, Array]:
        expected = None if weights is None else Expected(weights, z_loss)
        return linear_cross_entropy(
            h, w, targets, cap=cap, smoothing=smoothing, expected=expected, split=split
        )

    return per_shard(
        score,
        *(hidden, constrain(kernel, *parts), targets, weights),
        inputs=(Axes(*rows, None), parts, rows, rows),
        outputs=rows,
    )


EMBED_FAN = 2500  # a deviation of 0.02: a tied head then starts from nearly even scores


class Embed(nnx.Module):
    """A vector for each token; `unembed` scores tokens by the same vectors (tied head)."""

    def __init__(self, vocab: int, dim: int, rngs: nnx.Rngs, compute: DTypeLike):
        self.compute = jnp.dtype(compute)
        self.table = weight(rngs, EMBED_FAN, vocab=vocab, embed=dim)

    @jax.named_scope("embed")
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        # Whole over fsdp while it is read, as any weight; and cast after the lookup, so that the
        # gradient's scatter-add sums in the weights' own dtype.
        table = constrain(self.table[...], "vocab", "embed")
        x = table[tokens].astype(self.compute)
        return constrain(x, "batch", "length", "embed")

    def unembed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return constrain(project("btd,vd->btv", x, self.table[...]), "batch", "length", "vocab")

    def logprobs(
        self, x: Float[Array, "B T D"], targets: Int[Array, "B T"], *more: Any
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """`logprobs` of the tokens by the same vectors."""
        return logprobs(x, self.table[...].T, targets, *more)


class Unembed(nnx.Module):
    """Scores of the next token."""

    def __init__(self, vocab: int, dim: int, rngs: nnx.Rngs):
        self.kernel = weight(rngs, dim, embed=dim, vocab=vocab)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return constrain(project("btd,dv->btv", x, self.kernel[...]), "batch", "length", "vocab")

    def logprobs(
        self, x: Float[Array, "B T D"], targets: Int[Array, "B T"], *more: Any
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """`logprobs` of the tokens."""
        return logprobs(x, self.kernel[...], targets, *more)


class RMSNorm(nnx.Module):
    """x / rms(x) · scale, in float32. Source: Zhang & Sennrich 2019, arXiv 1910.07467."""

    def __init__(self, size: int, eps: float = 1e-6):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size), out_sharding=("scale",), eager_sharding=False)

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return normalise(self.eps, x, self.scale[...])


def _normalise_forward(eps: float, x: Any, scale: Any) -> tuple[Array, tuple[Any, ...]]:
    y = x.astype(jnp.float32)
    shrink = jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
    return (y * shrink * scale.astype(jnp.float32)).astype(x.dtype), (x, scale, shrink)


def _normalise_backward(eps: float, saved: tuple[Any, ...], g: Any) -> tuple[Array, Array]:
    # From x and a number for each vector; JAX's own derivative keeps three arrays like x.
    x, scale, shrink = saved
    unit, g = x.astype(jnp.float32) * shrink, g.astype(jnp.float32)
    by_unit = g * scale.astype(jnp.float32)
    dx = shrink * (by_unit - unit * jnp.mean(by_unit * unit, -1, keepdims=True))
    return dx.astype(x.dtype), (g * unit).sum(range(g.ndim - 1)).astype(scale.dtype)


# Vectors over their root mean square (`eps` added to the square), times a scale.
normalise = jax.custom_vjp(lambda *inputs: _normalise_forward(*inputs)[0], nondiff_argnums=(0,))
normalise.defvjp(_normalise_forward, _normalise_backward)


class SwiGLU(nnx.Module):
    """(silu(x G) ⊙ x U) W. Source: Shazeer 2020, arXiv 2002.05202."""

    def __init__(self, dim: int, hidden: int, rngs: nnx.Rngs):
        self.gate = weight(rngs, dim, embed=dim, mlp=hidden)
        self.up = weight(rngs, dim, embed=dim, mlp=hidden)
        self.down = weight(rngs, hidden, mlp=hidden, embed=dim)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return _gated(self.project(x), self.down[...])

    def project(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T F"], ...] | Float[Array, "B T _"]:
        """The gate's input and the values; in one product where `SelfAttention.project` has one."""
        gate, up = self.gate[...], self.up[...]
        if not alone():
            return project("btd,df->btf", x, gate), project("btd,df->btf", x, up)
        return project_at_once(x, gate, up)


Pair = Any  # an array or two: the gate's input and the values; in an array one after the other


def gate_and_up(pair: Pair) -> tuple[Any, Any]:
    gate, up = pair if isinstance(pair, tuple) else jnp.split(pair, 2, -1)
    return gate, up


def _gated_forward(pair: Pair, down: Any) -> tuple[Array, tuple[Pair, Any]]:
    gate, up = gate_and_up(pair)
    h = constrain(jax.nn.silu(gate) * up, "batch", "length", "mlp")
    return h @ down.astype(h.dtype), (pair, down)


def _gated_backward(saved: tuple[Pair, Any], g: Any) -> tuple[Pair, Array]:
    # From the projections alone; JAX's own derivative keeps six more arrays as large as one.
    pair, down = saved
    gate, up = gate_and_up(pair)
    share = jax.nn.sigmoid(gate)
    passed = gate * share
    h = constrain(passed * up, "batch", "length", "mlp")
    slope = constrain(g @ down.T.astype(g.dtype), "batch", "length", "mlp")
    by_down = by_weights(h, g, down.dtype)
    slopes = slope * up * (share + passed * (1 - share)), slope * passed
    return slopes if isinstance(pair, tuple) else jnp.concatenate(slopes, -1), by_down


_gated = jax.custom_vjp(lambda pair, down: _gated_forward(pair, down)[0])
_gated.defvjp(_gated_forward, _gated_backward)


INPUT = "input of a block"  # what it is called where a policy names it
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=(INPUT,),
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all_dots": jax.checkpoint_policies.dots_saveable,
}


def check_remat(name: str) -> str:
    """The name of a rematerialisation policy, if there is such a one.

    "none" keeps every activation, "full" keeps a block's input and computes the rest again in the
    backward pass, "dots" keeps the results of projections, "all_dots" of attention's products too.
    "offload" is "full" with the inputs kept in the memory of the host until they are needed.

    Raises:
        ConfigError: there is no such policy.
    """
    if name not in REMAT:
        raise ConfigError(f"no rematerialisation policy {name!r}; {did_you_mean(name, REMAT)}")
    return name


Hidden = Any  # Float[Array, "B T D"], or a tree of such: the kinds of tokens of a row


class Stack(nnx.Module):
    """`layers` blocks with their weights stacked, run by a scan, rematerialised by a policy.

    A block maps `(x, context, state)` to `(x, outputs)`: `context` is what all blocks share
    (positions, segments), but for its key, which is each block's own; `state` is what each has of
    its own (a key/value cache, or None), and the `outputs` of all blocks come back stacked.

    Several `make` blocks that take turns: the scan is over turns, of which one is compiled. Their
    outputs are reports by name, which not all of them need to have, and a tree that all have alike.
    """

    def __init__(self, make: Make | tuple[Make, ...], layers: int, rngs: nnx.Rngs, remat: str):
        makes = make if isinstance(make, tuple) else (make,)
        one = makes[0] if len(makes) == 1 else lambda rngs: Turn(makes, rngs)
        assert layers % len(makes) == 0, (layers, len(makes))
        self.turns, self.layers, self.remat = len(makes), layers, check_remat(remat)
        self.block = jax.tree.map(
            lambda w: w.replace(out_sharding=("layers", *w.get_metadata()["out_sharding"])),
            jax.vmap(one)(rngs.split(layers // len(makes))),
            is_leaf=lambda w: isinstance(w, nnx.Variable),
        )

    def __call__(
        self, x: Hidden, context: Any, state: Any = None, layers: int | None = None
    ) -> tuple[Hidden, Any]:
        """Through all blocks, or through the first `layers` alone."""

        def step(x: Hidden, layer: tuple[Any, Any, Any]) -> tuple[Hidden, Any]:
            block, mine, key = layer
            x = checkpoint_name(x, INPUT)
            return block(x, context if key is None else context._replace(key=key), mine)

        turns = (self.layers if layers is None else layers) // self.turns
        blocks = self.block
        if layers is not None:
            blocks = jax.tree.map(lambda w: w[:turns], blocks)
        keys = None if context.key is None else jax.random.split(context.key, turns)
        policy = REMAT[self.remat]
        if policy is not None:
            step = jax.checkpoint(step, policy=policy, prevent_cse=False)
        with jax.named_scope("layers"):
            x, outputs = jax.lax.scan(step, x, (blocks, folded(state, self.turns), keys))
        return x, unfolded(outputs, self.turns)
