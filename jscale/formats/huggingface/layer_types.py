"""`layer_types` of a config.json: which layers see a window, and which see all before."""

from collections.abc import Iterable, Mapping

from jscale.errors import ConfigError, did_you_mean
from jscale.formats.huggingface.keys import Keys

WINDOWS = {"local": "sliding_attention", "global": "full_attention"}
CHUNKS = {"local": "chunked_attention", "global": "full_attention"}


def kinds_of(
    keys: Keys, usual: tuple[str, ...], names: Mapping[str, str] = WINDOWS
) -> tuple[str, ...]:
    """The kind of each layer; the `usual` ones where nothing is said.

    Raises:
        ConfigError: there is a kind that is not known, or not one for each layer.
    """
    said = keys.take("layer_types", None)
    if said is None:
        return usual
    ours = {theirs: kind for kind, theirs in names.items()}
    for name in said:
        if name not in ours:
            raise ConfigError(f"{keys.where}: no layer type {name!r}; {did_you_mean(name, ours)}")
    if len(said) != len(usual):
        raise ConfigError(
            f"{keys.where}: {len(said)} layer_types for num_hidden_layers={len(usual)}"
        )
    return tuple(ours[name] for name in said)


def types_of(kinds: Iterable[str], names: Mapping[str, str] = WINDOWS) -> list[str]:
    """`layer_types` of these kinds of layers."""
    return [names[kind] for kind in kinds]
