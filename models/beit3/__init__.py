"""BEiT-3: one Transformer for images, text and both, with weights of its own for each kind."""

from jscale.models.beit3.heads import Joint as Joint
from jscale.models.beit3.heads import Pixels as Pixels
from jscale.models.beit3.network import BEiT3 as BEiT3
from jscale.models.beit3.patches import Patches as Patches
