"""One decision for all processes: taken by the first, known to every one."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jscale.errors import CheckpointError, UserError


def first_decides(decide: Callable[[], Any]) -> Any:
    """The plain JSON value that `decide` returns on process 0, on every process.

    A UserError there is raised on every process. All processes must call it.
    """
    if jax.process_count() == 1:
        return decide()
    outcome: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            outcome = {"value": decide()}
        except UserError as error:
            outcome = {"error": str(error)}
        except Exception as error:  # the others must not wait for ever for a decision
            outcome = {"error": f"{type(error).__name__}: {error}"}
    outcome = _broadcast(outcome)
    if "error" in outcome:
        raise CheckpointError(outcome["error"])
    return outcome["value"]


def anywhere(here: bool) -> bool:
    """Whether it is true on any process. All processes must call it."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(here))))


def _broadcast(value: Any) -> Any:
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, text.size)] = text[:size]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)))
