"""How a network knows where its tokens stand: values of a config, several may be combined."""

from jscale.models.positions.biased import Alibi as Alibi
from jscale.models.positions.biased import Biased as Biased
from jscale.models.positions.biased import RelativeBias as RelativeBias
from jscale.models.positions.embedded import Embedded as Embedded
from jscale.models.positions.embedded import Learned as Learned
from jscale.models.positions.embedded import Sinusoidal as Sinusoidal
from jscale.models.positions.rotary import Rope as Rope
from jscale.models.positions.rotary import Rotary as Rotary
from jscale.models.positions.rotary import XPos as XPos

Position = Embedded | Rotary | Biased
