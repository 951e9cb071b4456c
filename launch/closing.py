"""What a finished run says: where it stands, a sample, and what to do next."""

from collections.abc import Callable
from pathlib import Path

from jscale.trainer import Trainer


def say_goodbye(
    trainer: Trainer, folder: Path, say: Callable[[str], None], *, trained: int
) -> None:
    """Tell a person the figures, one continuation, and the next commands."""
    recipe, name = trainer.recipe, folder
    if not trained:
        say(f"{name} is finished: {recipe.steps} steps. Train longer with steps=...")
    values = trainer.summary()["values"]
    figures = {
        "loss": values.get("train/loss"),
        "held-out loss": values.get("heldout/loss"),
        "tokens/s": values.get("train/tokens_per_second"),
    }
    known = [f"{k} {v:,.4g}" for k, v in figures.items() if v is not None]
    if known:
        say("; ".join([f"step {trainer.step}", *known]))
    prompt = recipe.samples.prompts[0] if recipe.samples else "def "
    say(f"--- a sample\n{prompt}{trainer.generate([prompt])[0]}\n---")
    phases = sorted(trainer.seconds.items(), key=lambda item: -item[1])
    say("time: " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases[:5]))
    say(
        f"everything is in {name}. Next:\n"
        f'  jscale generate {name} --prompt "{prompt}"\n'
        f"  jscale ckpt list {name}\n"
        f"  tensorboard --logdir {name}/events\n"
        f"  jscale recipes copy {recipe.name}     # a file to make your own"
    )
