"""Images with classes, and images before their captions, as rows."""

from dataclasses import replace

import numpy as np
import pytest

from jscale.data import Bytes, LabelledImages, Shapes, ShownImages
from jscale.errors import ConfigError, DataError

SOURCE = Shapes(18, each=2)
LABELLED = LabelledImages(SOURCE, Bytes(), length=64, batch=8)
SHOWN = ShownImages(SOURCE, Bytes(), length=64, batch=8, image_token=300, places=9)


def opened(data, tmp_path):
    return replace(data, cache=str(tmp_path)).open(0)


def test_labels_are_the_classes_that_captions_name(tmp_path):
    data = opened(LABELLED, tmp_path)
    rows = data.train.rows_of(0, 0, 8)
    assert {n: (x.shape, str(x.dtype)) for n, x in rows.items()} == {
        "images": ((8, 18, 18, 3), "float32"), "labels": ((8,), "int32"),
    }  # fmt: skip
    part = data.train.parts[0]
    every = part.read(np.arange(len(part)))
    for n, label in enumerate(every["labels"].tolist()):
        caption = SOURCE.captions[part.numbers[n % len(part.numbers)]]
        assert LABELLED.classes[label] in caption.split()
    assert set(every["labels"].tolist()) == {0, 1, 2, 3}
    assert data.train.tokens == len(part)
    other = opened(replace(LABELLED, classes=LABELLED.classes[::-1]), tmp_path)
    assert other.fingerprint != data.fingerprint


def test_captions_come_after_their_image_and_are_predicted(tmp_path):
    data = opened(SHOWN, tmp_path)
    rows, tokenizer = data.train.rows_of(0, 0, 8), data.tokenizer
    assert {n: x.shape for n, x in rows.items()} == {
        n: s.shape for n, s in replace(SHOWN, cache=str(tmp_path)).shapes.items()
    }
    assert rows["inputs"].shape == (8, 73) and (rows["inputs"][:, :9] == 300).all()
    assert (rows["inputs"][:, 9] == tokenizer.bos).all()
    for inputs, targets, weights, segments in zip(
        *(rows[name] for name in ("inputs", "targets", "weights", "segments")), strict=True
    ):
        count = int(weights.sum())
        assert weights[9 : 9 + count].all() and not weights[:9].any()
        assert targets[9 + count - 1] == tokenizer.eos
        assert tokenizer.decode(targets[9 : 8 + count]) in SOURCE.captions
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        assert segments[: 10 + count - 1].all() and not segments[11 + count :].any()


@pytest.mark.parametrize(
    "data, error, message",
    [
        (dict(classes=("square",)), ConfigError, "two classes or more"),
        (dict(classes=("square", "square")), ConfigError, "each once"),
        (dict(classes=("square", "circle")), DataError, "names 0 of the classes square, circle"),
        (dict(classes=("red", "square", "x")), DataError, "names [02] of the classes"),
    ],
)
def test_classes_that_cannot_be_had(tmp_path, data, error, message):
    with pytest.raises(error, match=message):
        opened(replace(LABELLED, **data), tmp_path)


def test_image_tokens_that_cannot_be_had(tmp_path):
    with pytest.raises(ConfigError, match="places of 1 or more"):
        replace(SHOWN, places=0)
    with pytest.raises(DataError, match="has the token 97: data.image_token must be one that no"):
        opened(replace(SHOWN, image_token=97), tmp_path)
