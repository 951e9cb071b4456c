"""A function compiled ahead of its first call, that says so when it has to be compiled again.

A shape or dtype that changes from step to step makes JAX compile silently, for seconds or minutes.
Here every compilation is an event with the arguments that made it necessary.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from jscale.errors import DeviceMemoryError
from jscale.mesh.layout import path_name
from jscale.signals import aside

# What helps where a device has too little memory.
LESS = (
    "give each device less, by a smaller data.batch, a larger accumulate, model.remat=full or more"
    " devices"
)


class Compilation(NamedTuple):
    """One compilation: how long it took, and what was different from the one before, if any."""

    seconds: float
    changed: tuple[str, ...]
    memory: int | None  # peak bytes on one device, where the compiler says


def signature(arguments: PyTree) -> tuple[Any, ...]:
    """What a program is compiled for: the tree, and the shape, dtype and sharding of each leaf."""
    leaves, tree = jax.tree.flatten(arguments)
    return tree, tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)


def differences(old: PyTree, new: PyTree) -> tuple[str, ...]:
    """The leaves that differ in shape, dtype or sharding, as sentences' ends.

    >>> import numpy as np
    >>> differences({"x": np.zeros((2, 3))}, {"x": np.zeros((2, 4))})
    ('x: float64[2,3] became float64[2,4]',)
    """
    was, now = describe(old), describe(new)
    out = [f"{n}: {was[n]} became {now[n]}" for n in was if n in now and was[n] != now[n]]
    out += [f"{n}: {now[n]} is new" for n in now if n not in was]
    out += [f"{n}: {was[n]} is gone" for n in was if n not in now]
    return tuple(out)


def describe(arguments: PyTree) -> dict[str, str]:
    def text(x: Any) -> str:
        spec = getattr(getattr(x, "sharding", None), "spec", None)
        where = f"@{tuple(spec)}" if spec else ""
        return f"{x.dtype}[{','.join(map(str, x.shape))}]{where}"

    pairs = jax.tree_util.tree_flatten_with_path(arguments)[0]
    return {path_name(path): text(x) for path, x in pairs}


class Compiled:
    """A jitted function of `(state, batch)` whose every compilation is told to `tell`.

    `around` gives a context in which to compile, such as a phase of a progress display.
    """

    def __init__(
        self,
        function: Any,
        tell: Callable[[Compilation], None],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.function, self.tell, self.around = function, tell, around
        self.programs: dict[Any, Any] = {}
        self.last: Any = None  # the batch that was compiled for last, as shapes

    def __call__(self, state: PyTree, batch: PyTree) -> Any:
        # The state never changes its form from step to step: the step pins it.
        key = signature(batch)
        if key not in self.programs:
            with self.around():
                self.programs[key] = self.compile(state, batch)
        with memory_explained(batch):
            return self.programs[key](state, batch)

    def compile(self, state: PyTree, batch: PyTree) -> Any:
        """The program for these arguments, which may be shapes only."""
        start = time.perf_counter()
        with memory_explained(batch):
            program = aside(self.function.lower(state, batch).compile)
        seconds = time.perf_counter() - start
        changed = () if self.last is None else differences(self.last, batch)
        self.last = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch
        )
        self.tell(Compilation(seconds, changed, peak_memory(program)))
        return program


@contextmanager
def memory_explained(batch: PyTree) -> Iterator[None]:
    """What happens for want of memory on a device in this block, said as a user's error.

    Raises:
        DeviceMemoryError: instead of JAX's own error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        arrays = ", ".join(f"{name} {text}" for name, text in describe(batch).items())
        raise DeviceMemoryError(
            f"a device has too little memory for the step with a batch of {arrays}"
            f" ({short(str(error))}): {LESS}; `jscale compile RECIPE` says how much it would"
            " take, on this machine or another"
        ) from error


def out_of_memory(error: Exception) -> bool:
    """Whether JAX's error says that a device has too little memory, when compiling or running."""
    text = str(error).lower()
    words = ("memory", "hbm", "allocat")  # the status alone may be that of a full message queue
    return "resource_exhausted" in text and any(word in text for word in words)


def short(text: str) -> str:
    """What a compiler or an allocator says in its first line, without the names of its errors.

    >>> short("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory.\\nMore on that")
    'Ran out of memory'
    """
    return re.sub(r"^([A-Z_]+: )?(E\d+: \w+: ?)?", "", text.strip()).splitlines()[0].rstrip(".:")


class Memory(NamedTuple):
    """Bytes on one device while a step runs, as the compiler laid them out."""

    arguments: int  # the state and the batch, with the padding that the chip wants
    outputs: int  # what is not written over the state: metrics
    temporaries: int  # activations, gradients, gathered weights
    program: int

    @property
    def total(self) -> int:
        return sum(self)


def memory_of(program: Any) -> Memory | None:
    """The compiler's account of a compiled program; None where it gives none."""
    stats = program.memory_analysis()
    if stats is None:
        return None
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )


def peak_memory(program: Any) -> int | None:
    """Bytes that the program needs on one device: arguments, results and temporaries."""
    memory = memory_of(program)
    return None if memory is None else memory.total - memory.program
