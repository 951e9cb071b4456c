"""After the first step: what should learn and has no gradient ends the run, unless it may."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from run.tiny import tiny

from jscale.audit import idle, judge, squares
from jscale.errors import ConfigError, NumericError
from jscale.experts.counts import Layer
from jscale.losses import NextToken
from jscale.models import Mixtral
from jscale.models.gates import Balance, TopK
from jscale.models.sparse import Experts
from jscale.optim import AdamW, Constant, Frozen
from jscale.run.trainer import Trainer

SHAPES = {
    "feed": {
        "expert": jax.ShapeDtypeStruct((2, 3, 4, 5), jnp.float32),
        "router": jax.ShapeDtypeStruct((2, 4, 3), jnp.float32),
    },
    "norm": jax.ShapeDtypeStruct((4,), jnp.float32),
}
AXES = {
    "feed": {
        "expert": PartitionSpec("layers", "experts", "embed", "mlp"),
        "router": PartitionSpec("layers", "embed", "experts"),
    },
    "norm": PartitionSpec("scale"),
}


def test_squares_are_told_by_layer_and_expert_and_sum_to_the_norm():
    keys = iter(jax.random.split(jax.random.key(0), 3))
    grads = jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape), SHAPES)
    rows = squares(grads, AXES)
    assert [x.shape for x in rows.values()] == [(2, 3), (2,), ()]
    total = sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(sum(float(x.sum()) for x in rows.values()), total, rtol=1e-6)
    assert not list(idle(rows))
    grads["feed"]["expert"] = grads["feed"]["expert"].at[1, 2].set(0)
    grads["norm"] *= 0
    found = list(idle(squares(grads, AXES)))
    assert [str(one) for one in found] == ["feed/expert[1, 2]", "norm"]


def layer(name, chosen):
    chosen = np.array(chosen, float)
    return Layer(name, chosen, chosen, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, np.zeros(0))


def test_an_expert_that_nobody_chose_is_counted_and_another_refused():
    found = list(idle({"squares/routed/expert/up": np.array([[1.0, 0, 1], [1, 1, 1]])}))
    used = [layer("routed/0", [4, 0, 4]), layer("routed/1", [3, 3, 2])]
    assert judge(found, used, ()) == ["1 expert(s) were chosen by no token of the first batch"]
    with pytest.raises(
        NumericError, match=r"no gradient: routed/expert/up\[0, 1\]\. Something cuts"
    ):
        judge(found, [layer("routed/0", [4, 1, 3]), used[1]], ())
    told = judge(found, [layer("routed/0", [4, 1, 3]), used[1]], ("*/expert/*",))
    assert told == ["1 weight(s) without a gradient, as allowed"]


@dataclass(frozen=True)
class Deaf(NextToken):
    """A loss that forgets a router: the fault that others have shipped."""

    def __call__(self, model, params, batch, rng):
        kernel = params["blocks"]["block"]["feed"]["routed"]["router"]
        kernel["kernel"] = jax.lax.stop_gradient(kernel["kernel"])
        return super().__call__(model, params, batch, rng)


def recipe(folder: Path, **more):
    experts = Experts(4, TopK(2), 16, balance=Balance())
    plain = tiny(folder, steps=2, samples=None, evaluation=None)
    model = Mixtral(260, 32, 2, 2, 2, 32, experts=experts, remat="none")
    return replace(plain, model=model, **{"optimizer": AdamW(1e-3, Constant()), **more})


def test_a_router_that_is_cut_off_ends_the_run_after_its_first_step(tmp_path: Path) -> None:
    with (
        pytest.raises(NumericError, match=r"no gradient: .*/routed/router/kernel.*guard\.idle="),
        Trainer(recipe(tmp_path, loss=Deaf()), tmp_path / "run") as trainer,
    ):
        trainer.fit()
    guard = replace(tiny(tmp_path).guard, idle=("*/router/*",))
    told: list[str] = []
    note = lambda event: told.append(getattr(event, "text", ""))
    allowed = recipe(tmp_path, loss=Deaf(), guard=guard)
    with Trainer(allowed, tmp_path / "other", callbacks=[note]) as trainer:
        trainer.fit()
    assert "1 weight(s) without a gradient, as allowed" in told


def test_what_an_objective_has_no_use_for_is_told_and_no_fault():
    rows = {
        "squares/head/kernel": np.array(0.0),
        "squares/routed/router/kernel": np.array([1.0, 0]),
    }
    told = judge(list(idle(rows)), [], ())
    assert told == ["no gradient in the first step: head/kernel, routed/router/kernel[1]"]
    with pytest.raises(NumericError, match=r"1 weight\(s\) .*: routed/router/kernel\[1\]\."):
        judge(list(idle(rows)), [layer("routed/0", [4, 4]), layer("routed/1", [4, 4])], ())


def test_frozen_weights_are_announced_and_no_fault(tmp_path: Path) -> None:
    optimizer = Frozen(AdamW(1e-3, Constant()), ("*/expert/*",))
    with Trainer(recipe(tmp_path, optimizer=optimizer), tmp_path / "run") as trainer:
        notes = trainer.session.notes
        trainer.fit()
    (said,) = (note for note in notes if note.startswith("frozen: "))
    assert "3 weight(s)" in said and "(experts are among them)" in said


def test_patterns_of_nothing_are_told(tmp_path: Path) -> None:
    for more in (
        dict(optimizer=Frozen(AdamW(1e-3, Constant()), ("*/routr/*",))),
        dict(guard=replace(tiny(tmp_path).guard, idle=("*/routr/*",))),
    ):
        with pytest.raises(ConfigError, match=r"no weight matches '\*/routr/\*'"):
            Trainer(recipe(tmp_path, **more), tmp_path / "run")
    with pytest.raises(ConfigError, match="every weight is frozen"):
        Trainer(recipe(tmp_path, optimizer=Frozen(AdamW(1e-3), ("*",))), tmp_path / "run")
