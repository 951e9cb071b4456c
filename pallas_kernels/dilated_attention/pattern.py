"""Which tokens attend to each other, as a value."""

from typing import NamedTuple


class Pattern(NamedTuple):
    """Segments of so many tokens, of each of which head n takes places n mod r, n mod r + r, …

    Sizes need not divide each other, nor the length.
    """

    segment: int
    dilation: int
