"""What every release is put through that is no causal language model, against `transformers`.

Its family says what it is asked, and which of its outputs are compared.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from parity.releases import GRADIENTS, LOGITS, QUICK, theirs, torch

from jscale.formats import huggingface
from jscale.formats.files import Files, write_files
from jscale.formats.huggingface.verify import arrays
from jscale.mesh import MeshShape
from jscale.pretrained import Pretrained, from_pretrained


def saved(architecture: str, config: Any, folder: Path) -> tuple[Path, Any]:
    """A folder as `transformers` saves it, with weights that are all random, and the model."""
    torch.manual_seed(len(repr(config)))
    model = getattr(theirs, architecture)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder / "release")
    return folder / "release", model


def asked(ours: Pretrained) -> dict[str, np.ndarray]:
    """What both are given: four rows."""
    family = huggingface.family_of(ours.model.config)
    return family.asked.inputs(ours.model.config, 4, np.random.default_rng(0))


def said(ours: Pretrained, params: Any, inputs: Any) -> dict[str, Any]:
    """What our network says, by the names of theirs."""
    says = huggingface.family_of(ours.model.config).asked.says
    with ours.layout.active():
        return says(ours.model.bind(params), inputs)


def check_outputs_and_gradients(folder: Path, model: Any) -> None:
    """Outputs are theirs within 1e-4, and the gradient of every weight within 1e-3 of its largest.

    A weight that reaches no output has none on either side.
    """
    ours = from_pretrained(folder, MeshShape())
    inputs, draw = asked(ours), np.random.default_rng(1)
    out = model(**{name: torch.from_numpy(x) for name, x in inputs.items()})
    run = jax.jit(partial(said, ours), compiler_options=QUICK)
    mine = run(ours.params, arrays(inputs))
    by = {name: draw.standard_normal(x.shape).astype("f4") / 20 for name, x in mine.items()}
    for name, x in mine.items():
        assert np.abs(x - getattr(out, name).detach().numpy()).max() <= LOGITS, name
    total: Any = sum((getattr(out, name) * torch.from_numpy(by[name])).sum() for name in mine)
    total.backward()

    @partial(jax.jit, compiler_options=QUICK)
    def slope(params: Any) -> Any:
        told = lambda params: said(ours, params, arrays(inputs))
        return jax.grad(lambda p: sum((x * by[n]).sum() for n, x in told(p).items()))(params)

    found = huggingface.table(ours.model.config).write(slope(ours.params))
    with torch.no_grad():  # a file of slopes, for names in files may be others than in memory
        for weight in model.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    model.save_pretrained(folder / "slopes")
    with Files(folder / "slopes") as wanted:
        assert set(found) == set(wanted)
        for name, grad in wanted.items():
            most = GRADIENTS * np.abs(grad).max() + 1e-7
            assert np.abs(found[name] - grad).max() <= most, name


def check_export(folder: Path, model: Any, out: Path) -> None:
    """What we write of an import is opened there with the same weights, to the bit."""
    ours = from_pretrained(folder, MeshShape())
    write_release(ours, out)
    again, told = type(model).from_pretrained(out, output_loading_info=True)
    assert not any(told.values()), told
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    for name, weight in model.state_dict().items():
        assert torch.equal(state[name], weight), name
    inputs = {name: torch.from_numpy(x) for name, x in asked(ours).items()}
    with torch.no_grad():
        one, two = again.eval()(**inputs), model(**inputs)
    assert one.keys() == two.keys()
    tensors = [name for name in one if isinstance(one[name], torch.Tensor)]
    assert tensors and all(torch.equal(one[name], two[name]) for name in tensors)
    assert huggingface.config_of(out) == ours.model.config


def write_release(ours: Pretrained, out: Path) -> Path:
    """A folder with weights, config and what stands beside them."""
    config = ours.model.config
    out.mkdir()
    arrays = huggingface.table(config).lazily(ours.params)
    write_files(arrays, out, lambda lazy: lazy.fetch(), shard=20_000)
    for name, text in huggingface.files(config, {}).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    return out


def check_eight_devices(folder: Path) -> None:
    """A release read into eight devices is that of one: its weights, what it says."""
    one = from_pretrained(folder, MeshShape())
    eight = from_pretrained(folder, MeshShape(data=2, fsdp=2, tensor=2))
    for a, b in zip(*map(jax.tree.leaves, (one.params, eight.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(len(w.sharding.device_set) == 8 for w in jax.tree.leaves(eight.params))
    inputs = arrays(asked(one))
    for name, wanted in jax.jit(partial(said, one))(one.params, inputs).items():
        found = jax.jit(partial(said, eight), compiler_options=QUICK)(eight.params, inputs)[name]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    table = huggingface.table(eight.model.config)
    with Files(folder) as files:
        for name, array in table.write(eight.params).items():
            np.testing.assert_array_equal(array, files[name])
