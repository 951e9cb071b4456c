"""Which dotted path somebody may have meant."""

import difflib
from collections.abc import Iterable

from jscale.config.tree import join
from jscale.errors import did_you_mean


def suggest(name: str, paths: Iterable[str], here: str = "") -> str:
    """A hint for a field `name` that is not at `here`: the same name elsewhere, or names like it.

    >>> suggest("layers", ["steps", "model", "model.layers"])
    "did you mean 'model.layers'?"
    >>> suggest("stpes", ["steps", "model", "model.layers"])
    "did you mean 'steps'?"
    """
    last = {path: path.rpartition(".")[2] for path in paths}
    own = [part for path, part in last.items() if path == join(here, part)]
    near = difflib.get_close_matches(name, own, n=3)
    close = difflib.get_close_matches(name, sorted(set(last.values())), n=3)
    found = (
        [path for path, part in last.items() if part == name]
        or [join(here, part) for part in near]
        or [path for path, part in last.items() if part in close]
    )
    if found:
        return f"did you mean {' or '.join(map(repr, found[:3]))}?"
    return did_you_mean("", own)
