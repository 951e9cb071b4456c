"""A release's config.json, read so that nothing in it is passed over."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jscale.data.source import reading
from jscale.errors import ConfigError

# What says nothing of the network's mathematics: bookkeeping, first weights, how text is written.
HARMLESS = frozenset(
    """_attn_implementation _name_or_path architectures attn_implementation bos_token_id
    chunk_size_feed_forward do_sample dtype eos_token_id finetuning_task id2label initializer_range
    is_encoder_decoder label2id max_length min_length model_type num_labels output_attentions
    output_hidden_states pad_token_id problem_type repetition_penalty return_dict
    task_specific_params temperature tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version unsloth_fixed unsloth_version use_cache
    """.split()
)
MISSING = object()


class Keys:
    """The keys of a config.json: each is taken by who understands it, and none may be left.

    Raises:
        ConfigError: a key is missing, has a value that cannot be had, or is left over.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str = "config.json",
        folder: Path | None = None,
    ):
        self.values, self.where, self.folder = dict(values), where, folder

    def unsaid(self, **values: Any) -> None:
        """What `transformers` takes for keys that are missing; null is a value."""
        self.values = {**values, **self.values}

    def take(self, name: str, default: Any = MISSING) -> Any:
        """The value of a key, or `default` where it is missing or null."""
        value = self.values.pop(name, None)
        if value is None and default is MISSING:
            raise ConfigError(f"{self.where} does not say {name}")
        return default if value is None else value

    def flag(self, name: str, default: bool) -> bool:
        """Whether a key says so, which null does not; `default` where it is missing."""
        return bool(self.values.pop(name, default))

    def positive(self, name: str, default: Any = MISSING) -> float:
        """The number above 0 of a key, or `default` where it is missing or null."""
        value = self.take(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ConfigError(f"{self.where} says {name}={value!r}; a number above 0 is wanted")
        return float(value)

    def part(self, name: str) -> dict[str, Any]:
        """The object of a key, empty where it is missing or null."""
        value = self.take(name, {})
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self.where} says {name}={value!r}; an object is wanted")
        return dict(value)

    def must(self, name: str, *allowed: Any) -> Any:
        """The value of a key, which can only be one of these; the first where it is missing."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            can = " or ".join(repr(a) for a in allowed)
            raise ConfigError(f"{self.where} says {name}={value!r}; jscale has only {can}")
        return value

    def end(self) -> None:
        """Nothing may be left that could matter."""
        if self.values.get("quantization_config", MISSING) is None:  # is said of what has none
            del self.values["quantization_config"]
        left = sorted(set(self.values) - HARMLESS)
        if left:
            name = left[0]
            raise ConfigError(
                f"{self.where} says {name}={self.values[name]!r}, which jscale does not know for"
                " this architecture"
            )


def keys_of(folder: Path) -> Keys:
    """The config.json of a release's folder.

    Raises:
        DataError: it cannot be read.
        ConfigError: it is no object, or wants code of the release to be run.
    """
    path = folder / "config.json"
    values = json_of(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not an object")
    if "auto_map" in values:
        raise ConfigError(
            f"{path} wants code of the release to be run (auto_map): jscale runs none; if the"
            " architecture is one that transformers has itself, take that key out"
        )
    return Keys(values, str(path), folder)


def json_of(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: it cannot be read.
        ConfigError: it is no JSON.
    """
    with reading(path):
        text = path.read_bytes()
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error


def _refuse(constant: str) -> None:
    """NaN and Infinity, which JSON does not have."""
    raise ValueError(f"it says {constant}")


# Activations as releases name them, first the name that is written.
ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
    "gelu_quick": ("quick_gelu",),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
}


def activation(keys: Keys, name: str = "hidden_act", default: str = "gelu") -> str:
    """Our name of the activation that a key tells.

    Raises:
        ConfigError: jscale has no such activation.
    """
    ours = {theirs: ours for ours, names in ACTIVATIONS.items() for theirs in names}
    return ours[keys.must(name, *sorted(ours, key=lambda theirs: theirs != default))]


def activation_told(name: str) -> str:
    """How releases name an activation of ours.

    Raises:
        ConfigError: they have no such activation.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"a release cannot say activation={name!r}")
    return ACTIVATIONS[name][0]
