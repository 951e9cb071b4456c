"""`jscale generate RUN --prompt TEXT`: text from a trained model."""

from collections.abc import Sequence
from pathlib import Path

from jscale.launch.commands.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    """Print a continuation of each prompt."""
    parser = Parser(prog="jscale generate", description="Continue prompts with a trained model.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--prompt", action="append", required=True, help="may be given repeatedly")
    parser.add_argument("--length", type=int, default=128, help="tokens at most (128)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest (0.8)")
    parser.add_argument("--top", type=int, default=50, help="tokens to choose from (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (0)")
    parser.add_argument("--step", type=int, help="a checkpoint's step (the newest)")
    parser.add_argument(
        "--import", dest="imports", metavar="FILE", action="append", default=[],
        help="a Python file whose types the run's recipe uses (it is executed)",
    )  # fmt: skip
    options = parser.parse_args(list(arguments))
    from jscale.config.load import load_file
    from jscale.generate import Sampling
    from jscale.restored import open_run
    from jscale.text import continue_texts

    sampling = Sampling(options.temperature, options.top)
    allow = [load_file(Path(file)) for file in options.imports]
    run = open_run(Path(options.run), options.step, allow)
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
        print(prompt + text)
    return 0
