"""The original TorchScale, patched so that it runs on a CPU: what parity is measured against.

The wheel 0.3.0 wants timm 0.6.13, which does not load beside today's PyTorch (all it takes from it
is `drop_path`), a process group for its experts, and `torch.histc` of integers.
"""

import importlib
import os
import socket
import sys
import types
from functools import lru_cache

import pytest

WANTED = "TorchScale is not installed: see docs/dependencies.md, parity"


def absent(name: str) -> None:
    """Skip a test for want of a package; in CI, where it must be here, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{name}: {WANTED}")
    pytest.skip(f"{name}: {WANTED}")


def torch():
    """PyTorch on one thread, or a skipped test."""
    try:
        module = importlib.import_module("torch")
    except ImportError:
        absent("torch")
    module.set_num_threads(1)
    return module


def _drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True):
    if drop_prob == 0.0 or not training:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    return x * x.new_empty(shape).bernoulli_(1 - drop_prob) / (1 - drop_prob)


@lru_cache(maxsize=1)
def _patched():
    module = torch()
    for name in ("timm", "timm.models", "timm.models.layers"):
        sys.modules.setdefault(name, types.ModuleType(name))
    whole = module.histc
    vars(sys.modules["timm.models.layers"])["drop_path"] = _drop_path
    vars(module)["histc"] = lambda x, *rest, **more: whole(x.float(), *rest, **more)
    return importlib.import_module("torchscale")


def torchscale(name: str = ""):
    """A module of the package by its dotted name, `torchscale("architecture.encoder")`."""
    torch()
    try:
        _patched()
        return importlib.import_module(f"torchscale.{name}" if name else "torchscale")
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("torchscale", "fairscale"):
            absent("torchscale")
        raise


def process_group() -> None:
    """One process as a group, which the original's experts want."""
    distributed = torch().distributed
    if distributed.is_initialized():
        return
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    where = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)


def weights(module) -> dict:
    """Its state dictionary as NumPy arrays."""
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def gradients(module) -> dict:
    """The gradients of its parameters by name; 0 where none arrived."""
    zero = torch().zeros_like
    named = module.named_parameters(remove_duplicate=False)
    return {
        name: (zero(p) if p.grad is None else p.grad).detach().numpy().copy() for name, p in named
    }
