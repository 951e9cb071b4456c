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


def test_a_flipped_bit_anywhere_is_harmless_or_found(run, subtests):
    for path in sorted(p for p in (run / "2").rglob("*") if p.is_file()):
        whole = path.read_bytes()
        with subtests.test(file=str(path.relative_to(run))):
            flip(path, len(whole) // 2)
            bad = damage(run, 2)
            if not bad:
                restored = restore(run, shapes_of(make_state()))
                assert restored.step == 2
                assert_same(restored.state, make_state(seed=2))
            if path.name == "note.json" or path == data_files(run / "2")[0]:
                assert bad
        path.write_bytes(whole)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_flipped_bit_of_the_data_passes_as_sound(run, place, bit):
    path = data_files(run / "2")[0]
    whole = path.read_bytes()
    try:
        flip(path, int(place * len(whole)), bit)
        if not damage(run, 2):  # between the arrays
            assert_same(restore(run, shapes_of(make_state()), step=2).state, make_state(seed=2))
    finally:
        path.write_bytes(whole)


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
    "metadata deleted": (lambda s: (s / "state" / "_METADATA").unlink(), ""),
    "metadata junk": (lambda s: (s / "state" / "_METADATA").write_text("{junk"), ""),
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
