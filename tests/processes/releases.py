"""A release of stacked arrays, read by several processes: how much of it each reads."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jscale.formats.files import Files, write_files
from jscale.formats.stream import stream
from jscale.formats.table import Pair, Table
from jscale.mesh import make_mesh

COUNT, ROWS, COLUMNS = 4, 8, 6
TABLE = Table((Pair("stack", "layers.{i}", over={"i": range(COUNT)}),))
SHAPES = {"stack": jax.ShapeDtypeStruct((COUNT, ROWS, COLUMNS), np.float32)}
SPLIT: dict[str, Any] = {
    "nothing": PartitionSpec(),
    "layers": PartitionSpec("data"),
    "sizes": PartitionSpec(None, "data", None),
}


def released(folder: Path) -> None:
    """Write it."""
    folder.mkdir()
    write_files({f"layers.{i}": numbers()[i] for i in range(COUNT)}, folder)


def numbers() -> Any:
    """What it holds."""
    return np.random.default_rng(0).standard_normal((COUNT, ROWS, COLUMNS)).astype("f4")


class Counted(Files):
    """Files that count the numbers which are read of them."""

    read = 0

    def part(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
        part = super().part(name, box)
        self.read += part.size
        return part


def read(folder: Path) -> list[float]:
    """For each way to split the stack over the processes, the share that this process reads."""
    mesh, shares = make_mesh(data=jax.process_count()), []
    for spec in SPLIT.values():
        where = NamedSharding(mesh, spec)
        files = Counted(folder)
        with files:
            stack = stream(TABLE, files, SHAPES, {"stack": where})["stack"]
        assert stack.sharding == where
        for shard in stack.addressable_shards:
            np.testing.assert_array_equal(shard.data, numbers()[shard.index])
        shares.append(files.read / numbers().size)
    return shares
