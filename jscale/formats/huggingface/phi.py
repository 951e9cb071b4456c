"""Phi-3: its names, queries, keys and values in one array, gate and values in another."""

from typing import Any

from jscale.errors import ConfigError
from jscale.formats.huggingface.dense import BLOCK, IN, MATRIX, Rows, sizes_of, table, told_of
from jscale.formats.huggingface.family import Family
from jscale.formats.huggingface.fused import fused, in_turn
from jscale.formats.huggingface.keys import Keys
from jscale.formats.huggingface.rotary import ORIGINAL, said_of, told_turned
from jscale.formats.table import Table
from jscale.models.phi import Phi3
from jscale.models.rope_scaling import LongRoPE

PADDING = 32_000  # the token that transformers takes for padding where nothing is said
FUSED: Rows = {
    **BLOCK,
    **{f"attend/{name}": ("self_attn.qkv_proj.weight", IN) for name in "qkv"},
    **{f"feed/{name}": ("mlp.gate_up_proj.weight", MATRIX) for name in ("gate", "up")},
}


def _table(c: Phi3) -> Table:
    q, k = c.heads * c.head_size, c.kv_heads * c.head_size
    cuts = in_turn(0, {"attend/q": q, "attend/k": k, "attend/v": k})
    return fused(table(c, FUSED), cuts | in_turn(0, {"feed/gate": c.hidden, "feed/up": c.hidden}))


def _phi3(keys: Keys) -> Phi3:
    for name in ("resid_pdrop", "embd_pdrop"):
        keys.must(name, 0.0)
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        keys.must(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):  # of Phi-4-mini, read by nobody
        keys.must(name, 1)
    keys.unsaid(rms_norm_eps=1e-5)
    share = _rotation(keys)
    sizes = sizes_of(keys)
    head = sizes["head"] or sizes["dim"] // sizes["heads"]
    turned = None if share == 1.0 else int(head * share)
    return Phi3(**sizes, turned=turned, window=keys.take("sliding_window", None))


def _rotation(keys: Keys) -> float:
    """The share of a head that is rotated; the rest is left for who reads rotation.

    Raises:
        ConfigError: another scaling than LongRoPE.
    """
    original = keys.take(ORIGINAL, 4096)
    share = keys.take("partial_rotary_factor", 1.0)
    said = said_of(keys)
    share = said.pop("partial_rotary_factor", share)
    kind = said.pop("rope_type", said.pop("type", "default"))
    if kind not in ("default", "longrope", "su", "yarn"):
        raise ConfigError(f"{keys.where}: a Phi3 has rope_type longrope or default, not {kind!r}")
    if kind != "default":  # the first Phi-3 were released before their scaling had its name
        said |= {"rope_type": "longrope", ORIGINAL: original}
    keys.values["rope_parameters"] = said
    return float(share)


def _tell_phi3(c: Phi3) -> dict[str, Any]:
    said = {
        **told_of(c),
        "sliding_window": c.window,
        **({} if c.turned is None else told_turned(c.turned, c.head_size)),
    }
    if c.vocab <= PADDING:
        said["pad_token_id"] = None
    if isinstance(c.scaling, LongRoPE):
        if c.head_size * c.heads != c.dim:
            raise ConfigError(
                f"a Phi3 of transformers with LongRoPE has heads of dim / heads = {c.dim / c.heads}"
                f" numbers, and this one of {c.head_size}: it cannot be exported"
            )
        return {**said, ORIGINAL: c.scaling.original}
    if c.scaling is not None:
        raise ConfigError(
            f"a Phi3 of transformers has LongRoPE or no scaling, not {type(c.scaling).__name__}:"
            " it cannot be exported"
        )
    return said


FAMILIES = (Family(Phi3, "Phi3ForCausalLM", "phi3", _phi3, _tell_phi3, _table),)
