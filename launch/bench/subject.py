"""What is measured, as values: a subject, its cases, and those who compete in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jscale.compiled import memory_of
from jscale.pallas_kernels.device import device
from jscale.pallas_kernels.implementation import Operation

PASSES = ("forward", "backward", "training")  # the last is both, compiled as one program

Values = dict[str, Any]  # results and gradients by name


class Work(NamedTuple):
    """What must be done at the least: FLOPs of products, and bytes read and written once."""

    flops: float
    bytes: float


class Program(NamedTuple):
    """One pass, ready to run: `call` starts it, `wait` ends with it; bytes of its temporaries."""

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    temporaries: int | None = None


class Ready(NamedTuple):
    """A competitor's passes, and what it computes."""

    programs: Mapping[str, Program]
    values: Callable[[], Values]


# Takes the inputs and the passes that are wanted; may raise whatever a foreign library raises.
Contender = Callable[[Mapping[str, Any], Sequence[str]], Ready]


LIMIT = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}


@dataclass(frozen=True, eq=False)
class Subject:
    """An operation, or a whole step, that can be measured.

    Attributes:
        name: as on the command line.
        case: the dataclass of its cases, which has a `dtype` and is a sentence as a string.
        cases: those that are worth measuring on a platform; few and small if the second is true.
        inputs: arrays by name; gradients are of those that are floating point.
        work: what each pass must do; the passes are those that there are.
        values: what is right.
        contenders: ours, who compete; a word instead says why one cannot.
        chosen: the name, among them, of whom jscale chooses by itself.
        rivals: others, who compete; None for nobody.
        targets: what of it can be tuned for a case on a device (`tune.Target`); None for nothing.
        limits: by dtype, how far from what is right others may be (relative Frobenius error).
    """

    name: str
    case: type
    cases: Callable[[str, bool], Sequence[Any]]
    inputs: Callable[[Any], Mapping[str, Any]]
    work: Callable[[Any], Mapping[str, Work]]
    values: Callable[[Any, Mapping[str, Any]], Values]
    contenders: Callable[[Any], Mapping[str, Contender | str]]
    chosen: Callable[[Any], str]
    rivals: Callable[[Any], Mapping[str, Contender | str]] | None = None
    targets: Callable[[Any, Any], Sequence[Any]] | None = None
    limits: Mapping[str, float] = field(default_factory=lambda: LIMIT)


def compiled(function: Callable[..., Any], *inputs: Any) -> Program:
    """A pass that is a function of arrays, compiled."""
    made = jax.jit(function).lower(*inputs).compile()
    memory = memory_of(made)
    size = None if memory is None else memory.temporaries
    return Program(lambda: made(*inputs), jax.block_until_ready, size)


def floating(inputs: Mapping[str, Any]) -> list[str]:
    """The names of the inputs that have gradients."""
    return [name for name, x in inputs.items() if jnp.issubdtype(x.dtype, jnp.floating)]


def slope(x: Any) -> Any:
    """A cotangent that is of another size in each place, and the same in every dtype."""
    wave = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    return wave.astype(jnp.bfloat16).astype(x.dtype)


def differentiable(function: Callable[..., Any], gradients: bool = True) -> Contender:
    """A competitor that is a function of the inputs by name, of one array, with gradients.

    Without `gradients` it has a forward pass only.
    """

    def ready(inputs: Mapping[str, Any], passes: Sequence[str]) -> Ready:
        names = floating(inputs)
        given = tuple(inputs[name] for name in names)
        # These are arguments as well: of constants XLA would compute all it can while it compiles.
        rest = {name: x for name, x in inputs.items() if name not in names}
        run = lambda rest, *x: function(**dict(zip(names, x, strict=True)), **rest)
        save = lambda rest, *x: jax.vjp(lambda *x: run(rest, *x), *x)
        pull = lambda back, g: back(g)

        def training(rest: Any, *x: Any) -> Any:
            out, back = save(rest, *x)
            return out, back(slope(out))

        wanted = [name for name in passes if gradients or name == "forward"]
        programs = {}
        if "forward" in wanted:
            programs["forward"] = compiled(run, rest, *given)
        if "backward" in wanted:
            out, back = jax.jit(save)(rest, *given)
            programs["backward"] = compiled(pull, back, slope(out))
        if "training" in wanted or "backward" in wanted:
            both = compiled(training, rest, *given)
            programs |= {"training": both} if "training" in wanted else {}
            return Ready(programs, lambda: named(names, *both.call()))
        return Ready(programs, lambda: {"result": programs["forward"].call()})

    return ready


def ours(
    operation: Operation,
    call: Any,
    run: Callable[[str], Callable[..., Any]],
    too_much: str | None = None,
    gradients: bool = True,
) -> dict[str, Contender | str]:
    """The implementations of an operation by name, or why one cannot compute the call.

    `run` makes a function of an implementation's name; `too_much` is why the reference must not.
    """
    found: dict[str, Contender | str] = {}
    for name, one in operation.implementations.items():
        obstacle = one.obstacle(call, device())
        if name == "reference":
            obstacle = obstacle or too_much
        found[name] = obstacle or differentiable(run(name), gradients)
    return found


def picked(operation: Operation, call: Any) -> str:
    """The name of the implementation that jscale chooses for a call."""
    chosen = operation.pick(call)
    return next(name for name, one in operation.implementations.items() if one is chosen)


def named(names: Sequence[str], out: Any, grads: Sequence[Any]) -> Values:
    """A result and its gradients, by name."""
    found = {f"gradient of {name}": x for name, x in zip(names, grads, strict=True)}
    return {"result": out, **found}


def exactly(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Values:
    """The values of a function of float32, whose products are not rounded."""
    wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
    with jax.default_matmul_precision("highest"):
        ready = differentiable(function)({n: wide(x) for n, x in inputs.items()}, ["training"])
        return {name: np.asarray(x) for name, x in ready.values().items()}


def wrong(found: Values, wanted: Values, limit: float) -> str | None:
    """What of the values is off by how much, where one is by more than the limit."""
    for name, x in found.items():
        a, b = np.asarray(x, np.float64), np.asarray(wanted[name], np.float64)
        if a.shape != b.shape:
            return f"{name} is of shape {a.shape} and not {b.shape}"
        off = distance(a, b)
        if not off <= limit:
            return f"{name} is off by {off:.1e}, more than {limit:.0e}"
    return None


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative Frobenius error."""
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def draw(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Any]:
    """Normal numbers, the same every time."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    pairs = zip(shapes.items(), keys, strict=True)
    return {name: jax.random.normal(key, shape, dtype) for (name, shape), key in pairs}
