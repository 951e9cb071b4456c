"""Decoders with experts: how releases name these, and what of them a config.json says."""

from typing import Any

from jscale.errors import ConfigError
from jscale.formats.huggingface.dense import BLOCK, MATRIX, Rows
from jscale.formats.huggingface.keys import Keys
from jscale.models.gates import Balance, Limit, TopK
from jscale.models.sparse import Experts

FEED = "feed/routed"


def rows(layer: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Rows:
    """The rows of a block whose router and experts are in `layer`; `names` are those of an expert's
    gate, up and down matrices."""
    experts = {
        f"{FEED}/expert/{ours}/kernel": (f"{layer}.experts.{{expert}}.{theirs}.weight", MATRIX)
        for ours, theirs in zip(("gate", "up", "down"), names, strict=True)
    }
    return {**BLOCK, f"{FEED}/router/kernel": (f"{layer}.gate.weight", "e d -> d e"), **experts}


def routed(keys: Keys, usual: float = 0.001) -> dict[str, Any]:
    """How many experts there are, and the weight of their balance, `usual` where it is not told."""
    keys.take("output_router_logits", False)  # whether theirs reports; our loss has the penalty
    count = keys.take("num_local_experts", None)  # two names of one number
    count = keys.take("num_experts") if count is None else keys.must("num_experts", count)
    return dict(count=count, balance=Balance(float(keys.take("router_aux_loss_coef", usual))))


def told_of(c: Any, can: Experts, count: str = "num_local_experts") -> dict[str, Any]:
    """What a config.json says of the experts of a config, if a release can have them; `count` is
    what their number is called.

    Raises:
        ConfigError: they are others than a release of this architecture `can` have.
    """
    found = c.experts
    for name in ("choice", "hidden", "shared", "weighs", "biases", "clamp", "latent"):
        if getattr(found, name) != getattr(can, name):
            raise ConfigError(
                f"a {type(c).__name__} of transformers has experts with"
                f" {name}={getattr(can, name)!r}, and this one {name}={getattr(found, name)!r}:"
                " it cannot be exported"
            )
    return {
        count: found.count,
        "num_experts_per_tok": found.choice.choices,
        "router_aux_loss_coef": found.balance.weight,
        "output_router_logits": False,
    }


def topk(c: Any) -> TopK:
    """How the experts of a network are chosen, where releases can say it.

    Raises:
        ConfigError: they cannot.
    """
    choice = c.experts.choice
    if not isinstance(choice, TopK):
        raise ConfigError(
            f"a {type(c).__name__} of transformers chooses experts as TopK(…) does, not by"
            f" {choice}: it cannot be exported"
        )
    return choice


def limit_of(choice: TopK) -> Limit | None:
    """To which groups of experts a choice keeps a token.

    Raises:
        ConfigError: to such as no release can say.
    """
    if isinstance(choice.limit, Limit | None):
        return choice.limit
    raise ConfigError(f"no release has experts chosen by limit={choice.limit}: set a Limit or None")
