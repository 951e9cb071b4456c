"""The keyed permutation: a bijection for every size and key, the same for ever."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jscale.data.order import permute


@given(size=st.integers(1, 3000), key=st.text(max_size=8))
def test_every_permutation_is_a_bijection(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(size=st.integers(1, 1 << 61), key=st.text(max_size=8), data=st.data())
def test_an_index_alone_goes_where_it_goes_among_others(size, key, data):
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    together = permute(indices, size, key)
    assert ((0 <= together) & (together < size)).all()
    assert together.tolist() == [
        int(permute(indices[i : i + 1], size, key)[0]) for i in range(len(indices))
    ]


def test_the_order_never_changes():
    # Written down once: a change here would change every run that is resumed.
    assert permute(np.arange(10), 10, "0 0 0").tolist() == [3, 2, 7, 0, 5, 8, 6, 4, 1, 9]
    assert permute(np.arange(3), 10**12, "seed").tolist() == [
        746618851659,
        829914430617,
        292396091737,
    ]


def test_keys_and_sizes_give_unrelated_orders():
    orders = {tuple(permute(np.arange(50), 50, f"{seed} 0 0").tolist()) for seed in range(200)}
    assert len(orders) == 200
    same_place = np.mean(
        [permute(np.arange(1000), 1000, str(s)) == np.arange(1000) for s in range(50)]
    )
    assert same_place < 0.003  # 0.001 expected


def test_small_permutations_are_near_uniform():
    # Over keys, each index of 7 lands on each place about equally often.
    counts = np.zeros((7, 7))
    for key in range(2000):
        counts[np.arange(7), permute(np.arange(7), 7, str(key))] += 1
    assert np.abs(counts / 2000 - 1 / 7).max() < 0.04
