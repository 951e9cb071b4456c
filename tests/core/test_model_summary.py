"""A summary adds up: to the model's own counts, to the convention of FLOPs, to a layout's bytes."""

import math
import subprocess
import sys
from typing import Any

import jax
import pytest
from laws import DECODERS
from run.tiny import environment

import jscale
from jscale.errors import ConfigError
from jscale.flops import flops_per_token
from jscale.mesh import Layout, MeshShape, Override, Rules, abstract_mesh, make_mesh
from jscale.model_summary import Summary, summary
from jscale.models import BEiT3, Llama, Model, TransformerDecoder
from jscale.models.beit3 import Patches
from jscale.models.feed import MLP
from jscale.models.moe import MoE

L, D, N, K, H, F, V = (
    3,
    64,
    4,
    2,
    32,
    128,
    1000,
)  # layers, dim, heads, kv_heads, head, hidden, vocab
KIND: Any = Llama  # a class where a config is wanted
LLAMA = Llama(V, D, L, N, K, F, head=H)
EXPERTS = TransformerDecoder(64, 32, 4, 4, (MLP(64), MoE(4, MLP(64))))
BEIT = BEiT3(384, 64, 2, 4, MLP(128), Patches(24, 6))
ALL = {**DECODERS, "experts": EXPERTS, "beit3": BEIT}


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_it_adds_up_to_what_the_model_says(config):
    model = Model(config, store="bfloat16")
    found = summary(model, length=48)
    assert sum(row.parameters for row in found.rows) == found.parameters == model.size
    assert round(sum(row.active for row in found.rows)) == found.active == model.active
    assert 3 * found.flops == pytest.approx(flops_per_token(model, 48))
    assert found.bytes == sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(model.shapes))
    assert len({row.name for row in found.rows}) == len(jax.tree.leaves(model.shapes))


def test_each_weight_is_as_by_hand():
    rows = {row.name: row for row in summary(LLAMA).rows}
    q, gate = rows["blocks/block/attend/q"], rows["blocks/block/feed/gate"]
    assert q.shape == (L, D, N, H) and q.axes == ("layers", "embed", "heads", "head")
    assert (q.parameters, q.flops, q.bytes) == (L * D * N * H, 2 * L * D * N * H, 4 * L * D * N * H)
    assert gate.flops == 2 * L * D * F and gate.module == "blocks/block/feed"
    assert rows["embed/table"].flops == 0 and rows["head/kernel"].flops == 2 * D * V
    assert rows["blocks/block/feed_norm/scale"].flops == 0
    tied = {row.name: row for row in summary(Llama(V, D, L, N, K, F, tied=True)).rows}
    assert tied["embed/table"].flops == 2 * D * V


def test_biases_of_heads_do_not_multiply():
    rows = {row.name.rpartition("/")[2]: row for row in summary(EXPERTS).rows}
    assert rows["q_bias"].flops == 0 and rows["q"].flops > 0


@pytest.mark.parametrize("length", [1, 7, 4096])
def test_attention_is_a_row_of_its_own(length):
    found = summary(LLAMA, length=length)
    assert found.attention == pytest.approx(2 * 2 * L * N * H * length / 2)
    last = found.cells()[-1]
    assert last[0].startswith("attention") and f"{found.attention:,.0f}" in last


@pytest.mark.parametrize(
    "mesh",
    [
        MeshShape(fsdp=4, tensor=2),
        make_mesh(MeshShape(fsdp=2, data=4)),
        Layout(
            abstract_mesh(MeshShape(fsdp=8)),
            Rules(overrides=(Override(".*/feed/.*", {"mlp": None, "embed": None}),)),
        ),
    ],
    ids=["shape", "mesh", "layout"],
)
def test_bytes_on_a_device_are_those_of_its_shards(mesh):
    model, layout = Model(LLAMA), mesh
    if not isinstance(layout, Layout):
        layout = Layout(abstract_mesh(mesh) if isinstance(mesh, MeshShape) else mesh)
    found = summary(model, mesh)
    placed = layout.weight_shardings(model.shapes, model.axes)
    shards = jax.tree.map(lambda s, at: math.prod(at.shard_shape(s.shape)), model.shapes, placed)
    assert [row.per_device for row in found.rows] == [4 * n for n in jax.tree.leaves(shards)]
    assert found.bytes_per_device == 4 * sum(jax.tree.leaves(shards)) < found.bytes
    assert "per device" in found.header and "on each device (" in str(found)


def test_what_would_tell_nothing_is_not_there():
    plain, experts = summary(LLAMA), summary(EXPERTS)
    assert plain.bytes_per_device is None and "per device" not in plain.header
    assert "a token uses" not in plain.header and "a token uses" in experts.header
    assert f"of which a token uses {experts.active:,}" in str(experts)


def test_it_prints_modules_with_their_sums_and_weights_below_them():
    lines = str(summary(LLAMA)).splitlines()
    assert (
        lines[0] == "Llama(vocab=1000, dim=64, layers=3, heads=4, kv_heads=2, hidden=128, head=32)"
    )
    module = next(i for i, line in enumerate(lines) if line.startswith("blocks/block/feed "))
    assert lines[module].split()[1] == f"{3 * L * D * F:,}"
    assert [line.split()[0] for line in lines[module + 1 : module + 4]] == ["down", "gate", "up"]
    assert lines[module + 1].split()[1] == f"{L}x{F}x{D}"
    html = summary(LLAMA)._repr_html_()
    assert (
        html.startswith("<table><caption>Llama(") and "<td>layers, embed, heads, head</td>" in html
    )


def test_seventy_billion_weights_need_no_device():
    code = (
        "import jscale, jscale.model_summary; from jscale.models import Llama;"
        "made = Llama(128256, 8192, 80, 64, 8, 28672);"
        "print(jscale.summary(made, jscale.MeshShape(fsdp=64, tensor=8), length=8192))"
    )
    none = {**environment(), "JAX_PLATFORMS": "none at all"}  # asking for a device would fail
    done = subprocess.run([sys.executable, "-c", code], env=none, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "70,553,706,496 parameters; 262.8 GiB" in done.stdout
    assert "530.7 MiB of them on each device (fsdp=64 tensor=8)" in done.stdout


def test_the_door_is_the_function():
    assert jscale.summary is summary and isinstance(jscale.summary(Model(LLAMA)), Summary)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: summary(KIND), "not of Llama"),
        (lambda: summary(LLAMA, length=0), "at least 1 token, not length=0"),
        (lambda: summary(LLAMA, MeshShape(tensor=3)), "does not divide over tensor=3"),
    ],
)
def test_what_is_no_model_or_does_not_fit_is_said(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()
