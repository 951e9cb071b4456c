"""TorchScale's state dictionaries: which of its weights are which of ours."""

from collections.abc import Callable
from typing import Any

from jscale.errors import ConfigError
from jscale.formats.table import Table
from jscale.formats.torchscale import beit3, retnet, transformer

TABLES: dict[str, Callable[[Any], Table]] = {
    "TransformerEncoder": transformer.table,
    "TransformerDecoder": transformer.table,
    "EncoderDecoder": transformer.table,
    "RetNet": retnet.table,
    "BEiT3": beit3.table,
}


def table(config: Any) -> Table:
    """The table of a model's config.

    Raises:
        ConfigError: TorchScale has no such model.
    """
    kind = type(config).__name__
    if kind not in TABLES:
        known = ", ".join(TABLES)
        raise ConfigError(f"TorchScale has no {kind}: the recipe's model must be one of {known}")
    return TABLES[kind](config)
