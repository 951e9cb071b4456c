"""The page of `jscale explain --html`: every parameter of a recipe on its mesh."""

from collections.abc import Mapping
from typing import Any

from jscale.errors import ConfigError
from jscale.pictures.markup import element, joined
from jscale.pictures.page import page
from jscale.report.parts import bar, note, section, swatch
from jscale.report.placing import mesh_picture, mesh_words, parameter_list, placed, totals
from jscale.report.story import foot


def explained_page(title: str, explanation: Mapping[str, Any], only: set[str] | None = None) -> str:
    """The page of what `jscale.explain.as_data` gives; `only` of the parameters so named, if given.

    Raises:
        ConfigError: no parameter has one of these names.
    """
    where = placed(explanation)
    listed = parameter_list(where, only)
    if not listed:
        raise ConfigError("no parameter has such a name")
    whole = sum(where.bytes_per_device.values()) or 1
    parts = list(where.bytes_per_device.items())
    legend = [
        element("span", swatch(i), f"{name} {100 * size / whole:.0f}%", class_="key")
        for i, (name, size) in enumerate(parts)
    ]
    state = bar([(size / whole, i) for i, (_, size) in enumerate(parts)], "the state", high=True)
    lost = where.replicated
    content = [
        element("header", element("h1", title), element("p", "Where every parameter goes.")),
        section("mesh", "Mesh", mesh_words(where), mesh_picture(where)),
        section("memory", "State on each device", totals(where), state, note(legend)),
        note(f"Whole on every device: {', '.join(lost)}.") if lost else None,
        section(
            "parameters",
            "Parameters",
            note("Each rectangle is a parameter; its parts carry the ids of their devices."),
            listed,
        ),
        foot(),
    ]
    return page(f"{title}: layout", joined(content))
