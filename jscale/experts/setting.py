"""What a recipe asks of its experts, read from its data alone, and the overrides that change it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = ("choice", "balance", "dispatch")  # what a value that describes experts has


@dataclass(frozen=True)
class Setting:
    """One description of experts in a recipe: `Experts`, `MoE`, or one of a user's own."""

    paths: tuple[str, ...]  # where it stands in the recipe: model.experts
    data: Mapping[str, Any]  # as recipe.json has it

    @property
    def count(self) -> int | None:
        """How many experts it has."""
        found = self.data.get("count", self.data.get("experts"))
        return found if isinstance(found, int) else None

    @property
    def choice(self) -> str:
        """The name of the type that chooses."""
        return str(self.of("choice", "type", "")).rpartition(":")[2]

    def of(self, *names: Any) -> Any:
        """The value of a field within it; the last argument is what stands for a missing one."""
        *path, default = names
        found: Any = self.data
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                return default
            found = found[name]
        return found

    def has(self, *path: str) -> bool:
        """Whether there is such a field."""
        missing = object()
        return self.of(*path, missing) is not missing

    def override(self, field: str, value: object) -> str:
        """What changes a field wherever it stands, as written after `jscale train RECIPE`."""
        return " ".join(f"{path}.{field}={value}" for path in self.paths)


def settings_of(recipe: Mapping[str, Any]) -> tuple[Setting, ...]:
    """All descriptions of experts in a recipe's model, in their order."""
    return tuple(_within(recipe.get("model"), "model"))


def _within(value: Any, path: str) -> Iterator[Setting]:
    if isinstance(value, Mapping):
        if all(isinstance(value.get(part), Mapping) for part in PARTS):
            yield Setting((path,), value)
        for name, child in value.items():
            yield from _within(child, f"{path}.{name}")
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _within(child, f"{path}.{number}")


def setting_for(settings: Sequence[Setting], experts: int) -> Setting | None:
    """The one that a layer of so many experts comes from, or several that are alike.

    None where there is none, or where they differ, so that it cannot be known.
    """
    found = [s for s in settings if s.count in (experts, None)]
    if not found or any(s.data != found[0].data for s in found):
        return None
    return Setting(tuple(path for s in found for path in s.paths), found[0].data)
