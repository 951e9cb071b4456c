"""RetNet: a decoder whose memory of the past is of one size, however long the past."""

from jscale.models.retnet.forms import Chunkwise as Chunkwise
from jscale.models.retnet.forms import Parallel as Parallel
from jscale.models.retnet.forms import Recurrent as Recurrent
from jscale.models.retnet.network import SIZES as SIZES
from jscale.models.retnet.network import RetNet as RetNet
