"""What the tests of attention's Mosaic-GPU kernels, on Hopper and on Blackwell, have alike."""

from typing import Any

import absent
import jax
import jax.numpy as jnp
from attention_grid import Case

from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask
from jscale.pallas_kernels.attention.choice import Call

KERNELS = "attention_forward", "attention_queries_backward", "attention_keys_backward"


def case(queries: int, more: int, head: int, value: int, mask: Mask = CAUSAL, **options: Any):
    whole: Any = dict(rows=1, heads=(1, 1), dtype="bfloat16") | options
    return Case(queries=queries, more=more, head=head, value=value, mask=mask, **whole)


CASES = {
    "edges": case(100, 30, 64, 64, Mask(window=70), heads=(2, 1), segments=True),
    "scores": case(200, 0, 64, 128, Mask(window=40, prefix=30), cap=1.5, slopes=True),
    "latent": case(70, 10, 192, 128, FULL),
    "places": case(70, 0, 64, 64, Mask(False, chunk=30), rows=2, positions=True, sinks=True),
    "large": case(140, 0, 256, 256, dtype="float16"),
}


def compiled(implementation: str, machine: str, it: Case) -> Any:
    """The program of a case's gradients, for one chip of a machine."""

    def loss(inputs: Any) -> jax.Array:
        out, lse = it.run(implementation, inputs)
        return out.astype(jnp.float32).sum() + lse.sum()

    return absent.compiled(machine, jax.grad(loss), jax.eval_shape(it.inputs))


def call(**options: Any) -> Call:
    sizes = dict(rows=2, queries=256, keys=256, heads=4, kv_heads=2, head=128, value=128)
    whole: Any = sizes | dict(dtype="bfloat16") | options
    return Call(**whole)


REFUSED = [
    (dict(dtype="float32"), "bfloat16 and float16 only"),
    (dict(head=80), "a multiple of 64"),
    (dict(head=320), "up to 256"),
    (dict(value=32), "a multiple of 64"),
    (dict(bias=(1, 1, 256, 256)), "takes no bias"),
    (dict(keys=0), "needs a query and a key"),
    (dict(rows=70_000), "rows"),
]
