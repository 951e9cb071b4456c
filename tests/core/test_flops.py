"""The arithmetic of a model, against the formulas by hand."""

from jscale.flops import flops_per_token
from jscale.models import Llama, Model


def by_hand(c: Llama, length: int) -> float:
    attend = 2 * c.dim * c.heads * c.head_size + 2 * c.dim * c.kv_heads * c.head_size
    feed = 3 * c.dim * c.hidden
    weights = c.layers * (attend + feed) + c.dim * c.vocab
    return 6 * weights + 12 * c.layers * c.heads * c.head_size * length / 2


def test_flops_are_those_of_the_formula_tied_or_not():
    for tied in (False, True):
        config = Llama(1000, 64, 3, 4, 2, 128, head=32, tied=tied)
        assert flops_per_token(Model(config), 100) == by_hand(config, 100)


def test_a_model_of_eight_billion():
    config = Llama(128_256, 4096, 32, 32, 8, 14_336)
    assert 48e9 < flops_per_token(Model(config), 8192) < 58e9
