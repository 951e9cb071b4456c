"""How a text becomes a vector, as sentence-transformers says it beside a release: modules.json."""

import json
from pathlib import Path
from typing import Any

from jscale.errors import ConfigError
from jscale.formats.huggingface.keys import Keys, json_of
from jscale.models.bert import BERT, Pooling

MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
NAMES = {"mean": "mean", "cls": "first"}  # as later versions say it
ORDERS = ("Transformer",), ("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")
WIDTH = ("word_embedding_dimension", "embedding_dimension")  # follows from config.json


def pooling(keys: Keys) -> Pooling | None:
    """What modules.json beside a config.json says; None where there is none.

    Raises:
        DataError: a file that it names cannot be read.
        ConfigError: it wants what jscale does not have.
    """
    where = None if keys.folder is None else keys.folder / "modules.json"
    if where is None or not where.exists():
        return None
    try:
        modules = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in json_of(where)]
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{where} is no list of modules with type and path: {error!r}") from error
    kinds = tuple(kind for kind, _ in modules)
    if kinds not in ORDERS:
        can = " or ".join(", ".join(order) for order in ORDERS)
        raise ConfigError(f"{where} has {', '.join(kinds) or 'nothing'}; jscale has {can}")
    if "Pooling" not in kinds:
        return None
    folder = Path(dict(modules)["Pooling"]).name  # beside modules.json, whatever it says
    said = json_of(where.parent / folder / "config.json")
    if not isinstance(said, dict):
        raise ConfigError(f"{folder}/config.json holds a {type(said).__name__}, not an object")
    way = _way(Keys(said, f"{folder}/config.json"), keys.values.get("hidden_size"))
    return Pooling(way, "Normalize" in kinds)


def _way(keys: Keys, dim: Any) -> str:
    """The one way in which tokens, of `dim` numbers each, are brought together."""
    keys.must("include_prompt", True)
    for name in WIDTH:
        keys.must(name, dim)
    ways = [way for mode, way in MODES.items() if keys.take(mode, False)]
    mode = keys.take("pooling_mode", None)
    if mode is not None:
        if mode not in NAMES:
            raise ConfigError(f"{keys.where} says pooling_mode={mode!r}; jscale has mean and cls")
        ways.append(NAMES[mode])
    on = [name for name, value in keys.values.items() if value]
    if on or len(ways) != 1:
        raise ConfigError(
            f"{keys.where} pools by {', '.join([*ways, *on]) or 'nothing'}; jscale pools in one"
            f" way, {' or '.join(MODES)}"
        )
    return ways[0]


def pooling_files(c: BERT) -> dict[str, str]:
    """The files that say the pooling of a config of ours, by name.

    Raises:
        ConfigError: sentence-transformers has no such pooling.
    """
    if c.pooling is None:
        return {}
    if c.pooling.way not in MODES.values():
        raise ConfigError(
            f"sentence-transformers has no {c.pooling}: it cannot be exported, pooling=None can"
        )
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    paths |= {"Normalize": "2_Normalize"} if c.pooling.unit else {}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(paths.items())
    ]
    modes = {mode: way == c.pooling.way for mode, way in MODES.items()}
    write = lambda value: json.dumps(value, indent=2) + "\n"
    return {
        "modules.json": write(modules),
        "1_Pooling/config.json": write({WIDTH[0]: c.dim, **modes}),
    }
