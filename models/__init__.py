"""Networks: axes and mathematics."""

from jscale.models.llama import Llama as Llama
from jscale.models.model import Model as Model
