"""DeepSeek V2 and V3: the names of their weights, and what each says in its config.json."""

from dataclasses import replace
from typing import Any

from jscale.checkpoint.names import named_leaves
from jscale.errors import ConfigError
from jscale.formats.huggingface import dense, experts
from jscale.formats.huggingface.dense import IN, MATRIX, Rows
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys
from jscale.formats.huggingface.rotary import RopeKeys, rotation, told
from jscale.formats.table import Pair, Table
from jscale.models.deepseek import DeepSeekV2, DeepSeekV3
from jscale.models.gates import Balance, Limit, TopK
from jscale.models.kinds import Place
from jscale.models.latent import Latent
from jscale.models.model import Model
from jscale.models.sparse import Experts, Shared

SPARSE: Rows = {
    **experts.rows("mlp"),
    "feed/routed/correction": ("mlp.gate.e_score_correction_bias", None),
    "feed/shared/gate": ("mlp.shared_experts.gate_proj.weight", MATRIX),
    "feed/shared/up": ("mlp.shared_experts.up_proj.weight", MATRIX),
    "feed/shared/down": ("mlp.shared_experts.down_proj.weight", MATRIX),
}
BLOCK: Rows = {
    **SPARSE,
    "attend/q_down": ("self_attn.q_a_proj.weight", MATRIX),
    "attend/q_down_bias": ("self_attn.q_a_proj.bias", None),
    "attend/q_norm/scale": ("self_attn.q_a_layernorm.weight", None),
    "attend/q_up": ("self_attn.q_b_proj.weight", IN),
    "attend/kv_down": ("self_attn.kv_a_proj_with_mqa.weight", MATRIX),
    "attend/kv_down_bias": ("self_attn.kv_a_proj_with_mqa.bias", None),
    "attend/kv_norm/scale": ("self_attn.kv_a_layernorm.weight", None),
    "attend/kv_up": ("self_attn.kv_b_proj.weight", IN),
}
DEPTH: Rows = {
    "token_norm/scale": ("enorm.weight", None),
    "hidden_norm/scale": ("hnorm.weight", None),
    "join": ("eh_proj.weight", MATRIX),
    "norm/scale": ("shared_head.norm.weight", None),
}
V3_DEFAULTS = dict(  # what transformers takes where nothing is said
    routed_scaling_factor=2.5,
    n_group=8,
    topk_group=4,
    first_k_dense_replace=3,
)


def table(config: Any, block: Rows = BLOCK) -> Table:
    """The names of the weights of a decoder that may look ahead."""
    plain, weights = dense.table(config, block), named_leaves(Model(config).shapes)
    head, turned = ("embed/table", None) if config.tied else ("head/kernel", "v d -> d v")
    pairs, again = list(plain.pairs), list(plain.again)
    for k in range(config.ahead):
        path, layer = f"depths/{k}", config.layers + k
        place = Place(f"{path}/blocks/block", range(layer, layer + 1), "sparse")
        pairs += dense.rows(place, weights, block)
        there = f"model.layers.{layer}"
        pairs += [Pair(f"{path}/{ours}", f"{there}.{t}", p) for ours, (t, p) in DEPTH.items()]
        # Releases hold the network's embedding and head there once more.
        again.append(Pair("embed/table", f"{there}.embed_tokens.weight"))
        again.append(Pair(head, f"{there}.shared_head.head.weight", turned))
    return replace(plain, pairs=tuple(pairs), again=tuple(again))


def further(config: Any) -> tuple[str, ...]:
    """How the names begin of what looks ahead, which transformers loads for drafts alone."""
    return tuple(f"model.layers.{config.layers + k}." for k in range(config.ahead))


def experts_of(keys: Keys, choice: TopK) -> Experts:
    """The experts that a config.json tells of.

    Raises:
        ConfigError: it says of them what jscale does not have.
    """
    keys.must("moe_layer_freq", 1)
    # On how many devices they were, and what training reports; which tokens are balanced together.
    for name in ("ep_size", "output_router_logits", "seq_aux"):
        keys.take(name, None)
    hidden = keys.take("moe_intermediate_size")
    return Experts(
        keys.take("n_routed_experts"),
        choice,
        hidden,
        Shared(hidden * keys.take("n_shared_experts")),
        balance=Balance(float(keys.take("aux_loss_alpha", 0.001))),
    )


def told_of_experts(c: Any) -> dict[str, Any]:
    """The keys of a config.json that say this of a network's experts.

    Raises:
        ConfigError: a release cannot say it.
    """
    e, choice = c.experts, experts.topk(c)
    limit = experts.limit_of(choice)
    hidden = c.hidden if e.hidden is None else e.hidden
    plain = e.weighs == "results" and e.latent is None
    if e.shared is None or e.shared.gated or e.shared.hidden % hidden or not plain:
        raise ConfigError(
            f"a release of this architecture has shared experts, as large as the {hidden} of the"
            f" others, without a gate, no latents, and weighs results: {e} cannot be exported"
        )
    return {
        "n_routed_experts": e.count,
        "num_experts_per_tok": choice.choices,
        "moe_intermediate_size": hidden,
        "n_shared_experts": e.shared.hidden // hidden,
        "routed_scaling_factor": choice.scale,
        "norm_topk_prob": choice.normalise,
        "n_group": 1 if limit is None else limit.groups,
        "topk_group": 1 if limit is None else limit.kept,
        "first_k_dense_replace": c.dense,
        "aux_loss_alpha": e.balance.weight,
    }


