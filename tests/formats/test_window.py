"""Parts of arrays, read through a pattern: what is read and turned is the part of the whole."""

import numpy as np
import pytest
from einops import rearrange

from jscale.formats.window import shape_of, window

PATTERNS = [
    ("(n h) d -> d n h", (12, 5), {"n": 3}),
    ("(n h) d -> d n h", (12, 5), {"h": 3}),
    ("d (n h) -> n h d", (5, 12), {"n": 3}),
    ("o i -> i o", (4, 6), {}),
    ("(n h) -> n h", (12,), {"n": 4}),
    ("(n a h) d -> a d n h", (24, 5), {"n": 3, "a": 2}),
    ("(n i two) d -> d n (two i)", (12, 5), {"n": 3, "two": 2}),
    ("d c h w -> (h w c) d", (5, 2, 3, 4), {"c": 2, "h": 3, "w": 4}),
    ("1 1 d -> d", (1, 1, 7), {}),
    (None, (4, 6), {}),
]


@pytest.mark.parametrize("pattern, shape, sizes", PATTERNS)
def test_a_part_is_that_of_the_whole(pattern, shape, sizes):
    draw = np.random.default_rng(0)
    theirs = draw.standard_normal(shape)
    ours = theirs if pattern is None else rearrange(theirs, pattern, **sizes)
    assert shape_of(pattern, shape, sizes) == ours.shape
    for _ in range(50):
        part = tuple(slice(*sorted(draw.choice(s + 1, 2, replace=False))) for s in ours.shape)
        seen = window(pattern, ours.shape, part, sizes)
        np.testing.assert_array_equal(seen.turned(theirs[seen.box], pattern), ours[part])


def test_no_more_is_read_than_must_be():
    heads = window("(n h) d -> d n h", (8, 4, 2), (slice(None), slice(1, 3), slice(None)), {})
    assert heads.box == (slice(2, 6), slice(0, 8))
    rows = window("o i -> i o", (8, 6), (slice(2, 4), slice(3, 6)), {})
    assert rows.box == (slice(3, 6), slice(2, 4))
