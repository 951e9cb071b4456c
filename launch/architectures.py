"""The architectures that a recipe can name: what they are, options, sizes, what is proven."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jscale.config.load import load, shipped
from jscale.config.reference import about, candidates, option, own_fields, sentences
from jscale.config.source import home
from jscale.errors import ConfigError, did_you_mean
from jscale.launch.commands.forms import FORMS, table_of

if TYPE_CHECKING:
    from jscale.models.cards import Card

SOURCE = re.compile(r"Source: (.+?)\.?(?=\n\n|$|\n +Raises)", re.DOTALL)
OPTION = ("option", "type", "default", "what it is")


@dataclass(frozen=True)
class Architecture:
    """A config that a recipe's model can be, its card, and the models of shipped recipes."""

    kind: type
    card: "Card"
    recipes: dict[str, Any]

    @property
    def name(self) -> str:
        """How a recipe names it."""
        return self.kind.__name__

    @property
    def what(self) -> str:
        """One sentence: of its class, or of its file where the class only says "the sizes of"."""
        first = sentences(about(self.kind))[0]
        if first.startswith("The sizes of"):
            first = self._file.partition("\n")[0].partition(": ")[2] or first
        return first[:1].upper() + first[1:].rstrip(".")

    @property
    def source(self) -> str:
        """The papers that it is from."""
        found = SOURCE.search(self.kind.__doc__ or "") or SOURCE.search(self._file)
        return " ".join(found[1].split()) if found else ""

    @property
    def _file(self) -> str:
        return ast.get_docstring(home(self.kind).tree) or ""

    @property
    def options(self) -> list[tuple[str, ...]]:
        """Every option: its name, its type, its default, what it means."""
        return [option(self.kind, field) for field in own_fields(self.kind)]

    @property
    def sizes(self) -> dict[str, Any]:
        """Its configs that have a name: published ones, and those of shipped recipes."""
        return {**self.card.sizes, **self.recipes}

    def parameters(self) -> dict[str, int]:
        """How many parameters each of its sizes has."""
        from jscale.models.model import Model

        return {name: Model(config).size for name, config in self.sizes.items()}

    def formats(self) -> list[str]:
        """The formats of other frameworks in which its weights come in and go out."""
        return [form for form in sorted(FORMS) if self._fits(form)]

    def _fits(self, form: str) -> bool:
        try:
            table_of(form, self.card.small)
        except ConfigError:
            return False
        return True

    def as_data(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {
            "name": self.name,
            "what": self.what,
            "source": self.source,
            "options": [dict(zip(OPTION, row, strict=True)) for row in self.options],
            "parameters": self.parameters(),
            "formats": self.formats(),
            "proven": [{"claim": p.claim, "tests": list(p.tests)} for p in self.card.proofs],
        }


def architectures() -> list[Architecture]:
    """All that a recipe can name as its model, in the order of their names."""
    from jscale.launch import recipes
    from jscale.models.cards import CARDS, Card
    from jscale.models.model import Config
    from jscale.recipe import Recipe

    made = {r.name: load(r.name, recipes, expect=Recipe).value.model for r in shipped(recipes)}
    of = lambda kind: {name: model for name, model in made.items() if type(model) is kind}
    return [Architecture(kind, CARDS.get(kind, Card()), of(kind)) for kind in candidates(Config)]


def named(name: str, found: Sequence[Architecture]) -> Architecture:
    """The architecture of that name, however it is capitalised.

    Raises:
        ConfigError: there is none.
    """
    known = {one.name.lower(): one for one in found}
    if name.lower() not in known:
        hint = did_you_mean(name, [one.name for one in found])
        raise ConfigError(f"there is no architecture {name!r}; {hint}")
    return known[name.lower()]
