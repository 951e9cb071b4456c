"""Small corpora that several tests of the data room share."""

import random

import pytest

from jscale.data.files import Texts


@pytest.fixture(scope="session")
def words() -> Texts:
    """60 documents of 1 to 400 letters, with an empty one and a pair of copies."""
    draw = random.Random(7)
    texts = ["".join(draw.choices("abcd éß\n", k=draw.randint(1, 400))) + "." for _ in range(57)]
    return Texts((*texts, "", texts[3], "x"))
