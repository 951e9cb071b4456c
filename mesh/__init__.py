"""Where arrays live: devices, meshes, logical axes, and the layout that maps one onto the other."""

from jscale.mesh.choice import choose as choose
from jscale.mesh.devices import simulate as simulate
from jscale.mesh.exchange import AllToAll as AllToAll
from jscale.mesh.exchange import Chosen as Chosen
from jscale.mesh.exchange import Exchange as Exchange
from jscale.mesh.exchange import Gather as Gather
from jscale.mesh.exchange import Ring as Ring
from jscale.mesh.layout import Axes as Axes
from jscale.mesh.layout import Layout as Layout
from jscale.mesh.layout import constrain as constrain
from jscale.mesh.placement import Placement as Placement
from jscale.mesh.placement import placements as placements
from jscale.mesh.rules import Override as Override
from jscale.mesh.rules import Rules as Rules
from jscale.mesh.shape import MESH_AXES as MESH_AXES
from jscale.mesh.shape import MeshShape as MeshShape
from jscale.mesh.shape import abstract_mesh as abstract_mesh
from jscale.mesh.shape import make_mesh as make_mesh
from jscale.mesh.shards import alone as alone
from jscale.mesh.shards import per_shard as per_shard
from jscale.mesh.shards import sharing as sharing
from jscale.mesh.shards import split_over as split_over
