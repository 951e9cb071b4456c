"""`jscale generate RUN --prompt TEXT`: text from a trained model, or what it makes of a text."""

import argparse
import sys
from collections.abc import Sequence

from jscale.launch.commands.arguments import run_from, run_parser
from jscale.launch.quiet import quiet


def main(arguments: Sequence[str]) -> int:
    """Print each prompt with its continuation, or what an encoder-decoder makes of it."""
    options = parser().parse_args(list(arguments))
    quiet()
    from jscale.generate import Sampling
    from jscale.text import continue_texts, shown

    sampling = Sampling(options.temperature, options.top)
    run = run_from(options)
    texts = continue_texts(
        run.model,
        run.params,
        run.tokenizer,
        options.prompt,
        length=options.length,
        sampling=sampling,
        layout=run.task.layout,
        seed=options.seed,
    )
    for prompt, text in zip(options.prompt, texts, strict=True):
        show(shown(run.model, prompt, text))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = run_parser(
        "generate", "Continue prompts with a trained model, or have it answer to them."
    )
    parser.add_argument("--prompt", action="append", required=True, help="may be given repeatedly")
    parser.add_argument("--length", type=int, default=128, help="tokens at most (128)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest (0.8)")
    parser.add_argument("--top", type=int, default=50, help="tokens to choose from (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (0)")
    return parser


def show(text: str) -> None:
    """Print what a model wrote: to a terminal without what would steer it, else as it is."""
    from jscale.metrics.figures import printable

    encoding = sys.stdout.encoding or "utf-8"
    if sys.stdout.isatty():
        print(printable(text, encoding))
    else:
        print(text.encode(encoding, "replace").decode(encoding, "replace"))
