"""Every causal architecture of the cards writes, token by token, what it would say at once."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from close import SAME, assert_close
from laws import DECODERS

from jscale.generate import answers, writes
from jscale.models import Model
from jscale.models.cards import CARDS

# Programs of tests run for milliseconds: compiling them well costs more than it saves.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LAWFUL = {type(config) for config in DECODERS.values()}
OTHERS = {
    kind.__name__: card.small
    for kind, card in CARDS.items()
    if kind not in LAWFUL and card.small is not None and hasattr(card.small, "vocab")
}
PROMPT, LENGTH = 5, 9


def decodes(config) -> bool:
    model = Model(config)
    return writes(model) and not answers(model)


WRITING = [name for name, config in OTHERS.items() if decodes(config)]


def test_they_are_many():
    assert {"Gemma2", "GPT2", "Olmo2", "Phi3", "Qwen2", "GLM4MoE", "DeepSeekV2"} <= set(WRITING)
    assert not {"BERT", "RoBERTa", "TransformerEncoder", "EncoderDecoder"} & set(WRITING)


@pytest.mark.parametrize("name", WRITING)
def test_a_cache_changes_nothing(name):
    model = Model(OTHERS[name])
    params = model.init(jax.random.key(0))
    x = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, 64)

    @partial(jax.jit, compiler_options=QUICK)
    def both(params, x):
        network = model.bind(params)
        places = jnp.broadcast_to(jnp.arange(LENGTH), x.shape)
        first = network(x[:, :PROMPT], places[:, :PROMPT], cache=network.cache(2, LENGTH + 1))

        def one(cache, at):
            token, place = at
            out = network(token[:, None], place[:, None], cache=cache)
            return out.cache, out.hidden[:, 0]

        rest = jax.lax.scan(one, first.cache, (x[:, PROMPT:].T, places[:, PROMPT:].T))[1]
        steps = jnp.concatenate([first.hidden, rest.swapaxes(0, 1)], 1)
        return network.unembed(steps), network.unembed(network(x).hidden)

    by_steps, at_once = both(params, x)
    assert_close(by_steps, at_once, SAME * 10)
