"""Safetensors on disk: one file, or several with an index; read one array at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jscale.errors import DataError

SHARD = 4 << 30  # bytes of one file at most, but for a single larger array
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Files(Mapping[str, np.ndarray]):
    """The arrays of a .safetensors file, an index of several, or a folder that holds either.

    Arrays are read when they are asked for, so that no more than one needs to be in memory.

    Raises:
        DataError: nothing is there, an index names a file that is not beside it, a file is broken,
            or holds other arrays than the index says.
    """

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self._file_of: dict[str, Any] = {}
        self._open = ExitStack()
        for file, named in _files(path):
            try:
                reader = self._open.enter_context(safe_open(file, "np"))
            except (SafetensorError, OSError) as error:
                raise DataError(f"{file} cannot be read as safetensors: {error}") from error
            held = set(reader.keys())
            if named is not None and (wrong := sorted(held ^ named)):
                where = "lacks" if wrong[0] in named else "holds, against the index,"
                raise DataError(f"{file} {where} {wrong[0]!r}")
            self._file_of |= dict.fromkeys(held, reader)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of[name].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, which is not read."""
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """What an array holds, as safetensors says it: F32, BF16, I64."""
        return self._file_of[name].get_slice(name).get_dtype()

    def part(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
        """A box of an array; no more than it is read."""
        return self._file_of[name].get_slice(name)[box] if box else self[name]

    def __contains__(self, name: object, /) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _files(path: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """Each file, and the arrays that the index says it holds."""
    if path.is_dir():
        index = path / INDEX
        path = index if index.exists() else path / ONE
    if not path.is_file():
        raise DataError(
            f"there is no {path}; a .safetensors file, its index or their folder is wanted"
        )
    if path.suffix != ".json":
        yield path, None
        return
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        files = {Path(file).name: set[str]() for file in places.values()}
        for name, file in places.items():
            # An index that comes from elsewhere may not lead out of its folder.
            if file not in files:
                raise DataError(f"{path} names {file!r}, which is no file beside it")
            files[file].add(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no index of safetensors: {error!r}") from error
    here = {file.name for file in path.parent.iterdir() if file.is_file()}
    for file, names in sorted(files.items()):
        if file not in here:
            raise DataError(f"{path} names {file!r}, which is no file beside it")
        yield path.parent / file, names


def write_files(
    arrays: Mapping[str, Any],
    folder: Path,
    fetch: Callable[[Any], np.ndarray] = np.asarray,
    shard: int = SHARD,
) -> list[str]:
    """Write arrays over as many files as they need, with an index where it is not one.

    Each is brought to host memory by `fetch`, file by file: never more than `shard` bytes of them.
    """
    from safetensors.numpy import save_file

    files = list(shards({name: array.nbytes for name, array in arrays.items()}, shard))
    index: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        only = len(files) == 1
        file = ONE if only else f"model-{number:05}-of-{len(files):05}.safetensors"
        # Of an array that is a view, safetensors would write the memory, not the array.
        whole = {name: np.ascontiguousarray(fetch(arrays[name])) for name in names}
        save_file(whole, folder / file)
        # As safetensors writes a file, nobody else may read it.
        (folder / file).chmod(folder.stat().st_mode & 0o666)
        index |= dict.fromkeys(names, file)
    if len(files) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
        (folder / INDEX).write_text(text + "\n")
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
