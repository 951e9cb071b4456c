"""The report on one run."""

from jscale.pictures.markup import joined
from jscale.pictures.page import page
from jscale.report.experts import experts_section
from jscale.report.overview import head, tiles
from jscale.report.panels import Curves
from jscale.report.read import Account
from jscale.report.sections import (
    curves_section,
    last_values,
    memory_section,
    speed_section,
    time_section,
)
from jscale.report.story import (
    environment_section,
    foot,
    mesh_section,
    recipe_section,
    samples_section,
)

CONTENTS = {
    "curves": "Curves",
    "experts": "Experts",
    "speed": "Speed",
    "memory": "Memory",
    "time": "Time",
    "mesh": "Mesh",
    "samples": "Samples",
    "recipe": "Recipe",
    "environment": "Environment",
}


def single_page(account: Account) -> str:
    """The page of a run, as HTML."""
    curves, experts = Curves([account]), experts_section(account)
    contents = [(key, title) for key, title in CONTENTS.items() if key != "experts" or experts]
    content = [
        head(account, contents),
        tiles(account),
        curves_section([account], [account.name], curves),
        last_values(account),
        experts,
        speed_section(account, curves),
        memory_section(account),
        time_section(account),
        mesh_section(account),
        samples_section(account),
        recipe_section(account),
        environment_section(account),
        foot(),
    ]
    return page(account.name, joined(content), curves.data([account.name]))
