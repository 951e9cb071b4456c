"""One decision for all processes of a job, by its coordination service.

Nothing here runs on a device: nothing is compiled, and a process that waits hears signals. All
processes must make the same calls in the same order.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax

from jscale import errors
from jscale.errors import CheckpointError, UserError
from jscale.mesh.compat import coordination
from jscale.signals import aside

# For a decision that takes as long as reading all data: should a process die, JAX ends the others.
WAIT = 7 * 24 * 3600 * 1000  # milliseconds

_turns = itertools.count()


def first_decides(decide: Callable[[], Any]) -> Any:
    """The plain JSON value that `decide` returns on process 0, on every process.

    A UserError there is raised on every process. All processes must call it.
    """
    if jax.process_count() == 1:
        return decide()
    client, key = coordination(), f"jscale/decided/{next(_turns)}"
    if jax.process_index():
        return _value(json.loads(aside(lambda: client.blocking_key_value_get(key, WAIT))))
    try:
        value = decide()
    except Exception as error:  # the others must not wait for ever for a decision
        client.key_value_set(key, json.dumps({"error": _told(error)}))
        raise
    text = json.dumps({"value": value})
    client.key_value_set(key, text)
    return _value(json.loads(text))


def said(here: str | None) -> dict[int, str]:
    """What processes have to say, by their numbers, known to all. All processes must call it."""
    if jax.process_count() == 1:
        return {} if here is None else {0: here}
    client, key = coordination(), f"jscale/said/{next(_turns)}"
    if here is not None:
        client.key_value_set(f"{key}/{jax.process_index()}", here)
    aside(lambda: client.wait_at_barrier(key, WAIT))
    found = client.key_value_dir_get(f"{key}/")
    return dict(sorted((int(name.rsplit("/", 1)[1]), text) for name, text in found))


def anywhere(here: bool) -> bool:
    """Whether it is true on any process. All processes must call it."""
    return bool(said("yes" if here else None))


def all_come(place: str, seconds: float) -> bool:
    """Whether every process comes to this place in so many seconds. Each place is asked for once.

    For a process on which something failed: only if it failed on the others as well can all of them
    go on together.
    """
    if jax.process_count() == 1:
        return True
    try:
        coordination().wait_at_barrier(f"jscale/all/{place}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _told(error: Exception) -> tuple[str, str]:
    if isinstance(error, UserError):
        return type(error).__name__, str(error)
    return "CheckpointError", f"{type(error).__name__}: {error}"


def _value(outcome: dict[str, Any]) -> Any:
    if "error" in outcome:
        kind, text = outcome["error"]
        raise getattr(errors, kind, CheckpointError)(text)
    return outcome["value"]
