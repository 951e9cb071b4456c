"""What the tests of decode attention draw, in poisoned pages, and what they call equal.

What no token sees is NaN, and the table names pages that are not there for it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jscale.pallas_kernels.attention import CAUSAL, FULL, Mask, Scores
from jscale.pallas_kernels.decode_attention import Pages, Sequences, decode_attention, quantise

FLOAT32, BFLOAT16 = 1e-5, 1e-2  # relative Frobenius error
MASKS = [
    CAUSAL,
    FULL,
    Mask(window=3),
    Mask(False, window=4),
    Mask(chunk=5),
    Mask(window=4, prefix=2),
]
STORED = ["int8", "float8_e4m3fn", "bfloat16"]
SLOW = pytest.mark.slow
GARBAGE = [-7, 10_000, 2**30]


@dataclass(frozen=True)
class Case:
    """Sequences as (tokens before, new tokens), with `gaps` tokens of nobody at either end."""

    spans: tuple[tuple[int, int], ...] = ((5, 1), (0, 0), (3, 6), (9, 1), (0, 4))
    gaps: tuple[int, int] = (1, 2)
    heads: tuple[int, int] = (4, 2)
    head: int = 8
    value: int = 6
    places: int = 4
    most: int = 4
    mask: Mask = CAUSAL
    scores: tuple[str, ...] = ()
    dtype: str = "float32"
    stored: str = "float32"
    seed: int = 0

    def rng(self):
        return np.random.default_rng(self.seed)

    def lengths(self):
        return np.array([sum(span) if span[1] else 0 for span in self.spans], np.int32)

    def contexts(self):
        """The keys and values of each sequence, [length, K, H] and [length, K, V]."""
        rng, K = self.rng(), self.heads[1]
        draw = lambda n, size: rng.standard_normal((n, K, size), np.float32)
        return [(draw(n, self.head), draw(n, self.value)) for n in self.lengths()]

    def seen(self, s):
        """Which keys of a sequence any of its tokens sees."""
        length, new = sum(self.spans[s]), self.spans[s][1]
        keys = np.arange(length if new else 0)
        queries = np.arange(length - new, length)
        return np.asarray(self.mask.sees(queries[:, None], keys)).any(0)

    def inputs(self):
        """Queries, pages, sequences; what is not seen is not a number, or not there."""
        rng, K, C, S = self.rng(), self.heads[1], self.places, len(self.spans)
        count = 2 + S * self.most
        names = rng.permutation(count)[: S * self.most].reshape(S, self.most)
        table = rng.choice(GARBAGE, (S, self.most))
        k, v = (
            np.full((count, K, C, size), np.nan, np.float32) for size in (self.head, self.value)
        )
        for s, context in enumerate(self.contexts()):
            for key in np.flatnonzero(self.seen(s)):
                page = table[s, key // C] = names[s, key // C]
                for store, x in zip((k, v), context, strict=True):
                    store[page, :, key % C] = x[key]
        new = [n for _, n in self.spans]
        starts = np.cumsum([self.gaps[0], *new])
        tokens = starts[-1] + self.gaps[1]
        q = rng.standard_normal((tokens, self.heads[0], self.head), np.float32)
        stored = keep(jnp.asarray(k), jnp.asarray(v), self.stored)
        places = (jnp.asarray(x, jnp.int32) for x in (starts, self.lengths(), table))
        return jnp.asarray(q, self.dtype), stored, Sequences(*places)

    def more(self):
        rng, N = np.random.default_rng(self.seed + 1), self.heads[0]
        numbers: Any = dict(
            cap=1.5,
            scale=0.7,
            sinks=jnp.asarray(rng.normal(size=N), jnp.float32),
            slopes=jnp.asarray(rng.uniform(0, 1, N), jnp.float32),
        )
        return Scores(**{name: numbers[name] for name in self.scores})


ALL = ("cap", "scale", "sinks", "slopes")


def keep(k, v, stored):
    """Pages of a dtype; NaN stays NaN, if need be in the scales."""
    if stored not in ("int8", "float8_e4m3fn"):
        return Pages(k.astype(stored), v.astype(stored))
    (k, k_scales), (v, v_scales) = quantise(k, stored), quantise(v, stored)
    return Pages(k, v, k_scales, v_scales)


def plain(pages):
    """The same numbers in float32."""
    whole = lambda x, scales: x.astype(jnp.float32) * (1.0 if scales is None else scales[..., None])
    return Pages(whole(pages.k, pages.k_scales), whole(pages.v, pages.v_scales))


def same(found, wanted, limit=FLOAT32):
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert np.isfinite(a).all() and a.shape == b.shape
    assert np.linalg.norm(a - b) <= limit * max(np.linalg.norm(b), 0.1 * np.sqrt(b.size))


def agree(case, run):
    """A form gives what the reference gives for the same numbers in float32."""
    q, pages, sequences = case.inputs()
    found = jax.jit(lambda *x: run(*x, case.mask, case.more()))(q, pages, sequences)
    assert found.dtype == q.dtype
    wanted = right(q.astype(jnp.float32), plain(pages), sequences, case.mask, scores=case.more())
    same(found, wanted, FLOAT32 if case.dtype == "float32" else BFLOAT16)
    nobody = np.ones(len(q), bool)
    nobody[case.gaps[0] : len(q) - case.gaps[1]] = False
    assert (np.asarray(found, np.float32)[nobody] == 0).all()


right = jax.jit(partial(decode_attention, implementation="reference"), static_argnums=3)


def by_hand(case):
    """One token at a time, in float64, from the contexts and not from pages."""
    q = np.asarray(case.inputs()[0], np.float64)
    out, scores, at = np.zeros((*q.shape[:2], case.value)), case.more(), case.gaps[0]
    share = case.heads[0] // case.heads[1]
    for (before, new), (k, v) in zip(case.spans, case.contexts(), strict=True):
        for i, n in np.ndindex(new, case.heads[0]):
            place, keys = before + i, np.arange(before + new)
            seen = np.asarray(case.mask.sees(place, keys))
            made = k[:, n // share] @ q[at + i, n] * (scores.scale or case.head**-0.5)
            made = made if scores.cap is None else scores.cap * np.tanh(made / scores.cap)
            if scores.slopes is not None:
                made -= float(scores.slopes[n]) * abs(place - keys)
            weights = np.exp(made) * seen
            sink = 0 if scores.sinks is None else np.exp(float(scores.sinks[n]))
            out[at + i, n] = weights @ v[:, n // share] / (weights.sum() + sink)
        at += new
    return out


@st.composite
def cases(draw, **fixed):
    places = draw(st.sampled_from([1, 3, 4, 8]))
    longest = 16 // places * places
    span = st.one_of(
        st.tuples(st.integers(0, longest - 1), st.just(1)),
        st.integers(0, longest).flatmap(
            lambda n: st.tuples(st.just(n), st.integers(0, longest - n))
        ),
    )
    drawn: dict[str, Any] = dict(
        spans=(spans := tuple(draw(st.tuples(span, span, span)))),
        gaps=(front := draw(st.integers(0, 2)), 50 - front - sum(new for _, new in spans)),
        heads=draw(st.sampled_from([(1, 1), (4, 2), (3, 3), (6, 2)])),
        places=places,
        most=16 // places,
        mask=draw(st.sampled_from(MASKS)),
        scores=draw(st.sampled_from([(), ("sinks",), ("cap", "slopes"), ALL])),
        seed=draw(st.integers(0, 99)),
    )
    return Case(**(drawn | {name: draw(x) for name, x in fixed.items()}))


def over_layers(name, inside, case):
    q, pages, sequences = case.inputs()
    run = lambda q, pages: decode_attention(q, pages, sequences, implementation=name)
    wanted = [right(x, plain(pages), sequences, CAUSAL, scores=Scores()) for x in (q, 2 * q)]
    both = jnp.stack([q, 2 * q]), jax.tree.map(lambda x: jnp.stack([x, x]), pages)
    if inside == "vmap":
        layers = jax.vmap(run)
    else:
        layers = lambda *both: jax.lax.scan(lambda c, x: (c, run(*x)), 0, both)[1]
    found = jax.jit(layers)(*both)
    same(found, jnp.stack(wanted))
