"""How a text becomes a vector, as sentence-transformers says it beside a release: modules.json."""

import json
from pathlib import Path
from typing import Any

from jscale.data.source import reading
from jscale.errors import ConfigError
from jscale.formats.huggingface.keys import Keys
from jscale.models.bert import BERT, Pooling

MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
NAMES = {"mean": "mean", "cls": "first"}  # as later versions say it
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
    way, unit = None, False
    for module in _json(where):
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Pooling":
            folder = Path(module["path"]).name  # beside modules.json, whatever it says
            way = _way(Keys(_json(where.parent / folder / "config.json"), f"{folder}/config.json"))
        elif kind == "Normalize":
            unit = True
        elif kind != "Transformer":
            raise ConfigError(
                f"{where} has a {kind}; jscale has Transformer, Pooling and Normalize alone"
            )
    return None if way is None else Pooling(way, unit)


def _way(keys: Keys) -> str:
    """The one way in which tokens are brought together."""
    for name in (*WIDTH, "include_prompt"):
        keys.take(name, None)
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


def _json(path: Path) -> Any:
    with reading(path):
        text = path.read_text()
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error


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