def corrected(keys: Keys) -> TopK:
    """The choice by sigmoids and a correction, among the groups whose two best are best."""
    keys.must("scoring_func", "sigmoid")
    keys.must("topk_method", "noaux_tc")
    groups, kept = keys.take("n_group", 1), keys.take("topk_group", 1)
    return TopK(
        keys.take("num_experts_per_tok"),
        "sigmoid",
        keys.flag("norm_topk_prob", True),
        float(keys.take("routed_scaling_factor", 1.0)),
        corrected=True,
        limit=Limit(groups, kept, best=2) if groups > 1 else None,
    )


def check_corrected(c: Any) -> None:
    """Raises ConfigError unless the choice is one that `corrected` reads."""
    choice = experts.topk(c)
    limit = experts.limit_of(choice)
    best = 2 if limit is None else limit.best
    if choice.weights != "sigmoid" or not choice.corrected or best != 2:
        raise ConfigError(
            f"a release of {type(c).__name__} chooses by corrected sigmoids, among groups judged by"
            f" their 2 best: {choice} cannot be exported"
        )


def _softmax(keys: Keys) -> TopK:
    keys.must("scoring_func", "softmax")
    # Whether weights are normalised: the released code does that and does not scale them.
    keys.must("norm_topk_prob", False)
    how = keys.must("topk_method", "greedy", "group_limited_greedy")
    groups, kept = keys.take("n_group", 1), keys.take("topk_group", 1)
    return TopK(
        keys.take("num_experts_per_tok"),
        "softmax",
        False,
        float(keys.take("routed_scaling_factor", 1.0)),
        limit=None if how == "greedy" else Limit(groups, kept, best=1),
    )


def _sizes(keys: Keys, choice: TopK) -> dict[str, Any]:
    keys.must("hidden_act", "silu")
    keys.must("attention_dropout", 0.0)
    keys.take("pretraining_tp", 1)  # how a product is cut in pieces, not what it is
    scaled = keys.values.get("rope_parameters") or keys.values.get("rope_scaling") or {}
    turn, heads = rotation(keys), keys.take("num_attention_heads")
    keys.must("num_key_value_heads", heads)
    layers = keys.take("num_hidden_layers")
    return dict(
        vocab=keys.take("vocab_size"),
        dim=keys.take("hidden_size"),
        layers=layers,
        heads=heads,
        hidden=keys.take("intermediate_size"),
        experts=experts_of(keys, choice),
        latent=_latent(keys),
        dense=min(keys.take("first_k_dense_replace", 0), layers),
        rope=turn.base,
        eps=keys.positive("rms_norm_eps", 1e-6),
        tied=keys.take("tie_word_embeddings", False),
        scaling=turn.scaling,
        sharpened=float(scaled.get("mscale_all_dim") or 0.0),
        longest=turn.longest,
    )


def _latent(keys: Keys) -> Latent:
    latent = Latent(
        keys.take("kv_lora_rank"),
        keys.values.pop("q_lora_rank", 1536),  # null: queries are not compressed
        keys.take("qk_nope_head_dim"),
        keys.take("qk_rope_head_dim"),
        keys.take("v_head_dim"),
        keys.flag("rope_interleave", True),
        keys.take("attention_bias", False),
    )
    keys.must("head_dim", latent.rotated)  # of what is rotated, to transformers
    keys.must("qk_head_dim", latent.head)
    return latent


def _told(c: DeepSeekV2) -> dict[str, Any]:
    rope = told(RopeKeys(c.rope, c.scaling, c.longest))
    if c.sharpened:
        how = {**rope["rope_scaling"], "mscale_all_dim": c.sharpened}
        if how.get("attention_factor") == 1.0:  # said as the releases do
            how["mscale"] = c.sharpened
            del how["attention_factor"]
        rope["rope_scaling"] = how
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.heads,
        "intermediate_size": c.hidden,
        "kv_lora_rank": c.latent.kv,
        "q_lora_rank": c.latent.q,
        "qk_nope_head_dim": c.latent.plain,
        "qk_rope_head_dim": c.latent.rotated,
        "v_head_dim": c.latent.value,
        "attention_bias": c.latent.biases,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": c.tied,
        **told_of_experts(c),
        **rope,
    }


def _v2(keys: Keys) -> DeepSeekV2:
    keys.must("mlp_bias", False)
    return DeepSeekV2(**_sizes(keys, _softmax(keys)))


def _tell_v2(c: DeepSeekV2) -> dict[str, Any]:
    choice = experts.topk(c)
    limit = experts.limit_of(choice)
    best = 1 if limit is None else limit.best
    if choice.weights != "softmax" or choice.normalise or choice.corrected or best != 1:
        raise ConfigError(
            "a release of DeepSeekV2 has weights by a softmax that are not normalised, and groups"
            f" judged by their best: {choice} cannot be exported"
        )
    if not c.latent.pairs:
        raise ConfigError("a release of DeepSeekV2 rotates pairs: Latent.pairs must be True")
    how = "greedy" if choice.limit is None else "group_limited_greedy"
    return {**_told(c), "topk_method": how, "scoring_func": "softmax"}


def _v3(keys: Keys) -> DeepSeekV3:
    keys.unsaid(**V3_DEFAULTS)
    sizes = _sizes(keys, corrected(keys))
    return DeepSeekV3(**sizes, ahead=keys.take("num_nextn_predict_layers", 0))


def _tell_v3(c: DeepSeekV3) -> dict[str, Any]:
    check_corrected(c)
    how = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    ahead = {"rope_interleave": c.latent.pairs, "num_nextn_predict_layers": c.ahead}
    return {**_told(c), **how, **ahead}


FAMILIES = (
    Family(DeepSeekV2, "DeepseekV2ForCausalLM", "deepseek_v2", _v2, _tell_v2, table),
    Family(
        DeepSeekV3, "DeepseekV3ForCausalLM", "deepseek_v3", _v3, _tell_v3, table, unread=further
    ),
)
