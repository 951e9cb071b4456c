"""A trained model as plain files: safetensors, the recipe and the tokenizer.

Parameters keep jscale's own names (`blocks/block/feed/up`, layers stacked along the first axis).
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from jscale.checkpoint.names import named_leaves
from jscale.config.data import write
from jscale.errors import CheckpointError, ConfigError
from jscale.precision import FLOATS, cast
from jscale.run.restored import Run

SHARD = 4 << 30  # bytes of one file at most, but for a single larger array


def export(run: Run, folder: Path, dtype: str | None = None, shard: int = SHARD) -> list[Path]:
    """Write a run's model into a new folder; the files written.

    Weights are written in `dtype` (as they are kept, if None), fetched from the devices file by
    file, so that the host never holds more than `shard` bytes of them. The folder appears whole or
    not at all.

    Raises:
        ConfigError: an unknown dtype, a folder that is there, weights spread over processes.
        CheckpointError: the files cannot be written.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ConfigError(f"cannot export in {dtype!r}; choose from {', '.join(FLOATS)}")
    if folder.exists():
        raise ConfigError(f"{folder} is there already; export into a new folder")
    if not all(a.is_fully_addressable for a in jax.tree.leaves(run.params)):
        raise ConfigError("these weights are spread over processes; export from one that holds all")
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        fresh.mkdir(parents=True)
        names = write_weights(run, fresh, dtype, shard)
        write(fresh / "recipe.json", run.recipe)
        run.tokenizer.save(fresh)
        fresh.replace(folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
    return [folder / name for name in names]


def write_weights(run: Run, folder: Path, dtype: str | None, shard: int) -> list[str]:
    """Write the weights over as many files as they need, with an index where it is not one."""
    from safetensors.numpy import save_file

    arrays = named_leaves(run.params)
    files = list(shards({name: array.nbytes for name, array in arrays.items()}, shard))
    index: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        only = len(files) == 1
        file = "model.safetensors" if only else f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file({name: fetch(arrays[name], dtype) for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    if len(files) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
        (folder / "model.safetensors.index.json").write_text(text + "\n")
    return sorted(set(index.values()))


def shards(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Names in order, cut where their sizes would come to more than `most`.

    >>> list(shards({"a": 3, "b": 2, "c": 9, "d": 1}, 5))
    [['a', 'b'], ['c'], ['d']]
    """
    names: list[str] = []
    room = most
    for name, size in sizes.items():
        if names and size > room:
            yield names
            names, room = [], most
        names.append(name)
        room -= size
    if names:
        yield names


def fetch(array: Array, dtype: str | None) -> np.ndarray:
    """One array in host memory, its floating-point numbers in another dtype if one is named."""
    return np.asarray(array if dtype is None else cast(array, dtype))
