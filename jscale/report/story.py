"""The sections of a report that are read rather than measured: mesh, samples, recipe, machine."""

import time
from collections.abc import Sequence
from importlib import metadata

from jscale.errors import CheckpointError
from jscale.pictures.markup import Child, Markup, element
from jscale.report.parts import details, facts, figure, note, section, table
from jscale.report.placing import mesh_picture, mesh_words, parameter_list, placed, totals
from jscale.report.read import Account, Sample, devices_words, items, number, part
from jscale.report.settings import changes, settings

MOST_SAMPLES = 60


def mesh_section(account: Account) -> Markup:
    """The mesh and every parameter on it, as recorded at the last start."""
    if not account.layout:
        return section("mesh", "Mesh and sharding", note("Not recorded."))
    try:
        where = placed(account.layout)
    except CheckpointError:
        words = "layout.json is not as jscale writes it, and is left out."
        return section("mesh", "Mesh and sharding", element("p", words, class_="wrong"))
    listed = details("every parameter on the mesh", parameter_list(where))
    content = [mesh_words(where), mesh_picture(where), totals(where), listed]
    return section("mesh", "Mesh and sharding", content)


def samples_section(account: Account) -> Markup:
    """What the model wrote over time, the newest first."""
    if not account.samples:
        return section("samples", "Samples", note("The recipe asks for none, or none is due yet."))
    newest_first = list(reversed(account.samples))
    shown = spread(newest_first, MOST_SAMPLES)
    items = [
        element(
            "li",
            element("div", f"step {sample.step:,}", class_="at"),
            element("pre", told(sample)),
        )
        for sample in shown
    ]
    words = "The newest first; the prompt is bold."
    if len(shown) < len(newest_first):
        words += f" {len(shown)} of {len(newest_first)}, evenly spread."
    return section("samples", "Samples", note(words), element("ol", items, class_="samples"))


def told(sample: Sample) -> list[Child]:
    if not sample.text.startswith(sample.prompt):
        return [sample.text]
    return [element("b", sample.prompt), sample.text[len(sample.prompt) :]]


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many, evenly spread, with the first and the last."""
    if len(samples) <= most:
        return list(samples)
    return [samples[round(i * (len(samples) - 1) / (most - 1))] for i in range(most)]


def recipe_section(account: Account) -> Markup:
    """What is different from the base recipe, and then all of it."""
    base, content = account.base, list[Child]()
    if part(base.get("recipe")):
        rows = changes(base["recipe"], account.recipe)
        name = str(base.get("name") or "the base recipe")
        if rows:
            content.append(element("p", "Changed against ", element("code", name), ":"))
            content.append(
                table(("setting", name, "this run"), rows, codes=("setting", name, "this run"))
            )
        else:
            content.append(element("p", "As in ", element("code", name), ", with nothing changed."))
    else:
        content.append(
            note("No base recipe is recorded; a run that is started from Python has none.")
        )
    found = list(settings(account.recipe).items())
    content.append(details(f"all {len(found)} settings", facts(found)))
    return section("recipe", "Recipe", content)


def environment_section(account: Account) -> Markup:
    """Versions, devices, and how it was started."""
    about, rows = account.environment, list[tuple[str, Child]]()
    if not about:
        return section("environment", "Environment", note("Not recorded."))
    if items(about.get("command")):
        rows.append(("command", " ".join(map(str, items(about["command"])))))
    rows += [(key, str(about[key])) for key in ("folder", "platform", "processes") if key in about]
    if items(about.get("hosts")):
        rows.append(("hosts", ", ".join(map(str, items(about["hosts"])))))
    rows.append(("devices", devices_words(about)))
    git = part(about.get("git"))
    if git:
        changed = ", with changes that are not committed" if git.get("changed") else ""
        rows.append(("commit", f"{git.get('commit')}{changed}"))
    data = part(about.get("data"))
    rows += [("data fingerprint", str(data["fingerprint"]))] if "fingerprint" in data else []
    for name in ("train", "heldout"):
        counts = {k: number(v) for k, v in part(data.get(name)).items()}
        words = [f"{k} {figure(v)}" for k, v in counts.items() if v is not None]
        rows += [(f"{name} data", ", ".join(words))] if words else []
    versions = part(about.get("versions")).items()
    rows += [("versions", ", ".join(f"{k} {v}" for k, v in versions))] if versions else []
    return section("environment", "Environment", facts([row for row in rows if row[1]]))


def foot() -> Markup:
    """Who made the page, and when."""
    try:
        version = metadata.version("jscale")
    except metadata.PackageNotFoundError:
        version = ""
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return element("footer", f"Made by jscale {version} on {when} UTC. The page needs no network.")
