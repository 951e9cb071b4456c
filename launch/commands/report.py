"""`jscale report RUN [RUN ...]`: a run, or several compared, as one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from jscale.launch.commands.arguments import Parser


def main(arguments: Sequence[str]) -> int:
    """Write the page and say where it is."""
    parser = Parser(
        prog="jscale report", description="A run, or several compared, as one HTML page."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where to write it (RUN/report.html; comparison.html for several runs)",
    )
    options = parser.parse_args(list(arguments))
    from jscale.report import report

    out = Path(options.out) if options.out else None
    print(f"written: {report([Path(run) for run in options.runs], out)}")
    return 0
