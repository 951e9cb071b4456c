"""Who is examined."""

from dataclasses import dataclass

from jscale.data.tokenizers import Tokenizer
from jscale.mesh import Layout
from jscale.models.model import Model, Params
from jscale.rows import PLACES


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is examined: with its weights, its tokenizer and where they live."""

    model: Model
    params: Params
    tokenizer: Tokenizer
    layout: Layout | None
    length: int  # places of the rows that it was trained on
    places: int = PLACES  # tokens that it reads at a time
