"""TorchScale's layer of experts."""

from collections.abc import Mapping, Sequence

from jscale.formats.table import Pair
from jscale.formats.torchscale.layers import Kind


def mixture(kind: Kind, theirs: str) -> tuple[Pair, ...]:
    """The rows of a kind of layers whose feed-forward is a mixture; none where it is not.

    `theirs` is what comes before the names of its experts, such as "layers.{layer}.moe_layer.".
    """
    if "feed/expert/up/kernel" not in kind.weights:
        return ()
    return pairs(
        *(f"{kind.ours}feed/", theirs, kind.over),
        kind.weights["feed/expert/up/kernel"].shape[1],
        cosine="feed/router/vectors" in kind.weights,
        norm="feed/expert/norm/bias" in kind.weights,
    )


def pairs(
    ours: str,
    theirs: str,
    over: Mapping[str, Sequence[int]],
    experts: int,
    *,
    cosine: bool = False,
    norm: bool = False,
) -> tuple[Pair, ...]:
    """The rows of one layer of experts, or of a stack of them.

    `ours` and `theirs` are what comes before its names, such as "blocks/block/feed/" and
    "layers.{layer}.moe_layer."; `over` says what stands in the braces. `cosine` is X-MoE's gate,
    `norm` the one inside experts (Sub-LN).
    """
    row = lambda mine, its, pattern=None: Pair(ours + mine, theirs + its, pattern, over=over)
    gate = [row("router/kernel", "gate.wg.weight", "e d -> d e")]
    if cosine:
        gate = [
            row("router/reduce", "gate.wg_reduction.weight", "r d -> d r"),
            row("router/vectors", "gate.wg", "e r -> r e"),
        ]
    every = {**over, "expert": range(experts)}
    own = lambda mine, its, pattern=None: Pair(
        f"{ours}expert/{mine}", f"{theirs}experts.{{expert}}.{its}", pattern, over=every
    )
    linear = [
        own(f"{mine}/{kind}", f"{its}.{its_kind}", pattern)
        for mine, its in (("up", "fc1"), ("down", "fc2"))
        for kind, its_kind, pattern in (("kernel", "weight", "o i -> i o"), ("bias", "bias", None))
    ]
    inner = [
        own("norm/scale", "ffn_layernorm.weight"),
        own("norm/bias", "ffn_layernorm.bias"),
    ]
    return (*gate, *linear, *(inner if norm else []))
