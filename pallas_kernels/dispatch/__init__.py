"""Dispatch: rows to the experts that were chosen for them, and the weighted results back."""

from jscale.pallas_kernels.dispatch.all_to_all import AllToAll as AllToAll
from jscale.pallas_kernels.dispatch.gather import Gather as Gather
from jscale.pallas_kernels.dispatch.local import Local as Local
from jscale.pallas_kernels.dispatch.one_hot import OneHot as OneHot
from jscale.pallas_kernels.dispatch.order import collect as collect
from jscale.pallas_kernels.dispatch.ragged import Ragged as Ragged
from jscale.pallas_kernels.dispatch.signature import Dispatcher as Dispatcher
from jscale.pallas_kernels.dispatch.signature import Received as Received
from jscale.pallas_kernels.dispatch.signature import combine as combine
from jscale.pallas_kernels.dispatch.signature import dispatch as dispatch
