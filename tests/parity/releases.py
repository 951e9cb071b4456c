"""What every family of causal language models is put through, against `transformers` itself."""

from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jscale.formats import huggingface
from jscale.formats.files import Files, write_files
from jscale.mesh import MeshShape
from jscale.pretrained import Pretrained, from_pretrained

torch: Any = pytest.importorskip("torch")
theirs: Any = pytest.importorskip("transformers")
revert_weight_conversion: Any = import_module(
    "transformers.core_model_loading"
).revert_weight_conversion

LOGITS, GRADIENTS = 1e-4, 1e-3
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
VOCAB = 62
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
)


@dataclass(frozen=True)
class Case:
    """A small model of `transformers`: the name of its family, as in "LlamaForCausalLM", options
    besides `SIZES`, and the names of its config and class, where they are not the family's."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    named: str = ""
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)

    @property
    def architecture(self) -> str:
        return self.named or f"{self.family}ForCausalLM"


def saved(case: Case, folder: Path) -> tuple[Path, Any]:
    """A folder as `transformers` saves it, with weights that are all random, and the model."""
    torch.manual_seed(len(repr(case)))
    config = getattr(theirs, f"{case.config or case.family}Config")(**case.sizes | case.options)
    model = getattr(theirs, case.architecture)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    model.save_pretrained(folder / "release")
    return folder / "release", model


def tokens(length: int = 14) -> np.ndarray:
    """Four rows."""
    return np.random.default_rng(0).integers(0, VOCAB, (4, length))


def scores(ours: Pretrained, params: Any, x: Any) -> Any:
    """The logits of the rows."""
    with ours.layout.active():
        network = ours.model.bind(params)
        return network.unembed(network(x).hidden)


def logits(ours: Pretrained, x: np.ndarray) -> Any:
    """`scores`, compiled."""
    run = jax.jit(partial(scores, ours), compiler_options=QUICK)
    return run(ours.params, jnp.asarray(x, jnp.int32))


def logits_and_gradients(ours: Pretrained, x: np.ndarray, by: np.ndarray) -> Any:
    """Scores, and the gradient of their sum weighted by numbers."""

    @partial(jax.jit, compiler_options=QUICK)
    def run(params: Any, x: Any) -> Any:
        out, back = jax.vjp(lambda params: scores(ours, params, x), params)
        return out, back(jnp.asarray(by))[0]

    return run(ours.params, jnp.asarray(x, jnp.int32))


def check_logits_and_gradients(folder: Path, model: Any) -> None:
    """Logits are theirs within 1e-4, the gradient of every weight within 1e-3 of its largest."""
    ours, x = from_pretrained(folder, MeshShape()), tokens()
    out = model(torch.from_numpy(x)).logits
    by = np.random.default_rng(1).standard_normal(out.shape).astype("f4") / 20
    (out * torch.from_numpy(by)).sum().backward()
    mine, grads = logits_and_gradients(ours, x, by)
    assert np.abs(mine - out.detach().numpy()).max() <= LOGITS
    found = huggingface.table(ours.model.config).write(grads)
    # As files name them: experts, which are one array in memory, have each their own there.
    there = {n: w.grad for n, w in model.named_parameters() if w.requires_grad}
    wanted = revert_weight_conversion(model, there)
    for name in set(found) - set(wanted):  # what is chosen by, and not trained
        assert name in model.state_dict() and not found.pop(name).any(), name
    assert set(found) == set(wanted)
    for name, grad in wanted.items():
        grad = grad.numpy()
        assert np.abs(found[name] - grad).max() <= GRADIENTS * np.abs(grad).max(), name


def check_export(folder: Path, model: Any, out: Path) -> None:
    """What we write of an import is opened there with the same weights and logits, to the bit."""
    ours = from_pretrained(folder, MeshShape())
    out.mkdir()
    arrays = huggingface.table(ours.model.config).lazily(ours.params)
    write_files(arrays, out, lambda lazy: lazy.fetch(), shard=20_000)
    for name, text in huggingface.files(ours.model.config, {}).items():
        (out / name).write_text(text)
    assert (out / "model.safetensors.index.json").exists()
    again, told = theirs.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told.values()), told
    assert type(again) is type(model)
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    for name, weight in model.state_dict().items():
        assert torch.equal(state[name], weight), name
    x = torch.from_numpy(tokens())
    with torch.no_grad():
        assert torch.equal(again.eval()(x).logits, model(x).logits)
    assert huggingface.config_of(out) == ours.model.config


def check_eight_devices(folder: Path, mesh: MeshShape | None = None) -> None:
    """A release read into eight devices is that of one: its weights, its logits."""
    one, x = from_pretrained(folder, MeshShape()), tokens()
    eight = from_pretrained(folder, mesh or MeshShape(data=2, fsdp=2, tensor=2))
    for a, b in zip(*map(jax.tree.leaves, (one.params, eight.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(len(w.sharding.device_set) == 8 for w in jax.tree.leaves(eight.params))
    np.testing.assert_allclose(logits(eight, x), logits(one, x), atol=1e-5)
    table = huggingface.table(eight.model.config)
    with Files(folder) as files:
        for name, array in table.write(eight.params).items():
            np.testing.assert_array_equal(array, files[name])
