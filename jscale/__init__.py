"""jscale: train large models on meshes of accelerators.

The users' door: names are fetched when they are first asked for, so that `import jscale` is quick
and touches no device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jscale.communication import traffic as traffic
    from jscale.generate import Sampling as Sampling
    from jscale.mesh import Layout as Layout
    from jscale.mesh import MeshShape as MeshShape
    from jscale.mesh import Rules as Rules
    from jscale.mesh import make_mesh as make_mesh
    from jscale.mesh import simulate as simulate
    from jscale.model_summary import summary as summary
    from jscale.models.model import Model as Model
    from jscale.pictures import LivePlot as LivePlot
    from jscale.pictures import draw as draw
    from jscale.pretrained import from_pretrained as from_pretrained
    from jscale.recipe import Recipe as Recipe
    from jscale.run.restored import open_run as open_run
    from jscale.run.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOMES = {
    "Layout": "jscale.mesh",
    "LivePlot": "jscale.pictures",
    "MeshShape": "jscale.mesh",
    "Model": "jscale.models.model",
    "Recipe": "jscale.recipe",
    "Rules": "jscale.mesh",
    "Sampling": "jscale.generate",
    "Trainer": "jscale.run.trainer",
    "draw": "jscale.pictures",
    "from_pretrained": "jscale.pretrained",
    "make_mesh": "jscale.mesh",
    "open_run": "jscale.run.restored",
    "simulate": "jscale.mesh",
    "summary": "jscale.model_summary",
    "traffic": "jscale.communication",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jscale' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
