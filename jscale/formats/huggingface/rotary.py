"""Rotary frequencies as config.json tells them: `rope_parameters` of transformers 5, and before
that `rope_theta` and `rope_scaling`, which is what is written, for both read it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jscale.errors import ConfigError, did_you_mean
from jscale.formats.huggingface.keys import Keys
from jscale.models.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPE,
    RopeScaling,
    YaRN,
)

ORIGINAL = "original_max_position_embeddings"


class RopeKeys(NamedTuple):
    """Base, scaling, and the rows that a release is made for."""

    base: float
    scaling: RopeScaling | None
    longest: int


def rotation(keys: Keys, default: float = 10_000.0) -> RopeKeys:
    """What a config.json says of rotation.

    Raises:
        ConfigError: an unknown kind of scaling, or a key that it lacks or does not know.
    """
    base = keys.positive("rope_theta", default)
    longest = keys.take("max_position_embeddings")
    parameters = Keys(said_of(keys), f"{keys.where}: rope_parameters")
    base = parameters.positive("rope_theta", base)
    parameters.must("partial_rotary_factor", 1.0)
    older = parameters.take("type", "default")
    kind = parameters.take("rope_type", older)
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise ConfigError(f"{keys.where}: no rope_type {kind!r}; {hint}")
    scaling = KINDS[kind](parameters, longest)
    parameters.end()
    return RopeKeys(base, scaling, longest)


def said_of(keys: Keys) -> dict[str, Any]:
    """What a config.json says of rotation under its new name or its old one.

    Raises:
        ConfigError: it says two things, of which `transformers` would take the old one alone.
    """
    new, old = keys.part("rope_parameters"), keys.part("rope_scaling")
    if new and old and new != old:
        raise ConfigError(
            f"{keys.where} says rope_scaling={old!r} and rope_parameters={new!r}: keep one of them,"
            " with all that is to hold"
        )
    return new or old


def turned_of(keys: Keys, usual: float, head: int) -> int | None:
    """How many numbers of a head are rotated, None for all; `usual` is the share if none is told.

    The rest is left for `rotation`.
    """
    share = keys.take("partial_rotary_factor", usual)
    said = said_of(keys)
    share = said.pop("partial_rotary_factor", share)
    if said:
        keys.values["rope_parameters"] = said
    return None if share == 1.0 else int(head * share)


def told_turned(turned: int, head: int) -> dict[str, Any]:
    """The share of a head that is rotated, such that it gives the number again."""
    share = turned / head
    exact = int(head * share) == turned
    return {"partial_rotary_factor": share if exact else (turned + 0.5) / head}


def _llama3(keys: Keys, longest: int) -> RopeScaling:
    low, high = (keys.positive(f"{name}_freq_factor") for name in ("low", "high"))
    return Llama3Scaling(keys.positive("factor"), keys.take(ORIGINAL, longest), low, high)


def _yarn(keys: Keys, longest: int) -> RopeScaling:
    original = keys.take(ORIGINAL, longest)
    factor = keys.positive("factor", longest / original)
    fast, slow = keys.positive("beta_fast", 32), keys.positive("beta_slow", 1)
    attention = keys.take("attention_factor", None)
    over, under = keys.take("mscale", None), keys.take("mscale_all_dim", None)
    if attention is None and over and under:
        grown = lambda by: 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0
        attention = grown(over) / grown(under)
    attention = None if attention is None else float(attention)
    return YaRN(factor, original, fast, slow, attention, keys.take("truncate", True))


def _longrope(keys: Keys, longest: int) -> RopeScaling:
    short, long = (tuple(map(float, keys.take(f"{name}_factor"))) for name in ("short", "long"))
    original = keys.take(ORIGINAL, longest)
    factor = keys.positive("factor", longest / original)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRoPE(short, long, original, float(keys.take("attention_factor", grown)))


KINDS: dict[str, Callable[[Keys, int], RopeScaling | None]] = {
    "default": lambda keys, longest: None,
    "linear": lambda keys, longest: LinearScaling(keys.positive("factor")),
    "dynamic": lambda keys, longest: DynamicScaling(keys.positive("factor"), longest),
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def told(rotation: RopeKeys) -> dict[str, Any]:
    """The keys of a config.json that say this.

    Raises:
        ConfigError: a release has no such scaling.
    """
    base, scaling, longest = rotation
    said: dict[str, Any] = {"rope_theta": base, "max_position_embeddings": longest}
    match scaling:
        case None:
            return {**said, "rope_scaling": None}
        case LinearScaling(factor):
            how: dict[str, Any] = {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor, original):
            if original != longest:
                raise ConfigError(
                    f"DynamicScaling.original={original} and longest={longest} are one number of a"
                    " release: make them equal"
                )
            how = {"rope_type": "dynamic", "factor": factor}
        case YaRN(factor, original, fast, slow, attention, truncate):
            how = {"rope_type": "yarn", "factor": factor, ORIGINAL: original, "truncate": truncate}
            how |= {"beta_fast": fast, "beta_slow": slow}
            how |= {} if attention is None else {"attention_factor": attention}
        case Llama3Scaling(factor, original, low, high):
            how = {"rope_type": "llama3", "factor": factor, ORIGINAL: original}
            how |= {"low_freq_factor": low, "high_freq_factor": high}
        case LongRoPE(short, long, original, attention):
            how = {"rope_type": "longrope", ORIGINAL: original, "attention_factor": attention}
            how |= {"short_factor": list(short), "long_factor": list(long)}
        case _:
            raise ConfigError(f"a release cannot say {type(scaling).__name__}")
    return {**said, "rope_scaling": how}
