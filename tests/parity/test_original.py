"""The patched original runs, its experts too."""

import pytest
from parity import original


@pytest.mark.parametrize("experts", [0, 4])
def test_the_original_runs(experts):
    torch = original.torch()
    config = original.torchscale("architecture.config").EncoderConfig(
        vocab_size=101, encoder_embed_dim=64, encoder_attention_heads=4, encoder_ffn_embed_dim=128,
        encoder_layers=2, drop_path_rate=0.1, moe_freq=2 if experts else 0,
        moe_expert_count=experts,
    )  # fmt: skip
    if experts:
        original.process_group()
    encoder = original.torchscale("architecture.encoder").Encoder(
        config, embed_tokens=torch.nn.Embedding(101, 64)
    )
    out = encoder(torch.randint(0, 101, (2, 12)))["encoder_out"]
    out.square().mean().backward()
    assert out.shape == (2, 12, 101) and bool(out.isfinite().all())
    grads = original.gradients(encoder)
    assert set(grads) <= set(original.weights(encoder)) and any(g.any() for g in grads.values())
