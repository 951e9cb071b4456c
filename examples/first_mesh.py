"""A model split over eight devices and trained for ten steps; no accelerator is needed."""

from pathlib import Path

import jax
import numpy as np
import optax

from jscale import train
from jscale.losses import NextToken
from jscale.mesh import Layout, make_mesh, simulate
from jscale.models import Llama, Model

simulate(8)  # first of all; leave it out where there are eight devices
layout = Layout(make_mesh(fsdp=4, tensor=2))
model = Model(Llama.of_depth(2, vocab=256))
task = train.Task(model, optax.adamw(3e-3), NextToken(), layout)
state, step = train.init(task, jax.random.key(0)), train.make_step(task)
print("the embedding lies as", state.params["embed"]["table"].sharding.spec)

text = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(np.int32)  # this file
rows = text[np.arange(8)[:, None] * 64 + np.arange(65)]
batch = {"inputs": rows[:, :-1], "targets": rows[:, 1:], "weights": np.ones((8, 64), np.float32)}
for number in range(1, 11):
    state, metrics = step(state, batch)
    print(f"step {number}: loss {metrics['loss']:.3f}")
