"""Calls of attention drawn by hypothesis, and how a backend is held to the reference in them."""

# Beside the tests' folders, not in tests/pallas_kernels: as `from attention_grid import …` it is
# found whatever the working directory, where `pallas_kernels.grid` would be looked for in the
# package of that name at the top of the repository.
#
#     @settings(deadline=None, max_examples=15)
#     @given(cases(head=st.just(64), cap=st.none()))  # fields of Case that a backend restricts
#     def test_the_grid(case):
#         with watched():
#             agree(case, run)  # the backend's own function, or a name of an implementation

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask, Places, Scores, attention_with_lse
from jscale.pallas_kernels.attention.reference import LEAST
from jscale.pallas_kernels.interpret import interpreted

LIMIT = {"float32": 1e-5, "bfloat16": 1e-2}  # relative Frobenius error
QUICK = {"xla_backend_optimization_level": 0}  # small programs: compiling them is what takes time
MASKS = [
    CAUSAL,
    FULL,
    Mask(window=1),
    Mask(window=7),
    Mask(causal=False, window=5),
    Mask(chunk=6),
    Mask(causal=False, chunk=9),
    Mask(prefix=5),
    Mask(window=4, prefix=3),
]


@dataclass(frozen=True)
class Case:
    """One call: its sizes, its options, and the seed of its numbers."""

    seed: int = 0
    rows: int = 2
    queries: int = 20
    more: int = 0  # keys than queries; may be below 0 where positions are given
    heads: tuple[int, int] = (4, 2)  # of queries, of keys and values
    head: int = 8
    value: int = 8
    mask: Mask = CAUSAL
    scale: float | None = None
    cap: float | None = None
    bias: tuple[bool, bool] | None = None  # whether rows and heads have their own
    slopes: bool = False
    sinks: bool = False
    positions: bool = False
    segments: bool = False
    dtype: str = "float32"

    @property
    def keys(self) -> int:
        return max(1, self.queries + (self.more if self.positions else abs(self.more)))

    def inputs(self) -> dict[str, jax.Array]:
        """All that has a gradient: q, k, v, and bias and sinks where there are some."""
        B, T, S, (N, K) = self.rows, self.queries, self.keys, self.heads
        shapes: dict[str, tuple[int, ...]] = dict(
            q=(B, T, N, self.head), k=(B, S, K, self.head), v=(B, S, K, self.value)
        )
        if self.bias is not None:
            rows, heads = self.bias
            shapes["bias"] = (B if rows else 1, N if heads else 1, T, S)
        if self.sinks:
            shapes["sinks"] = (N,)
        rng = np.random.default_rng(self.seed)
        return {
            name: jnp.asarray(rng.standard_normal(shape, np.float32), self.dtype)
            for name, shape in shapes.items()
        }

    def places(self) -> Places:
        """Positions in no order, and segments in runs, of which some have only queries or keys."""
        rng = np.random.default_rng(self.seed + 1)
        B, T, S = self.rows, self.queries, self.keys
        anywhere = lambda n: jnp.asarray(rng.integers(0, max(T, S), (B, n)))
        runs = lambda n: jnp.asarray(np.sort(rng.integers(-1, 3, (B, n)), -1))
        return Places(
            (anywhere(T), anywhere(S)) if self.positions else None,
            (runs(T), runs(S)) if self.segments else None,
        )

    def scores(self, inputs: dict[str, jax.Array]) -> Scores:
        N = self.heads[0]
        slopes = jnp.asarray(2.0 ** (-8 * (np.arange(N) + 1) / N), jnp.float32)
        return Scores(
            self.scale,
            self.cap,
            inputs.get("bias"),
            slopes if self.slopes else None,
            inputs.get("sinks"),
        )

    def run(self, how: str | Callable[..., Any], inputs: dict[str, jax.Array]) -> Any:
        """out and lse of these inputs, by a name or by a backend's own function."""
        q, k, v, scores = inputs["q"], inputs["k"], inputs["v"], self.scores(inputs)
        if isinstance(how, str):
            return attention_with_lse(q, k, v, self.mask, scores, self.places(), how)
        return how(q, k, v, self.mask, scores, self.places())


