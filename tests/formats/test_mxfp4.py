"""Four-bit weights of a release: unpacked to the numbers that they stand for, box by box."""

import json

import numpy as np
import pytest
from formats.drawn import drawn

from jscale.errors import CheckpointError
from jscale.formats.files import Files, write_files
from jscale.formats.huggingface import files, table
from jscale.formats.mxfp4 import Unpacked, unpack
from jscale.mesh import MeshShape
from jscale.models import GptOss
from jscale.models.feed import Clamp
from jscale.models.gates import TopK
from jscale.models.sparse import Experts
from jscale.pretrained import from_pretrained

DRAW = np.random.default_rng(0)
CONFIG = GptOss(
    vocab=32,
    dim=64,
    layers=2,
    heads=4,
    kv_heads=2,
    hidden=32,
    experts=Experts(2, TopK(1, "softmax_of_chosen"), biases=True, clamp=Clamp()),
)


def packed(shape):
    """Random blocks and scales of an array [E, C, R]."""
    experts, columns, rows = shape
    blocks = DRAW.integers(0, 256, (experts, rows, columns // 32, 16), dtype=np.uint8)
    return blocks, DRAW.integers(120, 130, blocks.shape[:3], dtype=np.uint8)


def test_numbers_are_those_of_the_standard():
    blocks, scales = packed((2, 64, 3))
    out = unpack(blocks, scales)
    for e, r, c in np.ndindex(2, 3, 64):
        byte = int(blocks[e, r, c // 32, c % 32 // 2])
        bits = byte >> 4 if c % 2 else byte & 15
        sign, exponent, mantissa = bits >> 3, bits >> 1 & 3, bits & 1
        size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
        wanted = (-1) ** sign * size * 2.0 ** (int(scales[e, r, c // 32]) - 127)
        assert out[e, c, r] == wanted


@pytest.fixture
def release(tmp_path):
    """A release whose experts are packed, and the numbers that they stand for."""
    arrays = table(CONFIG).write(drawn(CONFIG))
    plain = dict(arrays)
    for name in [n for n in arrays if n.endswith("_proj")]:
        blocks, scales = packed(arrays.pop(name).shape)
        arrays |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = unpack(blocks, scales)
    write_files(arrays, tmp_path)
    said = json.loads(files(CONFIG, {})["config.json"])
    said["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    return tmp_path, plain


@pytest.mark.parametrize("mesh", [MeshShape(), MeshShape(fsdp=2, expert=2, tensor=2)], ids=str)
def test_a_packed_release_is_read_as_what_it_stands_for(release, mesh):
    folder, plain = release
    ours = from_pretrained(folder, mesh)
    for name, array in table(ours.model.config).write(ours.params).items():
        np.testing.assert_array_equal(array, plain[name])


def test_boxes_are_parts_of_the_whole(release):
    folder, plain = release
    name = "model.layers.0.mlp.experts.gate_up_proj"
    with Files(folder) as given:
        some = Unpacked(given)
        assert some.shape(name) == plain[name].shape and name in some
        assert f"{name}_blocks" not in some and len(some) == len(plain)
        box = (slice(1, 2), slice(30, 35), slice(2, 7))
        np.testing.assert_array_equal(some.part(name, box), plain[name][box])
        np.testing.assert_array_equal(some.part(name, ()), plain[name])


def test_blocks_that_do_not_fit_their_scales_are_named(tmp_path):
    blocks, scales = packed((1, 32, 2))
    write_files({"w_blocks": blocks, "w_scales": scales[:, :1]}, tmp_path)
    with Files(tmp_path) as given, pytest.raises(CheckpointError, match=r"w_blocks .* must be"):
        Unpacked(given)
