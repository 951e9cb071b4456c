"""LongNet: dilated attention in the Transformer, against the formula in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import SAME, assert_close

from jscale.models import Model, TransformerDecoder, TransformerEncoder
from jscale.models.decoder import Context
from jscale.models.feed import MLP, Drop
from jscale.models.positions import Alibi, RelativeBias, Rope, XPos
from jscale.models.transformer import Dense, Dilated
from jscale.pallas_kernels.attention import CAUSAL, FULL, PLAIN, Scores

PATTERNS = [
    ((6, 1),),
    ((4, 1), (8, 2)),
    ((4, 2), (12, 3)),
    ((5, 2), (7, 3), (64, 4)),  # neither sizes nor length divide
]


def by_formula(q, k, v, patterns, causal, segments, slopes):
    """Row by row and head by head: of each pattern, the softmax over its own keys; mixed by lse."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    out = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        totals, sums = [], []
        for width, dilation in patterns:
            begin, end = t // width * width, min(T, (t // width + 1) * width)
            taken = [s for s in range(begin, end) if (s - begin) % dilation == n % dilation]
            if t not in taken:
                continue
            taken = [
                s for s in taken if segments[b, s] == segments[b, t] and (s <= t or not causal)
            ]
            scores = np.array([q[b, t, n] @ k[b, s, n] / np.sqrt(H) for s in taken])
            scores -= slopes[n] * np.abs(t - np.array(taken))
            weights = np.exp(scores)
            totals.append(weights.sum())
            sums.append(weights @ v[b, taken, n])
        if totals:
            out[b, t, n] = sum(sums) / sum(totals)
    return out


def draw(T=13, N=4, H=6, B=2):
    keys = jax.random.split(jax.random.key(T), 3)
    return [jax.random.normal(key, (B, T, N, H)) for key in keys]


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_the_formula(patterns, causal, packed):
    q, k, v = draw()
    place = np.arange(13) * np.ones((2, 1), int)
    segments = np.where(place < 5, 1, 2) if packed else np.ones((2, 13), int)
    context = Context(jnp.asarray(place), jnp.asarray(segments, jnp.int32) if packed else None)
    mask = CAUSAL if causal else FULL
    out = jax.jit(lambda q, k, v: Dilated(patterns).rows(q, k, v, mask, context, PLAIN))(q, k, v)
    wanted = by_formula(q, k, v, patterns, causal, segments, np.zeros(4))
    assert_close(out, wanted, SAME * 5)


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_a_cache_holds_what_patterns_want(patterns):
    q, k, v = draw(T=13)
    slopes = np.array([0.5, 0.25, 0.1, 0.0])
    scores = Scores(slopes=jnp.asarray(slopes, jnp.float32))
    wanted = by_formula(q, k, v, patterns, True, np.ones((2, 13), int), slopes)
    longer = [jnp.pad(x, ((0, 0), (0, 5), (0, 0), (0, 0)), constant_values=9.0) for x in (k, v)]
    slots = jax.jit(lambda q, k, v, at: Dilated(patterns).slots(q, k, v, CAUSAL, at, scores))
    for begin, end in [(0, 6), (6, 7), (7, 13)]:
        positions = jnp.broadcast_to(jnp.arange(begin, end), (2, end - begin))
        out = slots(q[:, begin:end], *longer, positions)
        assert_close(out, wanted[:, begin:end], SAME * 5)


def model(kind, attends):
    return Model(
        kind(
            vocab=64,
            dim=32,
            layers=2,
            heads=4,
            feed=MLP(64),
            positions=(XPos(),),
            attends=attends,
            remat="none",
        )
    )


@pytest.mark.parametrize("kind", [TransformerEncoder, TransformerDecoder])
def test_one_segment_without_gaps_is_dense(kind):
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 64)
    params = model(kind, Dense()).init(jax.random.key(1))

    def grads(attends):
        def loss(params):
            network = model(kind, attends).bind(params)
            return (network.unembed(network(tokens).hidden) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    assert_close(grads(Dilated(((16, 1),))), grads(Dense()), 1e-4)  # of a bias's noise too


def test_padding_is_not_seen():
    network = model(TransformerEncoder, Dilated(((4, 1), (8, 2))))
    params = network.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 16), 0, 64)
    segments = jnp.where(jnp.arange(16) < 11, 1, 0)[None]
    read = jax.jit(lambda tokens: network.bind(params)(tokens, None, segments).hidden)
    before, after = read(tokens), read(tokens.at[:, 11:].add(1))
    np.testing.assert_array_equal(before[:, :11], after[:, :11])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(attends=Dilated(((4, 1),)), drop=Drop(attention=0.1)), "no probabilities to drop"),
        (dict(positions=(RelativeBias(),)), "Dilated and RelativeBias cannot go together"),
        (dict(positions=(XPos(blockwise=8),)), "Dilated and XPos cannot go together"),
    ],
)
def test_what_cannot_go_together_is_named(changes, message):
    config = TransformerDecoder(
        vocab=64,
        dim=32,
        layers=2,
        heads=4,
        feed=MLP(64),
        positions=(Rope(), Alibi()),
        attends=Dilated(((4, 1), (8, 2))),
    )
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


@pytest.mark.parametrize("patterns", [(), ((0, 1),), ((4, 0),), ((4,),)])
def test_patterns_check_themselves(patterns):
    with pytest.raises(Exception, match="Dilated|type"):
        Dilated(patterns)
