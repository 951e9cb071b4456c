"""Attention by others, as competitors. A case is one of `rows.attention`."""

# B batch, T length, N heads, K key/value heads, H head size.

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jscale.launch.bench.subject import Contender, Program, Ready, differentiable, named, slope


def contenders(case: Any, platform: str) -> dict[str, Contender | str]:
    """Those of this platform; a word says what is missing, or why one cannot."""
    found: dict[str, Contender | str] = {"jax.nn xla": differentiable(dot_product(case, "xla"))}
    if platform == "gpu":
        found["jax.nn cudnn"] = differentiable(dot_product(case, "cudnn"))
        found["jax pallas triton"] = differentiable(pallas_triton(case))
        backward = not case.causal  # its own limit
        found["jax pallas mosaic"] = differentiable(pallas_mosaic(case), backward)
    if platform == "tpu":
        found["jax pallas flash"] = differentiable(pallas_flash(case))
        found["jax pallas splash"] = differentiable(pallas_splash(case))
    if platform in ("gpu", "tpu"):
        here = find_spec("tokamax") is not None
        found["tokamax"] = differentiable(by_tokamax(case)) if here else "is not installed"
    if platform in ("cpu", "gpu"):
        found["torch"] = in_torch(case, platform) if find_spec("torch") else "is not installed"
    return found


def dot_product(case: Any, implementation: Any) -> Callable[..., Any]:
    """JAX's public function. No mask as an array is given, which would be read."""
    near = None if case.window is None else (case.window - 1, 0 if case.causal else case.window - 1)
    return lambda q, k, v: jax.nn.dot_product_attention(
        *(q, k, v),
        is_causal=case.causal,
        local_window_size=near,
        implementation=implementation,
    )


def repeated(case: Any, *arrays: Any) -> list[Any]:
    """Keys and values for those who know no groups of heads: one for each query head."""
    return [jnp.repeat(x, case.heads // case.kv_heads, 2) for x in arrays]


def scaled(case: Any, q: Any) -> Any:
    """Queries for those who do not scale the scores."""
    return (q.astype(jnp.float32) * case.head**-0.5).astype(q.dtype)


def plain(case: Any, who: str) -> None:
    """Those who know no window refuse one."""
    if case.window is not None:
        raise NotImplementedError(f"{who} knows no window")


def pallas_triton(case: Any) -> Callable[..., Any]:
    """JAX's Pallas kernels for GPUs, through Triton."""

    def run(q: Any, k: Any, v: Any) -> Any:
        from jax.experimental.pallas.ops.gpu.attention import mha

        plain(case, "mha")
        keys, values = repeated(case, k, v)
        return mha(q, keys, values, None, sm_scale=case.head**-0.5, causal=case.causal)

    return run


def pallas_mosaic(case: Any) -> Callable[..., Any]:
    """JAX's Pallas kernels for Hopper, which take float16 only and do not scale the scores."""

    def run(q: Any, k: Any, v: Any) -> Any:
        from jax.experimental.pallas.ops.gpu import attention_mgpu

        plain(case, "attention_mgpu")
        names = "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"
        back: Any = {} if case.causal else dict.fromkeys(names, 64)
        config = attention_mgpu.TuningConfig(
            64, 128, max_concurrent_steps=2, causal=case.causal, **back
        )
        half = [x.astype(jnp.float16) for x in (scaled(case, q), k, v)]
        attend: Any = attention_mgpu.attention
        return attend(*half, config).astype(q.dtype)

    return run


def pallas_flash(case: Any) -> Callable[..., Any]:
    """JAX's Pallas kernels for TPUs, with tiles of 512: its default of 128 is slow."""

    def run(q: Any, k: Any, v: Any) -> Any:
        from jax.experimental.pallas.ops.tpu import flash_attention as flash

        plain(case, "flash_attention")
        n = min(512, case.length)
        names = [field.name for field in fields(flash.BlockSizes)]
        sizes = flash.BlockSizes(**{name: 1 if name == "block_b" else n for name in names})
        first = [x.swapaxes(1, 2) for x in (q, *repeated(case, k, v))]
        out = flash.flash_attention(
            *first, causal=case.causal, sm_scale=case.head**-0.5, block_sizes=sizes
        )
        return out.swapaxes(1, 2)

    return run


def pallas_splash(case: Any) -> Callable[..., Any]:
    """JAX's sparse Pallas kernels for TPUs, with tiles of 512; they do not scale the scores."""

    def run(q: Any, k: Any, v: Any) -> Any:
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel as kernel,
        )
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

        T, n = case.length, min(512, case.length)
        near = None if case.window is None else case.window - 1
        whole = masks.CausalMask((T, T)) if case.causal else masks.FullMask((T, T))
        if near is not None:
            whole = masks.LocalMask((T, T), (near, 0 if case.causal else near), 0)
        names = "block_q block_kv block_kv_compute block_q_dkv block_kv_dkv block_kv_dkv_compute"
        tiles: Any = dict.fromkeys([*names.split(), "block_q_dq", "block_kv_dq"], n)
        sizes = kernel.BlockSizes(**tiles)
        attend: Any = kernel.make_splash_mha_single_device(
            masks.MultiHeadMask([whole] * case.heads), block_sizes=sizes
        )
        given = scaled(case, q), *repeated(case, k, v)
        return jax.vmap(attend)(*(x.swapaxes(1, 2) for x in given)).swapaxes(1, 2)

    return run


def by_tokamax(case: Any) -> Callable[..., Any]:
    """tokamax's attention, as it chooses."""

    def run(q: Any, k: Any, v: Any) -> Any:
        tokamax = importlib.import_module("tokamax")
        plain(case, "tokamax")
        return tokamax.dot_product_attention(q, k, v, is_causal=case.causal)

    return run


def in_torch(case: Any, platform: str) -> Contender:
    """PyTorch's scaled_dot_product_attention, with all threads, as it chooses."""

    def ready(inputs: Mapping[str, Any], passes: Sequence[str]) -> Ready:
        torch = importlib.import_module("torch")
        plain(case, "scaled_dot_product_attention")
        there = "cuda" if platform == "gpu" else "cpu"
        made = {n: to_torch(torch, x, there) for n, x in inputs.items()}
        q, k, v = (x.transpose(1, 2).contiguous() for x in made.values())
        for x in (q, k, v):
            x.requires_grad_(True)
        shared = {"enable_gqa": True} if case.heads != case.kv_heads else {}

        def forward() -> Any:
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=case.causal, **shared
            )

        with torch.no_grad():
            cotangent = to_torch(torch, slope(inputs["q"]), there).transpose(1, 2).contiguous()
        kept = forward()

        def without() -> Any:
            with torch.no_grad():
                return forward()

        calls: dict[str, Callable[[], Any]] = {
            "forward": without,
            "backward": lambda: torch.autograd.grad(kept, (q, k, v), cotangent, retain_graph=True),
            "training": lambda: torch.autograd.grad(forward(), (q, k, v), cotangent),
        }
        wait = (lambda _: torch.cuda.synchronize()) if platform == "gpu" else (lambda _: None)

        def values() -> dict[str, Any]:
            back = lambda x: np.asarray(x.detach().transpose(1, 2).float().cpu().numpy())
            return named("qkv", back(kept), [back(x) for x in calls["backward"]()])

        return Ready({n: Program(calls[n], wait) for n in passes}, values)

    return ready


def to_torch(torch: Any, x: Any, where: str) -> Any:
    """A copy of an array on a device of torch's."""
    wide = torch.from_numpy(np.array(x.astype(jnp.float32)))
    return wide.to(where, getattr(torch, str(x.dtype)))
