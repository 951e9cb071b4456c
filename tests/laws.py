"""What every architecture is put through: a new one joins `DECODERS` and inherits the laws."""

from dataclasses import replace

from jscale.models import (
    YOCO,
    BitNet,
    DeepSeekV3,
    Differential,
    Gemma3,
    GptOss,
    Llama,
    Llama4,
    Mistral,
    Mixtral,
    Qwen3,
    RetNet,
    TransformerDecoder,
)
from jscale.models.feed import GLU, MLP
from jscale.models.gates import Groups, Limit, TopK
from jscale.models.gemma import Sharpness
from jscale.models.gpt_oss import EXPERTS
from jscale.models.latent import Latent
from jscale.models.llama4 import Chunks, Sharper
from jscale.models.moe import MoE
from jscale.models.positions import RelativeBias, Rope, XPos
from jscale.models.residual import DeepNorm
from jscale.models.rope_scaling import LongRoPE
from jscale.models.sparse import Experts, Shared
from jscale.models.transformer import Dilated
from jscale.models.transformer.head import Plain
from jscale.models.windows import Windows

DECODERS = {
    "llama": Llama(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, remat="none"),
    "llama-tied": Llama(
        vocab=64, dim=32, layers=2, heads=4, kv_heads=4, hidden=64, head=16, tied=True
    ),
    "mistral": Mistral(
        vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, window=5, remat="none"
    ),
    "qwen3": Qwen3(
        vocab=64,
        dim=32,
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=64,
        biases=True,
        remat="none",
        scaling=LongRoPE((1.0,) * 4, (1.5, 2.0, 3.0, 4.0), original=4, attention=1.1),
    ),
    "gemma3": Gemma3(
        vocab=64,
        dim=32,
        layers=4,
        heads=4,
        kv_heads=2,
        hidden=64,
        remat="none",
        windows=Windows(5, ("local", "global"), 100.0),
        sharpness=Sharpness(20, 0.7, 2.0),
    ),
    "llama4": Llama4(
        vocab=64,
        dim=32,
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=48,
        remat="none",
        chunks=Chunks(5, ("local", "global"), sharper=Sharper(0.5, 3)),
        feeds=("dense",),
    ),
    # Its experts are Mixtral's below, and its own tests have them too.
    "deepseek": DeepSeekV3(
        vocab=64,
        dim=32,
        layers=2,
        heads=4,
        hidden=48,
        experts=Experts(4),
        latent=Latent(kv=16, q=24, plain=8, rotated=4, value=6),
        dense=2,
        remat="none",
    ),
    "differential": Differential(
        vocab=64, dim=32, layers=2, heads=2, kv_heads=2, hidden=64, remat="none"
    ),
    "bitnet": BitNet(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, remat="none"),
    "yoco": YOCO(
        vocab=64, dim=32, layers=4, heads=4, kv_heads=2, hidden=64, window=5, remat="none"
    ),
    "longnet": TransformerDecoder(
        vocab=64,
        dim=32,
        layers=2,
        heads=4,
        feed=MLP(64),
        remat="none",
        positions=(Rope(),),
        attends=Dilated(((4, 1), (8, 2))),
    ),
    # In evaluation a gate draws nothing and has no bound: else a token would depend on later ones.
    "moe": TransformerDecoder(
        vocab=64,
        dim=32,
        layers=2,
        heads=4,
        feed=MoE(4, MLP(64), groups=Groups(2)),
        remat="none",
        positions=(Rope(),),
    ),
    "mixtral": Mixtral(
        vocab=64,
        dim=32,
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=24,
        remat="none",
        experts=Experts(
            8,
            TopK(3, "sigmoid", scale=2.5, corrected=True, limit=Limit(4, 2)),
            None,
            Shared(16, True),
        ),
    ),
    "gpt-oss": GptOss(
        vocab=64,
        dim=32,
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=24,
        remat="none",
        windows=Windows(5),
        experts=replace(EXPERTS, count=4, choice=TopK(2, "softmax_of_chosen")),
    ),
    "retnet": RetNet(
        vocab=64, dim=32, value=64, heads=4, layers=2, feed=GLU(48, "swish"), remat="none"
    ),
    "transformer": TransformerDecoder(
        vocab=64,
        dim=32,
        layers=4,
        heads=4,
        feed=(MLP(64), GLU(48)),
        residual=DeepNorm(),
        positions=(XPos(blockwise=8), RelativeBias(8, 16)),
        head=Plain(tied=True),
        remat="none",
    ),
}
