"""GPT-2: its names, matrices that lead from rows to columns, queries, keys and values in one."""

from typing import Any

from jscale.formats.huggingface.dense import HEAD
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.fused import fused, in_turn
from jscale.formats.huggingface.keys import Keys, activation, activation_told
from jscale.formats.table import Pair, Table
from jscale.models.feed import Drop
from jscale.models.gpt2 import GPT2

ROOT = "transformer."
WHOLE = {
    "embed/table": "wte.weight",
    "tower/places/0/table": "wpe.weight",
    "tower/norm/scale": "ln_f.weight",
    "tower/norm/bias": "ln_f.bias",
}
IN, OUT, BIAS = "d (n h) -> d n h", "(n h) d -> n h d", "(n h) -> n h"
BLOCK = {
    "attend_norm/scale": ("ln_1.weight", None),
    "attend_norm/bias": ("ln_1.bias", None),
    **{f"attend/{name}": ("attn.c_attn.weight", IN) for name in "qkv"},
    **{f"attend/{name}_bias": ("attn.c_attn.bias", BIAS) for name in "qkv"},
    "attend/o": ("attn.c_proj.weight", OUT),
    "attend/o_bias": ("attn.c_proj.bias", None),
    "feed_norm/scale": ("ln_2.weight", None),
    "feed_norm/bias": ("ln_2.bias", None),
    "feed/up/kernel": ("mlp.c_fc.weight", None),
    "feed/up/bias": ("mlp.c_fc.bias", None),
    "feed/down/kernel": ("mlp.c_proj.weight", None),
    "feed/down/bias": ("mlp.c_proj.bias", None),
}


def _table(c: GPT2) -> Table:
    over, head = {"layer": range(c.layers)}, {"h": c.dim // c.heads}
    pairs = [Pair(ours, ROOT + theirs) for ours, theirs in WHOLE.items()]
    for ours, (theirs, pattern) in BLOCK.items():
        name, sizes = f"{ROOT}h.{{layer}}.{theirs}", head if pattern else {}
        pairs.append(Pair(f"tower/blocks/block/{ours}", name, pattern, sizes, over))
    if not c.tied:
        pairs.append(Pair("head/kernel", HEAD, "v d -> d v"))
    again = (Pair("embed/table", HEAD),) if c.tied else ()
    masks = r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
    cuts = in_turn(1, {f"attend/{name}": c.dim for name in "qkv"})
    cuts |= in_turn(0, {f"attend/{name}_bias": c.dim for name in "qkv"})
    return fused(Table(tuple(pairs), (masks,), again, root=ROOT), cuts)


def _gpt2(keys: Keys) -> GPT2:
    keys.must("scale_attn_weights", True)
    keys.must("scale_attn_by_inverse_layer_idx", False)
    keys.must("add_cross_attention", False)
    keys.take("reorder_and_upcast_attn", False)  # in which precision, not what
    longest = keys.take("n_positions", 1024)
    keys.must("n_ctx", longest)  # the same once more, in older releases
    # What classifiers have, and how text is written: no part of a language model.
    heads = ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
    for name in ("task_specific_params", *(f"summary_{head}" for head in heads)):
        keys.take(name, None)
    return GPT2(
        vocab=keys.take("vocab_size"),
        dim=keys.take("n_embd"),
        layers=keys.take("n_layer"),
        heads=keys.take("n_head"),
        hidden=keys.take("n_inner", None),
        longest=longest,
        activation=activation(keys, "activation_function", "gelu_new"),
        eps=keys.positive("layer_norm_epsilon", 1e-5),
        tied=keys.take("tie_word_embeddings", True),
        drop=_drop(keys),
    )


def _drop(keys: Keys) -> Drop:
    """What training drops; of embeddings and of branches it must be one rate."""
    units = keys.take("resid_pdrop", 0.1)
    keys.unsaid(embd_pdrop=0.1)
    keys.must("embd_pdrop", units)
    return Drop(units=float(units), attention=float(keys.take("attn_pdrop", 0.1)))


def _tell_gpt2(c: GPT2) -> dict[str, Any]:
    tanh = c.activation == "gelu_tanh"  # by the formula that its releases name
    return {
        "vocab_size": c.vocab,
        "n_positions": c.longest,
        "n_embd": c.dim,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": c.hidden,
        "activation_function": "gelu_new" if tanh else activation_told(c.activation),
        "layer_norm_epsilon": c.eps,
        "tie_word_embeddings": c.tied,
        "resid_pdrop": c.drop.units,
        "embd_pdrop": c.drop.units,
        "attn_pdrop": c.drop.attention,
    }


FAMILIES = (Family(GPT2, "GPT2LMHeadModel", "gpt2", _gpt2, _tell_gpt2, _table),)
