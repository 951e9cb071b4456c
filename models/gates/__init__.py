"""Gates: which experts a token goes to, with what weight, as values with one protocol."""

from jscale.models.gates.balance import Balance as Balance
from jscale.models.gates.capacity import Capacity as Capacity
from jscale.models.gates.capacity import Even as Even
from jscale.models.gates.capacity import Share as Share
from jscale.models.gates.expert_choice import ExpertChoice as ExpertChoice
from jscale.models.gates.forced import Forced as Forced
from jscale.models.gates.groups import Groups as Groups
from jscale.models.gates.hashed import Hash as Hash
from jscale.models.gates.noise import Noise as Noise
from jscale.models.gates.quantile import Quantile as Quantile
from jscale.models.gates.routing import Choice as Choice
from jscale.models.gates.routing import Routing as Routing
from jscale.models.gates.scores import CosineRouter as CosineRouter
from jscale.models.gates.scores import LinearRouter as LinearRouter
from jscale.models.gates.scores import Scores as Scores
from jscale.models.gates.second import Always as Always
from jscale.models.gates.second import ByWeight as ByWeight
from jscale.models.gates.second import Sampled as Sampled
from jscale.models.gates.second import Second as Second
from jscale.models.gates.sinkhorn import Sinkhorn as Sinkhorn
from jscale.models.gates.spread import PerGroup as PerGroup
from jscale.models.gates.top1 import Top1 as Top1
from jscale.models.gates.top2 import Top2 as Top2
from jscale.models.gates.topk import Limit as Limit
from jscale.models.gates.topk import TopK as TopK
