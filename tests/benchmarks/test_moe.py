"""The benchmark of mixtures: what is by hand is the same step, and results say what they are of."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import SAME, assert_close

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("moe_by_hand")


LOADS = {
    "any": np.random.default_rng(0).permuted(np.tile(np.arange(5), (12, 1)), axis=1)[:, :2],
    "one expert has all": np.tile([3, 0], (12, 1)),
    "some have none": np.tile([[1, 4], [4, 1]], (6, 1)),
}


@pytest.mark.parametrize("load", LOADS)
def test_all_ways_by_hand_are_every_expert_on_every_token(by_hand, load, monkeypatch):
    monkeypatch.setattr(by_hand, "BLOCK", 5)  # which no number of rows is a multiple of
    draw = np.random.default_rng(1)
    shapes = (12, 8), (12, 2), (5, 8, 12), (5, 6, 8)
    x, weights, wide, down = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in shapes)
    chosen = jnp.asarray(LOADS[load])

    def everyone(x, chosen, weights, wide, down):
        gate, up = jnp.split(jnp.einsum("md,edf->emf", x, wide), 2, -1)
        out = jnp.einsum("emf,efd->emd", jax.nn.silu(gate) * up, down)
        share = (weights[..., None] * jax.nn.one_hot(chosen, 5)).sum(1)
        return jnp.einsum("me,emd->md", share, out)

    def gradients(way):
        loss = lambda *given: jnp.square(way(given[0], chosen, *given[1:])).sum()
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(x, weights, wide, down)

    wanted = gradients(everyone)
    for way in (by_hand.blocks, by_hand.ragged, by_hand.one_hot(2, 6)):
        assert_close(gradients(way), wanted, SAME)


def test_results_name_machine_versions_and_no_place():
    kept = json.loads((FOLDER / "results" / "moe-cpu.json").read_text())["jobs"]
    for load in ("natural", "forced"):
        job = kept[load]
        assert {"jax", "jscale"} <= set(job["machine"]["versions"]) and job["machine"]["processor"]
        assert job["contenders"]["jscale"]["ratio"] == 1
        assert all(one["loss_off"] < 1e-5 for one in job["contenders"].values())
    assert str(FOLDER.parent) not in json.dumps(kept)


@pytest.mark.slow
def test_a_quick_run_compares_values_and_keeps_nothing():
    kept = (FOLDER / "results" / "moe-cpu.json").read_bytes()
    words = [sys.executable, str(FOLDER / "moe.py"), "--quick", "--steps", "2"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = json.loads(done.stdout)["jobs"]
    for load in ("natural", "forced"):
        found = jobs[load]["contenders"]
        assert {"jscale", "by hand, blocks", "by hand, ragged_dot"} <= set(found)
        assert all(one["loss_off"] < 1e-5 and one["seconds"] > 0 for one in found.values())
    assert all(
        case["silent"] == {} for case in jobs["layers"]["cases"] if case["case"]["devices"] > 1
    )
    assert (FOLDER / "results" / "moe-cpu.json").read_bytes() == kept
