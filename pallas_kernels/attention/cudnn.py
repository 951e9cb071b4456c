"""Attention by cuDNN, through JAX's public function: what NVIDIA wrote for its own chips."""

# B batch, T query length, S key length, N heads, K key/value heads, H head size.

from functools import lru_cache
from typing import Any

import jax
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.scores import Scores


def cudnn(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    scores: Scores,
    places: Places,
) -> tuple[Float[Array, "B T N H"], None]:
    """As `reference`, without the log-sum-exp: JAX rounds it, and gives it no gradient."""
    window = None if mask.window is None else (mask.window - 1, 0)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scores.of(q.shape[-1]),
        is_causal=mask.causal,
        local_window_size=window,
        implementation="cudnn",
    )
    return out, None


def refuses(call: Any) -> str | None:
    """Why cuDNN cannot compute a call."""
    wants = {
        "computes bfloat16 and float16 only": call.dtype not in ("bfloat16", "float16"),
        "gives no log-sum-exp": call.lse,
        "needs heads of a multiple of 8, up to 128, and values of their size": (
            call.head % 8 != 0 or call.head > 128 or call.value != call.head
        ),
        "knows causal masks, with a window or without, and none else": (
            call.mask.chunk is not None
            or call.mask.prefix > 0
            or (call.mask.window is not None and not call.mask.causal)
        ),
        "aligns a causal mask at the beginning: as many queries as keys are needed": (
            call.mask.causal and call.queries != call.keys
        ),
    }
    for name in ("cap", "bias", "slopes", "sinks", "positions", "segments"):
        wants[f"takes no {name}"] = getattr(call, name) not in (None, False)
    wants["needs a GPU of compute capability 9.0 or later at hand"] = not _capable()
    return next((clause for clause, true in wants.items() if true), None)


@lru_cache(maxsize=1)
def _capable() -> bool:
    """Whether there is such a GPU: JAX asks it for the version of cuDNN while lowering."""
    if jax.default_backend() != "gpu":
        return False
    return float(getattr(jax.local_devices()[0], "compute_capability", "0")) >= 9.0
