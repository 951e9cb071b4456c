"""Safetensors over one file or several, and what is wrong with them."""

import json

import numpy as np
import pytest

from jscale.errors import DataError
from jscale.formats.files import INDEX, ONE, Files, write_files

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # a view: its memory is in another order
    "b/c": np.ones((4,), "bfloat16"),
    "d": np.zeros((0, 3), np.int32),
}


LONG = "x" * 5000  # no file can have such a name


@pytest.mark.parametrize("shard, files", [(1 << 20, 1), (24, 2), (1, 3)])
def test_what_was_written_is_read(tmp_path, shard, files):
    names = write_files(ARRAYS, tmp_path, shard=shard)
    assert len(names) == files and (tmp_path / INDEX).exists() == (files > 1)
    with Files(tmp_path) as found:
        assert set(found) == set(ARRAYS) and len(found) == 3 and "e" not in found
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
            assert found.shape(name) == array.shape
            assert found[name].dtype == array.dtype


def outside(folder):
    (folder.parent / "secret.safetensors").write_bytes((folder / ONE).read_bytes())
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda f: (f / ONE).unlink(), "there is no .*model.safetensors"),
        (lambda f: (f / ONE).write_bytes(b"no"), "cannot be read as safetensors"),
        (lambda f: (f / INDEX).write_text("[1"), "is no index"),
        (lambda f: (f / INDEX).write_text("[]"), "is no index"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": "x"}}'), "names 'x'"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": 5}}'), "is no index"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": null, "b": "x"}}'), "is no index"),
        (lambda f: (f / INDEX).write_text(f'{{"weight_map": {{"a": "{LONG}"}}}}'), "names 'x"),
        (lambda f: (f / INDEX).write_bytes(b"\xff"), "is no index"),
        (outside, "names '../secret.safetensors', which is no file beside it"),
        (
            lambda f: (f / INDEX).write_text(json.dumps({"weight_map": {"a": ONE, "z": ONE}})),
            "(lacks 'z'|holds, against the index, 'b/c')",
        ),
    ],
)
def test_what_is_broken_is_named(tmp_path, harm, message):
    folder = tmp_path / "in"
    folder.mkdir()
    write_files(ARRAYS, folder)
    harm(folder)
    with pytest.raises(DataError, match=message):
        Files(folder)


def test_who_may_read_the_folder_may_read_its_files(tmp_path):
    for rights in (0o755, 0o700):
        folder = tmp_path / f"{rights:o}"
        folder.mkdir()
        folder.chmod(rights)
        write_files(ARRAYS, folder)
        assert (folder / ONE).stat().st_mode & 0o777 == rights & 0o666
