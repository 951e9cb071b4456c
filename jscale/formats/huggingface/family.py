"""What a family of releases is: a table of names, and its config read and written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jscale.formats.huggingface.asked import CAUSAL, Asked
from jscale.formats.huggingface.keys import Keys
from jscale.formats.table import Table


@dataclass(frozen=True)
class Family:
    """One architecture of `transformers`, and the network of ours that computes the same.

    Of several that one config of ours can be, the first that `fits` is meant.
    """

    config: type  # of ours
    architecture: str  # the class of theirs, as config.json names it
    model_type: str
    read: Callable[[Keys], Any]  # our config from config.json; what is left of it is refused
    told: Callable[[Any], dict[str, Any]]  # the keys of config.json from ours
    table: Callable[[Any], Table]
    asked: Asked = CAUSAL  # how both are given the same
    fits: Callable[[Any], bool] = lambda config: True  # whether a config of ours is of this one
    # How names begin that releases hold, and that this class of theirs does not load.
    unread: Callable[[Any], tuple[str, ...]] = lambda config: ()
    beside: Callable[[Any], dict[str, str]] = lambda config: {}  # further files, by name
