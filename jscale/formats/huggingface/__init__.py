"""Releases as `transformers` writes them: config.json, safetensors, a tokenizer.

A family is a row of `FAMILIES`; all that is done with a release is done by it.
"""

import json
from pathlib import Path
from typing import Any

from jscale.config.annotations import check
from jscale.errors import ConfigError, did_you_mean
from jscale.formats.huggingface import (
    deepseek,
    dense,
    encoders,
    gemma,
    glm,
    gpt2,
    gpt_oss,
    llama4,
    llava,
    mixtral,
    olmo,
    olmoe,
    phi,
    qwen_moe,
    towers,
)
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys, keys_of
from jscale.formats.table import Table

FAMILIES: tuple[Family, ...] = (
    *dense.FAMILIES,
    *deepseek.FAMILIES,
    *encoders.FAMILIES,
    *gemma.FAMILIES,
    *glm.FAMILIES,
    *gpt2.FAMILIES,
    *llama4.FAMILIES,
    *mixtral.FAMILIES,
    *olmo.FAMILIES,
    *phi.FAMILIES,
    *qwen_moe.FAMILIES,
    *olmoe.FAMILIES,
    *towers.FAMILIES,
    *gpt_oss.FAMILIES,
    *llava.FAMILIES,
)

# What a value of a kind that nobody expects makes of the reading of a config.json.
WRONG = TypeError, ValueError, AttributeError, ArithmeticError, LookupError, StopIteration


def config_of(folder: str | Path) -> Any:
    """The config of ours that a release's config.json describes.

    Raises:
        DataError: there is no config.json.
        ConfigError: the architecture is unknown, or one of its options is.
    """
    keys = keys_of(Path(folder).expanduser())
    family = _named(keys)
    try:
        config = family.read(keys)
        check(config)
    except ConfigError as error:
        here = "" if keys.where in str(error) else f"{keys.where}: "
        raise ConfigError(f"{here}{error}") from error
    except WRONG as error:
        raise ConfigError(
            f"{keys.where} has a value that a {family.architecture} cannot have: {error}"
        ) from error
    keys.end()
    return config


def _named(keys: Keys) -> Family:
    known = {family.architecture: family for family in FAMILIES}
    names = keys.values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{keys.where} says architectures={names!r}; a list of names is wanted")
    for name in names:
        if name in known:
            return known[name]
    types = {family.model_type: family for family in FAMILIES}
    kind = keys.values.get("model_type")
    if not names and kind in types:
        return types[kind]
    found = names[0] if names else str(kind)
    raise ConfigError(
        f"{keys.where}: jscale has no architecture {found!r}; {did_you_mean(found, known)}"
    )


def family_of(config: Any) -> Family:
    """The family of a config of ours.

    Raises:
        ConfigError: `transformers` has no such architecture.
    """
    for family in FAMILIES:
        if type(config) is family.config and family.fits(config):
            return family
    known = ", ".join(sorted({family.config.__name__ for family in FAMILIES}))
    raise ConfigError(
        f"a {type(config).__name__} is no architecture of transformers that jscale writes: {known}"
    )


def table(config: Any) -> Table:
    """The table of a config of ours.

    Raises:
        ConfigError: `transformers` has no such architecture.
    """
    return family_of(config).table(config)


def files(config: Any, more: dict[str, Any]) -> dict[str, str]:
    """What stands beside the weights, by file name; `more` are further keys of config.json.

    Raises:
        ConfigError: `transformers` has no such architecture, or not with these options.
    """
    family = family_of(config)
    named = {"architectures": [family.architecture], "model_type": family.model_type}
    said = {**named, **more, **family.told(config)}
    return {"config.json": json.dumps(said, indent=2) + "\n", **family.beside(config)}
