"""`jscale models [NAME]`: the architectures that are here, or one of them, whole."""

import argparse
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jscale.config.override import override, parse_overrides
from jscale.config.reference import own_fields
from jscale.config.show import show_rows
from jscale.errors import ConfigError, did_you_mean
from jscale.launch.architectures import OPTION, Architecture, architectures, named
from jscale.launch.commands.arguments import Parser
from jscale.launch.commands.compile import mesh_from
from jscale.launch.commands.tables import show
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.model_summary import Summary

WIDTH = 88  # characters of what is told
SMALL = "small"


def main(arguments: Sequence[str]) -> int:
    """Print every architecture, or one with what each option means and what it is made of."""
    asked = parser().parse_intermixed_args(list(arguments))
    if asked.name is None and (asked.size or asked.mesh):
        raise ConfigError("--size and --mesh are of one architecture: jscale models NAME --size …")
    quiet()
    found = architectures()
    if asked.name is None:
        listed(found, asked.json)
        return 0
    one = named(asked.name, found)
    made = summarised(one, asked)
    if asked.json:
        print(json.dumps({**one.as_data(), "summary": made.as_data()}, indent=2))
    else:
        detailed(one, made)
    return 0


def parser() -> Parser:
    out = Parser(
        prog="jscale models",
        description="List the architectures, or show one: options, weights, what is proven.",
    )
    out.add_argument("name", metavar="NAME", nargs="?", help="an architecture of the list")
    out.add_argument(
        "overrides",
        metavar="option=value",
        nargs="*",
        default=[],
        help="values to change before its weights are shown: dim=512",
    )
    out.add_argument("--size", help="the weights of a size of the list (of a small one)")
    out.add_argument("--length", type=int, default=1024, help="tokens of a row, for FLOPs (1024)")
    out.add_argument("--mesh", metavar="AXIS=N,...", help="bytes on each device: fsdp=8,tensor=2")
    out.add_argument("--json", action="store_true", help="print JSON")
    return out


def listed(found: Sequence[Architecture], as_json: bool) -> None:
    """Print all of them."""
    if as_json:
        print(json.dumps([one.as_data() for one in found], indent=2))
        return
    show_rows([row for one in found for row in (*lines(one), ("", ""))])
    print("jscale models NAME  shows what each option means, and the weights")


def lines(one: Architecture) -> Iterator[tuple[str, str]]:
    """What is told of an architecture, in two columns."""
    from jscale.metrics.figures import count

    sizes = [f"{name} {count(n)}" for name, n in one.parameters().items()]
    proofs = [proof.claim for proof in one.card.proofs]
    told = {
        one.name: [one.what],
        "  source": [one.source],
        "  options": [", ".join(field.name for field in own_fields(one.kind))],
        "  parameters": [", ".join(sizes)],
        "  formats": [", ".join(one.formats())],
        "  proven": proofs or ["nothing is stated"],
    }
    for name, texts in told.items():
        rows = [row for text in texts for row in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]
        yield from ((name if i == 0 else "", row) for i, row in enumerate(rows))


def detailed(one: Architecture, made: "Summary") -> None:
    """Print one of them: what it is, its options, weights of one size, and who proves what."""
    from jscale.model_summary import NUMBERS

    options = ("  options", "  proven")
    show_rows([(name, text) for name, text in lines(one) if name not in options and name])
    print()
    show(OPTION, one.options)
    print(f"\n{made.name}\n")
    show(made.header, made.cells(), NUMBERS)
    print("", *made.totals(), "", sep="\n")
    show_rows([(line, "") for p in one.card.proofs for line in (p.claim, *indented(p.tests))])


def indented(texts: Sequence[str]) -> list[str]:
    return [f"    {text}" for text in texts]


def summarised(one: Architecture, asked: argparse.Namespace) -> "Summary":
    """The weights of a small one, or of the size that is asked for, with the values changed.

    Raises:
        ConfigError: there is no such size, or a value does not fit.
    """
    from jscale.model_summary import summary

    sizes = {SMALL: one.card.small, **one.sizes}
    size = asked.size or SMALL
    if size not in sizes:
        raise ConfigError(f"there is no {one.name} {size!r}; {did_you_mean(size, sizes)}")
    config = override(sizes[size], parse_overrides(asked.overrides))
    return summary(config, mesh_from(asked.mesh) if asked.mesh else None, asked.length)
