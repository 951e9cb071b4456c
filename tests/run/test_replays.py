"""A step in which tokens found no room is void, and is done again without bounds."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from run.tiny import tiny

from jscale.experts.journal import read
from jscale.mesh import MeshShape
from jscale.models import Mixtral
from jscale.models.dispatching import Dispatch
from jscale.models.gates import Balance, TopK
from jscale.models.sparse import Experts
from jscale.optim import AdamW, Constant
from jscale.run.trainer import Trainer


def recipe(folder: Path, room: float | None, **more):
    experts = Experts(4, TopK(2), 16, balance=Balance(), dispatch=Dispatch("gather", room))
    plain = tiny(folder, steps=4, samples=None, evaluation=None)
    model = Mixtral(260, 32, 2, 2, 2, 32, experts=experts, remat="none")
    logging = replace(plain.logging, every=1)
    adam = AdamW(1e-2, Constant())
    return replace(
        plain, model=model, optimizer=adam, mesh=MeshShape(expert=4), logging=logging, **more
    )


def done(recipe, folder: Path):
    """The parameters at the end, the metrics of all steps, and what was told."""
    told: list[str] = []
    note = lambda event: told.append(getattr(event, "text", ""))
    with Trainer(recipe, folder, callbacks=[note]) as trainer:
        seen = [{n: float(m) for n, m in metrics.items()} for _, metrics in trainer]
        return jax.tree.map(np.asarray, trainer.state), seen, told


def test_a_step_without_room_is_done_again_to_the_same_bits(tmp_path: Path) -> None:
    """Weights, moments, position and randomness are those of a run that never had a bound; what
    happened is counted, told and shown."""
    free, _, _ = done(recipe(tmp_path, None), tmp_path / "free")
    tight, seen, told = done(recipe(tmp_path, 0.3), tmp_path / "tight")
    for name in ("step", "params", "optimizer", "rng"):
        for one, other in zip(
            *(jax.tree.leaves(getattr(s, name)) for s in (free, tight)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert [values["replays"] for values in seen] == [1, 2, 3, 4]
    assert all(values["moe_overflow"] > 0 for values in seen)
    assert sum("found no room" in text for text in told) == 4
    kept = [entry.step for entry in read(tmp_path / "tight" / "experts.jsonl")]
    assert kept == [1, 2, 3, 4]


def test_where_there_is_room_nothing_is_done_again(tmp_path: Path) -> None:
    _, seen, told = done(recipe(tmp_path, 4.0), tmp_path / "run")
    assert seen[-1]["replays"] == 0 and not any("no room" in text for text in told)


def test_evaluation_and_generation_have_no_bounds(tmp_path: Path) -> None:
    """They lose no token, though nobody would do them again."""
    with Trainer(recipe(tmp_path, 0.3, steps=1), tmp_path / "run") as trainer:
        trainer.fit()
        tight = trainer.predict(["some text to be scored, of a few words"])
        params = trainer.evaluation_params
        free = Trainer(recipe(tmp_path, None, steps=1), tmp_path / "free")
        with free:
            free.start_from(jax.tree.map(np.asarray, params))
            assert all(
                (a == b).all()
                for a, b in zip(
                    tight, free.predict(["some text to be scored, of a few words"]), strict=True
                )
            )
