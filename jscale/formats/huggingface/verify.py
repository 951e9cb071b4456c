"""An export opened by `transformers`: it must be read whole, and say what our network says."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jscale.errors import CheckpointError, ConfigError
from jscale.formats.huggingface import family_of
from jscale.formats.huggingface.asked import Inputs
from jscale.mesh import Layout
from jscale.models.model import Model, Params

NEAR = 1e-4  # in float32, over the largest of what is compared (or 1)


class Seen(NamedTuple):
    """What was compared, and the largest difference over the largest number (or 1)."""

    what: str
    apart: float


def verify(model: Model, params: Params, layout: Layout, folder: Path) -> Seen:
    """What our network says in float32, and the folder opened by `transformers`, of random inputs.

    Raises:
        ConfigError: `transformers` and PyTorch are not installed, or have no such architecture.
        CheckpointError: there is a weight that is not read or not there, or they say other things.
    """
    try:
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise ConfigError(f"--verify needs transformers and torch installed: {error}") from error
    family = family_of(model.config)
    theirs, told = getattr(transformers, family.architecture).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    unread = family.unread(model.config)
    for what, names in told.items():
        if strange := [name for name in names if not str(name).startswith(unread)]:
            raise CheckpointError(f"transformers says of {folder}: {what} {sorted(strange)[:3]}")
    inputs = family.asked.inputs(model.config, layout.batch_ways, np.random.default_rng(0))
    found = answers(model, params, layout, inputs)
    with torch.no_grad():
        out = theirs.eval()(**{name: torch.from_numpy(x) for name, x in inputs.items()})
    apart = {name: _apart(ours, getattr(out, name).numpy()) for name, ours in found.items()}
    what, most = max(apart.items(), key=lambda pair: pair[1])
    if not most <= NEAR:
        raise CheckpointError(
            f"transformers reads other {what} from {folder}: they differ by {most:.2g} of the"
            f" largest, and {NEAR:g} is allowed (was it exported in a lower precision?)"
        )
    return Seen(" and ".join(apart).replace("_", " "), most)


def answers(model: Model, params: Params, layout: Layout, inputs: Inputs) -> dict[str, np.ndarray]:
    """What our network says in float32, asked as its family is, by the names of theirs."""
    exact, says = Model(model.config, "float32", "float32"), family_of(model.config).asked.says
    weights = jax.tree.map(lambda w, like: w.astype(like.dtype), params, exact.shapes)

    @jax.jit
    def run(params: Params, inputs: Any) -> dict[str, Any]:
        with layout.active():
            return says(exact.bind(params), inputs)

    return {name: np.asarray(x) for name, x in run(weights, arrays(inputs)).items()}


def arrays(inputs: Inputs) -> dict[str, Any]:
    """Inputs as JAX takes them."""
    narrow = {"i": jnp.int32, "f": jnp.float32}
    return {name: jnp.asarray(x, narrow[x.dtype.kind]) for name, x in inputs.items()}


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))
