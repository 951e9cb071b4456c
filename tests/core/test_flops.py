"""The arithmetic of a model, against the formulas by hand."""

import pytest

from jscale.flops import attention_span, flops_per_token, train_flops_per_token, width
from jscale.models import DeepSeekV2, EncoderDecoder, Llama, Model, TransformerDecoder
from jscale.models.feed import MLP
from jscale.models.latent import Latent
from jscale.models.sparse import Experts


def by_hand(c: Llama, length: int) -> float:
    attend = 2 * c.dim * c.heads * c.head_size + 2 * c.dim * c.kv_heads * c.head_size
    feed = 3 * c.dim * c.hidden
    weights = c.layers * (attend + feed) + c.dim * c.vocab
    return 6 * weights + 12 * c.layers * c.heads * c.head_size * length / 2


def test_flops_are_those_of_the_formula_tied_or_not():
    for tied in (False, True):
        config = Llama(1000, 64, 3, 4, 2, 128, head=32, tied=tied)
        assert flops_per_token(Model(config), 100) == by_hand(config, 100)


LATENT = Latent(kv=16, q=24, plain=8, rotated=4, value=6)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (Llama(1000, 64, 3, 4, 2, 128, head=32), 3 * 4 * 32),
        (TransformerDecoder(100, 64, 2, 4, MLP(128)), 2 * 64),
        (EncoderDecoder(100, 64, (2, 3), 4, MLP(128)), (2 + 3 + 3) * 64),
        (DeepSeekV2(64, 32, 2, 4, 48, experts=Experts(4), latent=LATENT), 2 * 4 * (12 + 6) // 2),
    ],
    ids=lambda x: type(x).__name__,
)
def test_attention_is_as_wide_as_its_queries_and_values(config, wanted):
    assert width(Model(config)) == wanted


def test_a_model_of_eight_billion():
    config = Llama(128_256, 4096, 32, 32, 8, 14_336)
    assert 48e9 < flops_per_token(Model(config), 8192) < 58e9


def test_flops_of_gpt3_are_those_of_its_paper():
    # 2005.14165, table D.1: 3.14e23 FLOPs for 300e9 tokens, attention not counted.
    assert 300e9 * train_flops_per_token(174_600_000_000, 0, 2048, 0) == pytest.approx(
        3.14e23, rel=2e-3
    )


def test_attention_is_half_of_what_palm_counts():
    # PaLM, appendix B: 6 N + 12 L H Q T a token with every key; causal is half of the keys.
    layers, heads, head, length = 118, 48, 256, 2048
    palm = 12 * layers * heads * head * length
    assert train_flops_per_token(0, layers, length, heads * head) == palm / 2


@pytest.mark.parametrize(("length", "window"), [(64, 1), (64, 7), (64, 63), (64, 64), (64, 100)])
def test_span_of_a_window_is_the_counted_one(length, window):
    counted = sum(min(i, window) for i in range(length)) / length  # keys before the query
    correction = 0.5 * (1 - max(0, length - window) / length)  # half of itself, as in length / 2
    assert attention_span(length, window) == pytest.approx(counted + correction)
    assert attention_span(length) == pytest.approx(sum(range(length)) / length + 0.5)
