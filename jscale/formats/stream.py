"""Weights of a release read straight into their shards: the host holds a few of its arrays at once.

An array of ours that is stacked from many of theirs is written on its devices one by one. A process
reads the arrays, and of each the parts, that its own devices hold: of experts that lie on devices
of several processes, each reads its own.
"""

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jscale.checkpoint.names import named_leaves, rebuild
from jscale.errors import CheckpointError
from jscale.formats.mxfp4 import Unpacked
from jscale.formats.table import Pair, Table, differs
from jscale.formats.window import Box, window

FLOATS = "F64", "F32", "F16", "BF16"  # as safetensors says them
AHEAD = 3  # arrays that are read, or are being read, beside the one that is put on its devices

Progress = Callable[[int, int], None]  # bytes of ours that are in place, and of all
Corner = tuple[int, ...]  # where a part begins
Shards = dict[Corner, np.ndarray]


def quietly(done: int, of: int) -> None:
    """Tell nobody."""


@runtime_checkable
class Release(Collection[str], Protocol):
    """Arrays by name, of which parts can be read."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str: ...

    def part(self, name: str, box: Box) -> np.ndarray: ...


class Piece(NamedTuple):
    """One array of theirs on its way to the place `at` of one of ours."""

    pair: Pair
    name: str
    at: tuple[int, ...]
    like: jax.ShapeDtypeStruct  # what it is to be, with its sharding
    whole: jax.ShapeDtypeStruct  # ours, with its sharding
    again: bool  # whether another row has put it there already

    @property
    def corners(self) -> set[Corner]:
        """Where the parts begin that devices of this process hold; of what is read to be compared,
        those that they would hold."""
        if self.again:
            return {_corner(index) for index in _held(self.like)}
        deep, counts = len(self.at), self.whole.shape
        here = lambda index: all(
            place in range(count)[part]
            for place, part, count in zip(self.at, index, counts, strict=False)
        )
        return {_corner(index[deep:]) for index in _held(self.whole) if here(index)}


def stream(
    table: Table,
    release: Release,
    shapes: PyTree[jax.ShapeDtypeStruct],
    shardings: PyTree[NamedSharding],
    progress: Progress = quietly,
) -> PyTree[Array]:
    """Our weights, in these shapes, dtypes and shardings, from a release.

    Names, shapes and dtypes of all are checked before any is read.

    Raises:
        CheckpointError: a weight is missing, left over, of another shape, or holds no numbers that
            are weights as they are; or two of the release that are one of ours differ.
    """
    wanted, layout = named_leaves(shapes), named_leaves(shardings)
    release = Unpacked(release)
    rows = table.rows(list(release), wanted)
    for pair in rows:
        pair.check(release.shape, wanted[pair.ours])
        _check_dtypes(release, pair)
    total, done = sum(s.size * s.dtype.itemsize for s in wanted.values()), 0
    filled = dict[str, Array]()
    with ThreadPoolExecutor(AHEAD) as pool:
        for piece, shards in _ahead(pool, release, _pieces(rows, wanted, layout)):
            ours, array = piece.pair.ours, _placed(piece, shards)
            if piece.again:
                if not jnp.array_equal(filled[ours][piece.at], array):
                    raise CheckpointError(differs(piece.pair))
                continue
            if piece.at:
                stack = filled.pop(ours, None)
                if stack is None:
                    stack = _zeros(wanted[ours].shape, array.dtype, layout[ours])()
                array = _put(layout[ours])(stack, array, piece.at)
            filled[ours] = array
            done += piece.like.size * piece.like.dtype.itemsize
            progress(done, total)
    for name, like in wanted.items():
        if filled[name].dtype != like.dtype:
            filled[name] = _said(like.dtype, layout[name])(filled.pop(name))
    return rebuild(shapes, filled)


def _check_dtypes(release: Release, pair: Pair) -> None:
    """Raises CheckpointError where a row's arrays hold whole numbers, or those of eight bits, which
    stand for weights by scales alone."""
    for name in pair.names:
        if (held := release.dtype(name)) not in FLOATS:
            raise CheckpointError(
                f"{name} holds {held}: weights are to be {', '.join(FLOATS)}; was the release"
                " quantised?"
            )


def _pieces(
    rows: Iterable[Pair], wanted: Mapping[str, Any], layout: Mapping[str, NamedSharding]
) -> Iterator[Piece]:
    """All arrays of theirs, in the order of the table."""
    begun = set[str]()
    for pair in rows:
        whole, sharding, deep = wanted[pair.ours], layout[pair.ours], len(pair.over)
        one = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[deep:]))
        like = jax.ShapeDtypeStruct(whole.shape[deep:], whole.dtype, sharding=one)
        held = jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding)
        places = itertools.product(*(range(len(numbers)) for numbers in pair.over.values()))
        for name, at in zip(pair.names, places, strict=True):
            yield Piece(pair, name, at, like, held, pair.ours in begun)
        begun.add(pair.ours)


def _ahead(
    pool: ThreadPoolExecutor, release: Release, pieces: Iterable[Piece]
) -> Iterator[tuple[Piece, Shards]]:
    """Each piece with what was read of it, the next few being read meanwhile."""
    waiting = deque[tuple[Piece, Future[Shards]]]()
    for piece in pieces:
        waiting.append((piece, pool.submit(_read, release, piece)))
        if len(waiting) > AHEAD:
            piece, read = waiting.popleft()
            yield piece, read.result()
    while waiting:
        piece, read = waiting.popleft()
        yield piece, read.result()


def _read(release: Release, piece: Piece) -> Shards:
    """The parts of one array that devices of this process hold, by their corners."""
    like, pattern, out = piece.like, piece.pair.pattern, Shards()
    whole = partial(release.part, piece.name)
    cut = piece.pair.cut
    read = whole if cut is None else partial(cut.read, whole)
    wanted = piece.corners
    for index in _held(like):
        corner = _corner(index)
        if corner in out:
            continue
        seen = window(pattern, like.shape, index, piece.pair.sizes)
        if corner in wanted:
            part = seen.turned(read(seen.box), pattern)
            out[corner] = np.ascontiguousarray(part.astype(like.dtype))
        else:  # none of these devices keeps it
            out[corner] = np.zeros(like.sharding.shard_shape(like.shape), like.dtype)
    return out


def _held(like: Any) -> Collection[Any]:
    """Which part of an array each device of this process holds."""
    return like.sharding.addressable_devices_indices_map(like.shape).values()


def _corner(index: Any) -> Corner:
    return tuple(s.start or 0 for s in index)


def _placed(piece: Piece, shards: Shards) -> Array:
    """One array of theirs on its devices, as its bits where it belongs to a stack that is held so.

    Where XLA on processors puts an array of bfloat16 into a stack, it brings the whole stack to
    float32 and back, each time.
    """
    like = piece.like
    on_processors = next(iter(like.sharding.device_set)).platform == "cpu"
    bits = np.uint16 if on_processors and piece.at and like.dtype.itemsize == 2 else like.dtype
    return jax.make_array_from_callback(
        like.shape, like.sharding, lambda index: shards[_corner(index)].view(bits)
    )


@cache
def _said(dtype: Any, sharding: NamedSharding) -> Callable[[Array], Array]:
    """Bits as the numbers that they say."""
    said = partial(lax.bitcast_convert_type, new_dtype=dtype)
    return jax.jit(said, donate_argnums=0, out_shardings=sharding)


@cache
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Callable[[], Array]:
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@cache
def _put(sharding: NamedSharding) -> Callable[..., Array]:
    """A stack with one array put in its place: the stack's own memory is used again.

    Each device looks whether the place is in its part of the stack. What others are given of the
    array is not looked at: it need not be there.
    """
    mesh, spec = sharding.mesh, sharding.spec

    def put(stack: Array, one: Array, at: tuple[Any, ...]) -> Array:
        starts, inside = [], jnp.bool_(True)
        unsplit = [None] * stack.ndim  # a specification may leave out its end
        for place, count, axes in zip(at, stack.shape, (*spec, *unsplit), strict=False):
            own = place if axes is None else place - lax.axis_index(axes) * count
            inside &= (own >= 0) & (own < count)
            starts.append(jnp.clip(own, 0, count - 1))
        start = (*starts, *[0] * (stack.ndim - len(at)))
        one = one.reshape(*[1] * len(at), *one.shape)
        old = lax.dynamic_slice(stack, start, one.shape)
        return lax.dynamic_update_slice(stack, jnp.where(inside, one, old), start)

    def everywhere(stack: Array, one: Array, at: tuple[Any, ...]) -> Array:
        parts = spec, PartitionSpec(*spec[len(at) :]), PartitionSpec()
        whole = jax.shard_map(put, mesh=mesh, in_specs=parts, out_specs=spec, check_vma=False)
        return whole(stack, one, at)

    return jax.jit(everywhere, donate_argnums=0, out_shardings=sharding)
