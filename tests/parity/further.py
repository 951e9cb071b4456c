"""Modules that look ahead, against those of `transformers`."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from parity.releases import GRADIENTS, LOGITS, QUICK, revert_weight_conversion, tokens, torch

from jscale.formats import huggingface
from jscale.formats.files import Files, write_files
from jscale.formats.huggingface.verify import verify
from jscale.mesh import MeshShape
from jscale.pretrained import Pretrained, from_pretrained


def further_of(model: Any) -> Any:
    """The modules of `transformers` that look ahead, with weights that are all random."""
    layers: Any = import_module("transformers.modeling_layers")
    further = layers.MtpModel(model, model.config.num_nextn_predict_layers).eval()
    with torch.no_grad():
        for weight in further.layers.state_dict().values():
            weight.copy_(torch.randn_like(weight) * 0.2)
    return further


def in_files(tensors: dict[str, Any], layers: int) -> dict[str, np.ndarray]:
    """What such modules have of their own, as releases name it."""
    out = {}
    for name, tensor in tensors.items():
        number, rest = name.split(".", 1)
        rest = rest.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
        head = f"model.layers.{layers + int(number)}."
        if not rest.startswith("mlp.experts."):
            out[head + rest] = tensor.numpy()
            continue
        for expert, both in enumerate(tensor):
            two = both.chunk(2) if rest.endswith("gate_up_proj") else [both]
            for kind, part in zip(("gate", "up") if len(two) == 2 else ("down",), two, strict=True):
                out[f"{head}mlp.experts.{expert}.{kind}_proj.weight"] = part.numpy()
    return out


def with_further(folder: Path, model: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The release with one such module, as releases have it: the module, and what is of its own."""
    further = further_of(model)
    own = in_files(further.layers.state_dict(), model.config.num_hidden_layers)
    with Files(folder) as files:
        whole = {name: files[name] for name in files}
    embed = model.model.embed_tokens.weight.detach().numpy()
    again = {f"model.layers.{model.config.num_hidden_layers}.embed_tokens.weight": embed}
    write_files({**whole, **own, **again}, folder)
    return further, {**whole, **own}


def foreseen(ours: Pretrained, x: np.ndarray, by: np.ndarray) -> Any:
    """Scores from one token further back, and the gradient of their sum weighted by numbers."""

    @partial(jax.jit, compiler_options=QUICK)
    def run(params: Any, rows: Any) -> Any:
        def ahead(params: Any) -> Any:
            network = ours.model.bind(params)
            ((hidden, _),) = network.foresee(network(rows).hidden, rows).depths
            return network.unembed(hidden)[:, 1:]

        out, back = jax.vjp(ahead, params)
        return out, back(jnp.asarray(by))[0]

    return run(ours.params, jnp.asarray(x, jnp.int32))


def check_foreseen(folder: Path, model: Any, out: Path) -> None:
    """Scores and gradients are theirs, and what was read is written to the same bits."""
    (further, own), x = with_further(folder, model), tokens()
    hidden = model.model(torch.from_numpy(x)).last_hidden_state[:, :-1]
    places = torch.arange(1, x.shape[1])[None].expand(len(x), -1)
    rest = torch.from_numpy(x[:, 1:])
    scores = model.lm_head(further.forward_layer(0, hidden, places, None, input_ids=rest))
    by = np.random.default_rng(1).standard_normal(scores.shape).astype("f4") / 20
    (scores * torch.from_numpy(by)).sum().backward()

    ours = from_pretrained(folder, MeshShape())
    found, grads = foreseen(ours, x, by)
    assert np.abs(found - scores.detach().numpy()).max() <= LOGITS
    mine = huggingface.table(ours.model.config).write(grads)
    there = {n: w.grad for n, w in model.named_parameters()}
    wanted = {n: g.numpy() for n, g in revert_weight_conversion(model, there).items()}
    grads_of = {n: w.grad for n, w in further.layers.named_parameters()}
    wanted |= in_files(grads_of, model.config.num_hidden_layers)
    assert {n for n in mine if "correction" not in n} == set(wanted)
    for name, grad in wanted.items():
        assert np.abs(mine[name] - grad).max() <= GRADIENTS * np.abs(grad).max(), name

    out.mkdir()
    write_files(huggingface.table(ours.model.config).write(ours.params), out)
    with Files(out) as files:
        assert set(files) == set(own)
        for name in files:
            np.testing.assert_array_equal(files[name], own[name])
    (out / "config.json").write_text(huggingface.files(ours.model.config, {})["config.json"])
    assert verify(ours.model, ours.params, ours.layout, out).apart <= LOGITS