def cases(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Case]:
    """Cases; a field that a backend restricts is given by its name."""
    drawn: dict[str, st.SearchStrategy[Any]] = dict(
        seed=st.integers(0, 99),
        rows=st.integers(1, 2),
        queries=st.integers(1, 40),
        more=st.integers(-20, 30),
        heads=st.sampled_from([(4, 2), (1, 1), (3, 1), (2, 2)]),
        head=st.sampled_from([8, 4, 5, 16]),
        value=st.sampled_from([8, 4, 3, 16]),
        mask=st.sampled_from(MASKS),
        scale=st.sampled_from([None, 0.4]),
        cap=st.sampled_from([None, 1.5, 30.0]),
        bias=st.none() | st.tuples(st.booleans(), st.booleans()),
        slopes=st.booleans(),
        sinks=st.booleans(),
        positions=st.booleans(),
        segments=st.booleans(),
    )
    return st.builds(Case, **(drawn | fields))


@contextmanager
def watched(memory: bool = True) -> Iterator[None]:
    """Kernels inside are `interpreted`, and copies that race fail: JAX 0.10 only prints that.

    Raises:
        AssertionError: at the end, with what was printed of a race.
    """
    told = io.StringIO()
    with interpreted(memory), redirect_stdout(told):
        yield
    assert "RACE" not in told.getvalue(), told.getvalue()


def frobenius(a: Any, b: Any) -> float:
    """How far a is from b, relative to b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f"{a.shape} is not {b.shape}"
    # A gradient may be exactly 0: numbers are of size 1, and so is what they are compared with.
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 0.1 * np.sqrt(b.size), 1e-30))


def same(found: Any, wanted: Any, limit: float = LIMIT["float32"]) -> None:
    """All arrays are finite, and within the limit of their twins."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(np.asarray(a, np.float32)).all(), f"{name} is not finite"
        error = frobenius(a, b)
        assert error <= limit, f"{name} is off by {error:.3g}"


def cotangent(number: int, shape: tuple[int, ...]) -> Any:
    """The slope of the tests' loss by the result of that number; bfloat16 holds it unrounded."""
    drawn = np.random.default_rng(9 + number).standard_normal(shape, np.float32)
    return drawn.astype(jnp.bfloat16).astype(np.float32)


def value_and_grads(run: Callable[..., Any], *inputs: Any) -> tuple[Any, ...]:
    """What `run` gives, and the gradients of all inputs, under jit.

    All of what it gives, lse too where there is one, has a cotangent of its own in each place. Not
    for use inside another jit, which takes no such compiler options.
    """

    def loss(*inputs: Any) -> tuple[jax.Array, Any]:
        given = run(*inputs)
        total = jnp.zeros(())
        for i, x in enumerate(jax.tree.leaves(given)):
            total += (x.astype(jnp.float32) * cotangent(i, x.shape)).sum()
        return total, given

    every = tuple(range(len(inputs)))
    both = jax.value_and_grad(loss, every, has_aux=True)
    (_, given), grads = jax.jit(both, compiler_options=QUICK)(*inputs)
    return given, *grads


def agree(case: Case, how: str | Callable[..., Any], limit: float | None = None) -> None:
    """An implementation's out, lse and all gradients are those of the float32 reference.

    Raises:
        AssertionError: one of them is not, is not finite, or is not of its input's dtype.
    """
    inputs = case.inputs()
    found = value_and_grads(lambda x: case.run(how, x), inputs)
    (out, lse), grads = found
    assert lse.dtype == jnp.float32 and out.dtype == inputs["q"].dtype
    assert {n: x.dtype for n, x in grads.items()} == {n: x.dtype for n, x in inputs.items()}
    exact = {name: x.astype(jnp.float32) for name, x in inputs.items()}
    wanted = value_and_grads(lambda x: case.run("reference", x), exact)
    blind = wanted[0][1] < LEAST / 2  # queries that see nothing: exactly so, in both
    np.testing.assert_array_equal(np.asarray(lse < LEAST / 2), np.asarray(blind))
    hide = lambda given: ((given[0][0], jnp.where(blind, 0, given[0][1])), *given[1:])
    same(hide(found), hide(wanted), LIMIT[case.dtype] if limit is None else limit)
