"""What a finished run says: where it stands, a sample, and what to do next."""

import shlex
from collections.abc import Callable
from pathlib import Path

from jscale.generate import writes
from jscale.run.trainer import Trainer
from jscale.text import shown


def say_goodbye(
    trainer: Trainer,
    folder: Path,
    say: Callable[[str], None],
    *,
    trained: int,
    shipped: str | None = None,
) -> None:
    """Tell a person the figures, one continuation, and the next commands.

    `trained` counts the steps of this start; `shipped` names the recipe if it came with jscale.
    """
    recipe, name = trainer.recipe, folder
    if not trained:
        say(f"{name} is at step {trainer.step} of {recipe.steps}. Train longer with steps=...")
    values = trainer.summary()["values"]
    figures = {
        "loss": values.get("train/loss"),
        "held-out loss": values.get("heldout/loss"),
        "tokens/s": values.get("train/tokens_per_second"),
    }
    known = [f"{k} {v:,.4g}" for k, v in figures.items() if v is not None]
    if known:
        say("; ".join([f"step {trainer.step}", *known]))
    prompt = recipe.samples.prompts[0] if recipe.samples else "The"
    if recipe.samples:
        length, sampling = recipe.samples.length, recipe.samples.sampling
        text = trainer.generate([prompt], length, sampling, seed=trainer.step)[0]
        say(f"--- a sample\n{shown(trainer.task.model, prompt, text)}\n---")
    phases = sorted(trainer.seconds.items(), key=lambda item: -item[1])
    say("time: " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases[:5]))
    path = shlex.quote(str(folder))
    ask = f"generate {path} --prompt {shlex.quote(prompt)}"
    commands = [
        f"jscale {ask if writes(trainer.task.model) else f'evaluate {path}'}",
        f"jscale report {path}     # curves, speed, memory, samples as a page",
        f"jscale ckpt list {path}",
        f"tensorboard --logdir {path}/events",
    ]
    if shipped:
        commands.append(f"jscale recipes copy {shipped}     # a file to make your own")
    say("\n  ".join([f"everything is in {name}. Next:", *commands]))
