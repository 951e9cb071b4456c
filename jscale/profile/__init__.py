"""Where the time of a training step goes: recorded, read, and added up by named scope."""

from jscale.profile.record import Recording as Recording
from jscale.profile.record import record as record
from jscale.profile.summary import Profile as Profile
from jscale.profile.summary import profile_of as profile_of
from jscale.profile.trace import Event as Event
from jscale.profile.trace import Trace as Trace
from jscale.profile.trace import read_trace as read_trace
