"""A small tree of weights with every kind of logical axes, and the optimizers under law."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jscale.optim import (
    SGD,
    Adafactor,
    AdamW,
    Averaged,
    Constant,
    Cosine,
    Lion,
    Muon,
    ScheduleFree,
)

STEPS = 80

AXES = {
    "embed": P("vocab", "embed"),
    "blocks": {
        "attend": {
            "q": P("layers", "embed", "heads", "head"),
            "o": P("layers", "heads", "head", "embed"),
            "bias": P("layers", "heads", "head"),
        },
        "norm": P("layers", "scale"),
        "route": P("layers", "embed", "experts"),
        "up": P("layers", "experts", "embed", "mlp"),
        "up_bias": P("layers", "experts", "mlp"),
    },
    "norm": P("scale"),
}
SIZES = {
    "vocab": 24,
    "embed": 16,
    "layers": 2,
    "heads": 8,
    "head": 4,
    "scale": 16,
    "experts": 8,
    "mlp": 32,
}
SHAPES = jax.tree.map(
    lambda spec: jax.ShapeDtypeStruct(tuple(SIZES[name] for name in spec), jnp.float32), AXES
)
MATRICES = {  # what decays
    "embed": True,
    "blocks": {
        "attend": {"q": True, "o": True, "bias": False},
        "norm": False,
        "route": True,
        "up": True,
        "up_bias": False,
    },
    "norm": False,
}

ALL = [
    AdamW(peak=3e-2, schedule=Cosine(warmup=4)),
    AdamW(peak=3e-2, schedule=Cosine(warmup=4), moments="bfloat16"),
    AdamW(peak=3e-2, clip=None),
    Lion(peak=1e-2),
    SGD(peak=0.3, clip=None),
    SGD(peak=0.5, momentum=None, nesterov=False, weight_decay=0.01, clip=None),
    Muon(peak=3e-2),
    Adafactor(peak=5e-2, factor_from=4),
    Adafactor(peak=5e-2, factor_from=4, momentum=0.9, weight_decay=0.1),
    ScheduleFree(peak=5e-2, schedule=Constant(warmup=4)),
    Averaged(of=AdamW(peak=3e-2), decay=0.9),
    Averaged(of=Muon(peak=3e-2), decay=0.9),
]


def tree(seed: int, shapes=SHAPES, scale: float = 1.0):
    """Normal numbers in the shape of the weights."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [
        scale * jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def train(tx: optax.GradientTransformation, params, gradient, steps: int):
    """The parameters and the state after `steps` compiled updates."""

    def update(_, carry):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    run = lambda params: jax.lax.fori_loop(0, steps, update, (params, tx.init(params)))
    return jax.jit(run)(params)


@functools.cache
def descent(optimizer):
    """Compiled once for all laws: `steps` updates towards `goal` from gradients x `scale`."""
    tx = optimizer.build(AXES, SHAPES, STEPS)

    @jax.jit
    def run(params, goal, scale, steps):
        def update(_, carry):
            params, state = carry
            gradients = jax.tree.map(lambda p, g: scale * (p - g), params, goal)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, update, (params, tx.init(params)))

    return run
