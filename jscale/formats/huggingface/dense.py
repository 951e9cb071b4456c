"""Llama, Mistral, Qwen 2 and Qwen 3: one table of names, and what each says in its config.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from jscale.checkpoint.names import named_leaves
from jscale.errors import ConfigError
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.keys import Keys
from jscale.formats.huggingface.layer_types import kinds_of, types_of
from jscale.formats.huggingface.rotary import RopeKeys, rotation, told
from jscale.formats.table import Pair, Table
from jscale.models import Llama, Mistral, Qwen2, Qwen3
from jscale.models.dense import Sized
from jscale.models.kinds import Place
from jscale.models.model import Model
from jscale.models.windows import Windows, turns_of

Rows = Mapping[str, tuple[str, str | None]]  # ours in a block: theirs in a layer, and the pattern

IN, OUT, MATRIX = "(n h) d -> d n h", "d (n h) -> n h d", "o i -> i o"
BLOCK: Rows = {
    "attend_norm/scale": ("input_layernorm.weight", None),
    "attend/q": ("self_attn.q_proj.weight", IN),
    "attend/k": ("self_attn.k_proj.weight", IN),
    "attend/v": ("self_attn.v_proj.weight", IN),
    "attend/o": ("self_attn.o_proj.weight", OUT),
    "attend/q_bias": ("self_attn.q_proj.bias", "(n h) -> n h"),
    "attend/k_bias": ("self_attn.k_proj.bias", "(n h) -> n h"),
    "attend/v_bias": ("self_attn.v_proj.bias", "(n h) -> n h"),
    "attend/o_bias": ("self_attn.o_proj.bias", None),
    "attend/q_norm/scale": ("self_attn.q_norm.weight", None),
    "attend/k_norm/scale": ("self_attn.k_norm.weight", None),
    "feed_norm/scale": ("post_attention_layernorm.weight", None),
    "feed/gate": ("mlp.gate_proj.weight", MATRIX),
    "feed/up": ("mlp.up_proj.weight", MATRIX),
    "feed/down": ("mlp.down_proj.weight", MATRIX),
}
HEAD = "lm_head.weight"


def places(config: Any) -> list[Place]:
    """Where the weights of a decoder's layers are."""
    kinds = getattr(config, "kinds", None)
    return list(kinds.places()) if kinds else [Place("blocks/block", range(config.layers), None)]


def table(config: Any, block: Rows = BLOCK) -> Table:
    """The names of a decoder's weights: of the rows of a `block` those whose weights it has."""
    weights = named_leaves(Model(config).shapes)
    pairs = [
        Pair("embed/table", "model.embed_tokens.weight"),
        Pair("norm/scale", "model.norm.weight"),
    ]
    for place in places(config):
        pairs += rows(place, weights, block)
    if not config.tied:
        pairs.append(Pair("head/kernel", HEAD, "v d -> d v"))
    again = (Pair("embed/table", HEAD),) if config.tied else ()
    return Table(tuple(pairs), (r".*\.rotary_emb\.inv_freq",), again)


def rows(place: Place, weights: Mapping[str, Any], block: Rows) -> Iterator[Pair]:
    """The rows of the layers of one place: of a `block` those whose weights are there."""
    for ours, (theirs, pattern) in block.items():
        if (ours := f"{place.path}/{ours}") in weights:
            shape, over = weights[ours].shape, {"layer": place.layers}
            if "{expert}" in theirs:
                over["expert"] = range(shape[1])
            after = pattern.split("-> ")[1].split() if pattern and "n h" in pattern else []
            sizes = {"h": shape[len(over) + after.index("h")]} if after else {}
            yield Pair(ours, f"model.layers.{{layer}}.{theirs}", pattern, sizes, over)


def sizes_of(keys: Keys, activation: str = "silu") -> dict[str, Any]:
    """What all of them say; the activation can be no other one."""
    keys.must("hidden_act", activation)
    keys.must("attention_dropout", 0.0)
    turn = rotation(keys)
    dim, heads = keys.take("hidden_size"), keys.take("num_attention_heads")
    head = keys.take("head_dim", None)
    return dict(
        vocab=keys.take("vocab_size"),
        dim=dim,
        layers=keys.take("num_hidden_layers"),
        heads=heads,
        kv_heads=keys.take("num_key_value_heads", heads),
        hidden=keys.take("intermediate_size"),
        head=None if head is not None and head * heads == dim else head,
        rope=turn.base,
        eps=keys.positive("rms_norm_eps", 1e-6),
        tied=keys.take("tie_word_embeddings", False),
        scaling=turn.scaling,
        longest=turn.longest,
    )


