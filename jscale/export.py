"""A trained model as plain files: safetensors, the recipe and the tokenizer.

Parameters keep jscale's own names (`blocks/block/feed/up`, layers stacked along the first axis),
or get those of another framework by a table.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from jaxtyping import Array

from jscale.checkpoint.names import named_leaves
from jscale.config.data import write
from jscale.errors import CheckpointError, ConfigError
from jscale.formats.distinct import check_distinct
from jscale.formats.files import SHARD, write_files
from jscale.formats.table import Table
from jscale.precision import FLOATS, cast
from jscale.run.restored import Run


def export(
    run: Run,
    folder: Path,
    dtype: str | None = None,
    shard: int = SHARD,
    table: Table | None = None,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> list[Path]:
    """Write a run's model into a new folder; the files written.

    Parameters have jscale's own names, or those that a `table` gives them. `beside` are texts of
    further files by name, such as another framework's config.

    Weights are written in `dtype` (as they are kept, if None), fetched from the devices file by
    file, so that the host never holds more than `shard` bytes of them. The folder appears whole or
    not at all.

    Raises:
        ConfigError: an unknown dtype, a folder that is there, weights spread over processes.
        CheckpointError: the files cannot be written, or two experts are the same.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ConfigError(f"cannot export in {dtype!r}; choose from {', '.join(FLOATS)}")
    if folder.exists():
        raise ConfigError(f"{folder} is there already; export into a new folder")
    if not all(a.is_fully_addressable for a in jax.tree.leaves(run.params)):
        raise ConfigError("these weights are spread over processes; export from one that holds all")
    check_distinct(run.params, run.model.axes)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        fresh.mkdir(parents=True)
        fetched = lambda array: fetch(array.fetch() if table else array, dtype)
        named = named_leaves(run.params) if table is None else table.lazily(run.params)
        names = write_files(named, fresh, fetched, shard)
        for name, text in beside.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_text(text)
        write(fresh / "recipe.json", run.recipe)
        run.tokenizer.save(fresh)
        fresh.replace(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # nothing is there after the replacement
    return [folder / name for name in names]


def fetch(array: Array | np.ndarray, dtype: str | None) -> np.ndarray:
    """One array in host memory, its floating-point numbers in another dtype if one is named."""
    return np.asarray(array if dtype is None else cast(array, dtype))
