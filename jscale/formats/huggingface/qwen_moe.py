"""Qwen 3 with experts: its names, and what it says in its config.json."""

from functools import partial
from typing import Any

from jscale.errors import ConfigError
from jscale.formats.huggingface import experts
from jscale.formats.huggingface.dense import sizes_of, table, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys
from jscale.models.gates import TopK
from jscale.models.qwen_moe import Qwen3MoE
from jscale.models.sparse import Experts


def _dense(keys: Keys) -> tuple[int, ...]:
    """The layers without experts: all but every so many, and those that are named.

    Raises:
        ConfigError: there is such a step that is none.
    """
    layers, step = keys.values.get("num_hidden_layers") or 0, keys.take("decoder_sparse_step", 1)
    if step < 1:
        raise ConfigError(f"{keys.where} says decoder_sparse_step={step}: it must be at least 1")
    named = {*keys.take("mlp_only_layers", ())}
    return tuple(sorted(named | {i for i in range(layers) if (i + 1) % step}))


def _qwen3_moe(keys: Keys) -> Qwen3MoE:
    keys.must("use_sliding_window", False)
    for name in ("sliding_window", "max_window_layers"):  # of no effect without the first
        keys.take(name, None)
    dense, normalise = _dense(keys), keys.take("norm_topk_prob", False)
    choice = TopK(keys.take("num_experts_per_tok", 8), normalise=normalise)
    mixture = Experts(
        choice=choice, hidden=keys.take("moe_intermediate_size"), **experts.routed(keys)
    )
    biases = keys.take("attention_bias", False)
    return Qwen3MoE(**sizes_of(keys), biases=biases, experts=mixture, dense=dense)


def _tell_qwen3_moe(c: Qwen3MoE) -> dict[str, Any]:
    choice, hidden = experts.topk(c), c.experts.hidden
    can = Experts(c.experts.count, TopK(choice.choices, normalise=choice.normalise), hidden)
    return {
        **told_of(c),
        **experts.told_of(c, can, "num_experts"),
        "norm_topk_prob": choice.normalise,
        "moe_intermediate_size": c.hidden if hidden is None else hidden,
        "mlp_only_layers": list(c.dense),
        "decoder_sparse_step": 1,
        "attention_bias": c.biases,
        "use_sliding_window": False,
    }


FAMILIES = (
    Family(
        Qwen3MoE,
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        _qwen3_moe,
        _tell_qwen3_moe,
        partial(table, block=experts.rows("mlp")),
    ),
)
