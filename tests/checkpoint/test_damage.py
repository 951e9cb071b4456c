"""Damage of every kind is named, set aside without losing a file, and the step before is used."""

import json
import shutil

import numpy as np
import pytest
from checkpoint.states import assert_same, make_state, shapes_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jscale.checkpoint import Checkpoints
from jscale.checkpoint.restore import restore
from jscale.checkpoint.store import Store
from jscale.checkpoint.verify import damage
from jscale.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Store(folder, Checkpoints()) as store:
        for step in (1, 2):
            store.save(step, make_state(seed=step), {"position": step})
    return folder


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the folder with the whole steps 1 and 2, to be damaged."""
    return shutil.copytree(saved, tmp_path / "run")


def data_files(folder):
    return sorted((p for p in folder.rglob("*/d/*")), key=lambda p: (-p.stat().st_size, p.name))


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def restore_and_check(run, step, reason=""):
    """Restores, checks every bit, and that all files of a damaged step 2 are still there."""
    files = {
        p.relative_to(run / "2"): p.read_bytes() for p in (run / "2").rglob("*") if p.is_file()
    }
    expected = make_state(seed=step)
    with Store(run, Checkpoints()) as store:
        restored = store.restore(shapes_of(expected))
        assert restored.step == step and restored.note == {"position": step}
        assert_same(restored.state, expected)
        assert store.steps() == ([1, 2] if step == 2 else [1])
    if step == 1:
        (aside,) = restored.set_aside
        assert aside.step == 2 and reason in aside.reason
        assert aside.path == run / "damaged" / "2" and not (run / "2").exists()
        kept = {p.relative_to(aside.path): p for p in aside.path.rglob("*") if p.is_file()}
        assert {name: path.read_bytes() for name, path in kept.items()} == files
        assert aside.reason in (run / "damaged" / "2.txt").read_text()


def test_one_flipped_bit_of_an_array_names_it(run):
    largest = data_files(run / "2")[0]
    stored = np.asarray(make_state(seed=2)["params"]["up"])[:16, :64].tobytes()  # one shard
    flip(largest, largest.read_bytes().index(stored) + 5, bit=3)
    assert list(damage(run, 2)) == ["params/up"]
    restore_and_check(run, 1, "'params/up' has fingerprint")


def flip_and_restore(run, path, place, bit):
    """Whatever is flipped, what is restored is right to the last bit; tells which step it is."""
    whole = path.read_bytes()
    flip(path, int(place * len(whole)), bit)
    try:
        restored = restore(run, shapes_of(make_state()))
    finally:
        path.write_bytes(whole)
    assert restored.step in (1, 2) and restored.note == {"position": restored.step}
    assert_same(restored.state, make_state(seed=restored.step))
    return restored.step


def files(step):
    return sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)


@given(file=st.integers(0, 99), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_flipped_bit_anywhere_never_gives_wrong_values(run, file, place, bit):
    chosen = files(run / "2")
    flip_and_restore(run, chosen[file % len(chosen)], place, bit)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_flipped_bit_of_data_or_note_is_found(run, place):
    for path in (data_files(run / "2")[0], run / "2" / "note" / "note.json"):
        assert flip_and_restore(run, path, place, bit=0) == 1


@pytest.mark.slow
def test_a_thousand_flipped_bits_never_give_wrong_values(run):
    draw = np.random.default_rng(0)
    for _ in range(1000):
        path = draw.choice(files(run / "2"))
        flip_and_restore(run, path, draw.random(), int(draw.integers(8)))


def cut_in_half(step):
    path = data_files(step)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def change_note(step, change):
    path = step / "note" / "note.json"
    note = json.loads(path.read_text())
    change(note["body"])
    path.write_text(json.dumps(note))


DAMAGES = {
    "data cut in half": (cut_in_half, ""),
    "data emptied": (lambda s: data_files(s)[0].write_bytes(b""), ""),
    "data deleted": (lambda s: data_files(s)[0].unlink(), ""),
    "arrays deleted": (lambda s: shutil.rmtree(s / "state"), "is missing in state"),
    "manifest deleted": (lambda s: (s / "state" / "manifest.ocdbt").unlink(), ""),
    "folder empty": (empty, "its folder is empty"),
    "no commit marker": (lambda s: (s / "commit_success.txt").unlink(), "is missing in 2"),
    "no note": (lambda s: (s / "note" / "note.json").unlink(), "it has no note"),
    "note cut": (lambda s: (s / "note" / "note.json").write_text('{"body": {'), "not readable"),
    "note not text": (lambda s: (s / "note" / "note.json").write_bytes(b"\xff\x00"), "readable"),
    "note not ours": (lambda s: (s / "note" / "note.json").write_text("[1]"), "not readable"),
    "data position changed": (
        lambda s: change_note(s, lambda body: body["run"].update(position=9)),
        "has changed since",
    ),
    "step renamed": (lambda s: (shutil.rmtree(s), shutil.copytree(s.parent / "1", s)), "of step 1"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_set_aside_and_the_step_before_is_used(run, name):
    harm, reason = DAMAGES[name]
    harm(run / "2")
    restore_and_check(run, 1, reason)


@pytest.mark.parametrize("name", ["_METADATA", "_sharding", "array_metadatas/process_0"])
@pytest.mark.parametrize("content", [None, b"{junk", b""])
def test_whole_arrays_are_not_given_up_for_a_file_beside_them(run, name, content):
    path = run / "2" / "state" / name
    path.unlink() if content is None else path.write_bytes(content)
    restore_and_check(run, 2)


def test_a_reader_of_another_run_moves_nothing(run):
    cut_in_half(run / "2")
    before = sorted(run.rglob("*"))
    restored = restore(run, shapes_of(make_state()))
    assert restored.step == 1 and restored.set_aside[0].path == run / "2"
    assert sorted(run.rglob("*")) == before


def test_the_given_step_is_never_replaced_by_another(run):
    cut_in_half(run / "2")
    with Store(run, Checkpoints()) as store:
        with pytest.raises(CheckpointError, match="step 2 of .* is damaged: .*cannot be read"):
            store.restore(shapes_of(make_state()), step=2)
    assert (run / "2").exists()


def test_no_sound_step_at_all_is_one_sentence_with_every_reason(run):
    empty(run / "1")
    (run / "2" / "note" / "note.json").unlink()
    with Store(run, Checkpoints()) as store:
        with pytest.raises(CheckpointError, match="no step of .* is sound: step 2: .*; step 1: "):
            store.restore(shapes_of(make_state()))
    assert sorted(p.name for p in (run / "damaged").iterdir()) == ["1", "1.txt", "2", "2.txt"]


def test_a_damaged_step_of_the_same_number_makes_way_for_the_new_one(run):
    for _ in range(2):
        empty(run / "2")
        with Store(run, Checkpoints()) as store:
            store.save(2, make_state(seed=5), {"position": 2})
            store.wait()
            assert store.steps() == [1, 2]
    assert (run / "damaged" / "2").is_dir() and (run / "damaged" / "2.2").is_dir()


def test_a_later_format_is_refused_and_not_taken_for_damage(run):
    from jscale.checkpoint.note import _checksum

    path = run / "2" / "note" / "note.json"
    body = json.loads(path.read_text())["body"] | {"format": 99}
    path.write_text(json.dumps({"body": body, "checksum": _checksum(body)}))
    with Store(run, Checkpoints()) as store:
        with pytest.raises(CheckpointError, match="format 99 and this jscale reads format 1"):
            store.restore(shapes_of(make_state()))
    assert (run / "2").exists() and not (run / "damaged").exists()
