"""Two chunks of tokens: the exchange of one runs beside the experts of the other, as compiled."""

from dataclasses import dataclass, replace

import absent
import jax
import jax.numpy as jnp
import pytest

from jscale.mesh import Layout, make_mesh
from jscale.mesh.compat import uncached
from jscale.mesh.hlo import read
from jscale.mesh.target import target
from jscale.models.decoder import Context
from jscale.models.dispatching import Dispatch
from jscale.models.feed import GLU, Style
from jscale.models.gates import LinearRouter, TopK
from jscale.models.model import Model
from jscale.models.moe import MoE

B, T, D, F, DEVICES = 4, 4096, 2048, 2048, 4
LAYER = MoE(8, GLU(F), LinearRouter(), TopK(2))


@dataclass(frozen=True)
class Alone:
    """A layer as a whole network."""

    feed: MoE

    def build(self, rngs, compute):
        return self.feed.build(D, rngs, Style())


def compiled(machine, dispatch, **options):
    """The text of a layer's forward and backward pass for four chips of a machine."""
    absent.need(machine)
    model = Model(Alone(replace(LAYER, dispatch=dispatch)), "bfloat16", "bfloat16")
    layout = Layout(make_mesh(devices=list(target(machine).devices())[:DEVICES], expert=DEVICES))
    where = layout.weight_shardings(model.shapes, model.axes)
    like = lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)
    tokens = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16)
    x = like(tokens, layout.activation_sharding("batch", "length", None))

    def loss(params, x):
        with layout.active():
            y, _ = model.bind(params)(x, Context(jnp.broadcast_to(jnp.arange(T), (B, T))))
        return jnp.square(y.astype(jnp.float32)).sum()

    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(jax.tree.map(like, model.shapes, where), x)
    with uncached():
        return lowered.compile(compiler_options=options).as_text() or ""


def beside(text, kind):
    """Pairs of chunks: of an exchange on its way, and of a product of experts scheduled then.

    Each with its pass, forward (False) or backward (True).
    """
    assert "is_scheduled=true" in text.partition("\n")[0]
    program = read(text)
    found, under_way = set(), {}
    for one in program.computations[program.entry].instructions.values():
        chunks = [number for number in (0, 1) if f"chunk{number}" in one.op_name]
        own = (chunks[0], "transpose" in one.op_name) if len(chunks) == 1 else None
        if one.opcode.startswith(kind) and one.opcode.endswith("-start"):
            under_way[one.name] = own
        elif one.opcode.startswith(kind) and one.opcode.endswith("-done"):
            under_way.pop(one.operands[0].name)
        elif "grouped_matmul" in one.op_name and one.opcode == "custom-call":
            found |= {(way, own) for way in under_way.values() if way and own}
    return found


FORWARD, BACKWARD = False, True
HIDDEN = {
    ((1, FORWARD), (0, FORWARD)),  # the second chunk comes in beside the first one's experts,
    ((0, FORWARD), (1, FORWARD)),  # and the first one's results leave beside the second's;
    ((0, BACKWARD), (1, BACKWARD)),  # gradients of results come in, the last first,
    ((1, BACKWARD), (0, BACKWARD)),  # and those of tokens leave
}


# The grouped product that is chosen there goes through Triton, which JAX 0.12 means to leave.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_on_gpus_a_gather_runs_beside_the_other_chunks_experts():
    """Both ways, forward and backward; XLA makes no one exchange of two chunks'."""
    text = compiled("h100:4", Dispatch("gather", 2.0, chunks=2))
    assert beside(text, "all-gather") | beside(text, "reduce-scatter") >= HIDDEN


@pytest.mark.slow
def test_on_tpus_a_ragged_exchange_does_too_where_the_compiler_may():
    option = {"xla_tpu_enable_async_ragged_all_to_all": "true"}
    text = compiled("v5p-8", Dispatch("ragged", 2.0, chunks=2), **option)
    assert beside(text, "ragged-all-to-all") >= HIDDEN
