"""Decode attention in plain JAX: the definition of right."""

# T tokens, S sequences, M pages of a sequence, P pages, C places in a page, N heads, K key/value
# heads, H head size, V value size.

import jax.numpy as jnp
from jaxtyping import Array, Float

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.attention.reference import reference as attention
from jscale.pallas_kernels.attention.scores import Scores
from jscale.pallas_kernels.attention.sinks import with_sinks
from jscale.pallas_kernels.decode_attention.pages import Pages
from jscale.pallas_kernels.decode_attention.sequences import Sequences


def reference(
    q: Float[Array, "T N H"], pages: Pages, sequences: Sequences, mask: Mask, scores: Scores
) -> Float[Array, "T N V"]:
    """Attention, in float32, of all tokens to all pages in the table, each to its own sequence's.

    Keys that no token of their sequence sees are taken as 0 before anything is computed.
    """
    T, (S, M), C = q.shape[0], sequences.table.shape, pages.k.shape[2]
    mine, positions, owned = sequences.owners(T)
    keys = jnp.arange(M * C)
    here = jnp.where(owned, mine, S)  # of nobody: no key's segment
    own = here[:, None] == jnp.arange(S)
    sees = mask.sees(positions[:, None], keys[None])
    there = keys[None] < sequences.lengths[:, None]
    seen = (own[:, :, None] & sees[:, None]).any(0) & there  # [S, M · C]

    def gather(stored: Array, scales: Array | None) -> Array:
        x = jnp.take(stored, sequences.table, 0, mode="clip").astype(jnp.float32)
        if scales is not None:
            x *= jnp.take(scales, sequences.table, 0, mode="clip")[..., None]
        x = x.swapaxes(2, 3).reshape(S, M * C, *x.shape[2:3], x.shape[-1])
        return jnp.where(seen[:, :, None, None], x, 0.0).reshape(1, S * M * C, *x.shape[2:])

    k, v = gather(pages.k, pages.k_scales), gather(pages.v, pages.v_scales)
    segments = jnp.where(there, jnp.arange(S)[:, None], S + 1)
    places = Places(
        (positions[None], jnp.broadcast_to(keys, (S, M * C)).reshape(1, -1)),
        (here[None], segments.reshape(1, -1)),
    )
    out, lse = attention(q[None].astype(jnp.float32), k, v, mask, scores, places)
    if scores.sinks is not None:
        out, _ = with_sinks(out, lse, scores.sinks)
    return out[0].astype(q.dtype)
