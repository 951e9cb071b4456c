"""Images with captions: what is drawn, who is held out, and batches that are functions of k."""

import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest

from jscale.config.annotations import check
from jscale.config.data import from_data, to_data
from jscale.data import Bytes
from jscale.data.captioned import CaptionedImages
from jscale.data.dataset import Data, Dataset
from jscale.data.images import COLOURS, Shapes
from jscale.errors import ConfigError, DataError

DATA = CaptionedImages(Shapes(18, each=3), Bytes(), length=48, batch=8)
CAPTIONS = DATA.source.captions


@dataclass(frozen=True)
class Blank:
    """Images of nothing."""

    captions: tuple[str, ...]
    each: int = 1
    shape: tuple[int, int, int] = (2, 2, 1)

    def draw(self, caption: int, number: int) -> np.ndarray:
        return np.zeros(self.shape, np.float32)

    def digest(self) -> str:
        return f"{self}"


def test_captions_are_all_kinds_once():
    assert len(set(CAPTIONS)) == len(CAPTIONS) == 432
    assert CAPTIONS[0] == "a small red square at the top left"
    assert CAPTIONS[-1] == "a large white cross at the bottom right"


@pytest.mark.parametrize("image", [18, 25])
def test_an_image_shows_what_its_caption_says(image):
    source = Shapes(image, noise=0.0)
    areas = {}
    for number, caption in enumerate(source.captions):
        _, size, colour, shape, _, _, row, column = caption.split()
        drawn = source.draw(number, 0)
        assert drawn.shape == source.shape and drawn.dtype == np.float32
        shown = np.abs(drawn - np.float32(-0.7)).max(-1) > 0
        np.testing.assert_allclose(drawn[shown], np.tile(COLOURS[colour], (shown.sum(), 1)), 1e-6)
        y, x = (a.mean() * 3 / image for a in np.nonzero(shown))
        assert int(y) == ("top", "middle", "bottom").index(row), caption
        assert int(x) == ("left", "centre", "right").index(column), caption
        areas[size, colour, shape, row, column] = shown.sum()
    total = {size: sum(v for k, v in areas.items() if k[0] == size) for size in ("small", "large")}
    assert 0 < 1.5 * total["small"] < total["large"]


def test_images_of_a_caption_are_many_and_each_always_the_same():
    source = Shapes(18)
    np.testing.assert_array_equal(source.draw(5, 1), source.draw(5, 1))
    assert np.abs(source.draw(5, 1) - source.draw(5, 2)).max() > 0.05
    assert Shapes(18).digest() != Shapes(18, noise=0.2).digest()


def test_a_batch_holds_images_with_their_captions(tmp_path):
    data = replace(DATA, cache=str(tmp_path))
    opened = data.open(0)
    assert isinstance(data, Data) and isinstance(opened, Dataset)
    batch = opened.train.global_batch(3)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (s.shape, s.dtype) for k, s in data.shapes.items()
    }
    for image, inputs, segments in zip(*batch.values(), strict=True):
        count = int(segments.sum())
        assert segments[:count].all() and (inputs[count:] == opened.tokenizer.pad).all()
        number = CAPTIONS.index(opened.tokenizer.decode(inputs[:count]))
        drawn = [data.source.draw(number, n) for n in range(3)]
        assert any(np.array_equal(image, one) for one in drawn)


def test_batches_are_functions_of_their_number():
    one, two = DATA.open(0), DATA.open(0)
    for k in (0, 70, 300):  # beyond an epoch of 145 batches
        whole = one.train.global_batch(k)
        part = pickle.loads(pickle.dumps(two.train)).rows_of(k, 3, 6)
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name][3:6])
    other = DATA.open(1)
    assert other.fingerprint != one.fingerprint == two.fingerprint
    assert (other.train.global_batch(0)["inputs"] != one.train.global_batch(0)["inputs"]).any()


def test_captions_are_held_out_with_all_their_images():
    opened = DATA.open(0)
    assert opened.heldout is not None
    sides = [
        {opened.tokenizer.decode(row) for k in range(n) for row in read(k)["inputs"]}
        for n, read in (
            (opened.train.epoch_batches(), opened.train.evaluation_batch),
            (opened.heldout.epoch_batches(), opened.heldout.evaluation_batch),
        )
    ]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(CAPTIONS)
    assert 25 < len(sides[1]) < 65
    summary = opened.summary()
    assert summary["train"]["rows"] == 3 * len(sides[0])
    assert summary["heldout"]["documents"] == len(sides[1])
    seen = opened.train.tokens / (48 * opened.train.rows)
    assert summary["train"]["padding"] == pytest.approx(1 - seen)
    last = opened.heldout.evaluation_batch(opened.heldout.epoch_batches() - 1)
    left = opened.heldout.rows % 8 or 8
    assert last["segments"][:left].any(1).all() and not last["segments"][left:].any()
    assert replace(DATA, heldout=0.0).open(0).heldout is None


def test_what_does_not_fit_is_said():
    with pytest.raises(DataError, match=r"'a small yellow triangle at the \w+ \w+' has \d+ tokens"):
        replace(DATA, length=20).open(0)
    for change, message in (
        (dict(length=0), "length=0 must be 1 or more"),
        (dict(batch=0), "batch=0 must be 1 or more"),
        (dict(workers=-1), "workers=-1 must be 0 or more"),
        (dict(heldout=1.0), "share from 0 to below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(DATA, **change)
    for source, message in (
        (Blank(()), r"^data.source has no captions: Blank\("),
        (Blank(("a dot",), each=0), "^data.source has no images of its captions: Blank"),
        (Blank(("a dot",)), r"Blank has just one distinct caption.*set heldout=0.0$"),
    ):
        with pytest.raises(DataError, match=message):
            replace(DATA, source=source).open(0)
    for make, message in (
        (lambda: Shapes(17), "at least 18"),
        (lambda: Shapes(each=0), "each=0 must be at least 1"),
        (lambda: Shapes(noise=2.0), "from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_it_is_data():
    check(DATA)
    assert from_data(to_data(DATA)) == DATA