def told_of(c: Sized, activation: str = "silu") -> dict[str, Any]:
    """What all of them say, told."""
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "intermediate_size": c.hidden,
        "head_dim": c.head_size,
        "hidden_act": activation,
        "attention_dropout": 0.0,
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": c.tied,
        **told(RopeKeys(c.rope, c.scaling, c.longest)),
    }


def _llama(keys: Keys) -> Llama:
    keys.must("mlp_bias", False)
    keys.must("rope_interleaved", False)
    # How a product is cut in pieces, not what it is; and in some releases that it is a Llama.
    for name in ("pretraining_tp", "is_llama_config"):
        keys.take(name, None)
    return Llama(**sizes_of(keys), biases=keys.take("attention_bias", False))


def _tell_llama(c: Llama) -> dict[str, Any]:
    return {**told_of(c), "attention_bias": c.biases, "mlp_bias": False}


def _mistral(keys: Keys) -> Mistral:
    keys.unsaid(sliding_window=4096)  # null is none
    return Mistral(**sizes_of(keys), window=keys.take("sliding_window", None))


def _tell_mistral(c: Mistral) -> dict[str, Any]:
    return {**told_of(c), "sliding_window": c.window}


def windows_of(keys: Keys, layers: int) -> Windows | None:
    """Which of Qwen's layers see a window: by default those from `max_window_layers` on.

    Raises:
        ConfigError: some are to see one, and it is not said that there are any.
    """
    window, first = keys.values.pop("sliding_window", 4096), keys.take("max_window_layers", 28)
    some = keys.take("use_sliding_window", False) and window is not None
    usual = tuple("local" if some and i >= first else "global" for i in range(layers))
    kinds = kinds_of(keys, usual)
    if "local" not in kinds:
        return None
    if not some or window is None:
        raise ConfigError(
            f"{keys.where} does not say use_sliding_window and how large it is, and layer_types"
            " name sliding_attention"
        )
    return Windows(window, turns_of(kinds))


def windows_told(c: Any) -> dict[str, Any]:
    """What a config.json says of Qwen's windows.

    Raises:
        ConfigError: local layers rotate otherwise.
    """
    if c.windows is None:
        return {"use_sliding_window": False}
    if c.windows.rope is not None:
        raise ConfigError(
            f"a {type(c).__name__} of transformers has one base of rotation, and windows.rope="
            f"{c.windows.rope} is another: it cannot be exported"
        )
    return {
        "use_sliding_window": True,
        "sliding_window": c.windows.window,
        "max_window_layers": c.of.index("local") if "local" in c.of else c.layers,
        "layer_types": types_of(c.of),
    }


def _qwen2(keys: Keys) -> Qwen2:
    keys.must("use_mrope", False)
    sizes = sizes_of(keys)
    return Qwen2(**sizes, windows=windows_of(keys, sizes["layers"]))


def _tell_qwen2(c: Qwen2) -> dict[str, Any]:
    if c.head_size * c.heads != c.dim:
        raise ConfigError(
            f"a Qwen2 of transformers has heads of dim / heads = {c.dim // c.heads} numbers, and"
            f" this one of {c.head_size}: it cannot be exported"
        )
    said = {**told_of(c), **windows_told(c)}
    del said["head_dim"]
    return said


def _qwen3(keys: Keys) -> Qwen3:
    keys.unsaid(head_dim=128)
    sizes = sizes_of(keys)
    windows = windows_of(keys, sizes["layers"])
    return Qwen3(**sizes, windows=windows, biases=keys.take("attention_bias", False))


def _tell_qwen3(c: Qwen3) -> dict[str, Any]:
    return {**told_of(c), **windows_told(c), "attention_bias": c.biases}


FAMILIES = (
    Family(Llama, "LlamaForCausalLM", "llama", _llama, _tell_llama, table),
    Family(Mistral, "MistralForCausalLM", "mistral", _mistral, _tell_mistral, table),
    Family(Qwen2, "Qwen2ForCausalLM", "qwen2", _qwen2, _tell_qwen2, table),
    Family(Qwen3, "Qwen3ForCausalLM", "qwen3", _qwen3, _tell_qwen3, table),
)
