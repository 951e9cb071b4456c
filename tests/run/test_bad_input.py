"""What cannot work ends in one sentence that says what, where and what would be right."""

from collections.abc import Callable
from pathlib import Path

import pytest
from run.tiny import call as child
from run.tiny import contents, write_recipe

from jscale.launch.cli import main

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in a folder: its status, and its one complaint."""

    def run(folder: Path, *words: object) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        status = main([str(word) for word in words])
        err = capsys.readouterr().err
        assert err.startswith("jscale: error: ") and err.count("\n") == 1, err
        return status, err.removeprefix("jscale: error: ").rstrip()

    return run


RECIPES = {
    "source=TextFiles(('missing.txt',))": (65, "the file 'missing.txt' does not exist"),
    "source=TextFiles(('*.csv',))": (65, "no file matches '*.csv'"),
    "source=Texts(('', ' '))": (65, "the corpus has no documents (2 were empty)"),
    "source=Texts(('a',))": (65, "Texts has just one distinct document, so none can be held out"),
    "source=JsonLines(('bad.jsonl',))": (65, "bad.jsonl:2"),
    "source=TextFiles(('latin.txt',))": (65, "latin.txt:2: invalid UTF-8 (byte 0xe9)"),
    "tokenizer=TokenizerFile('bad.jsonl')": (65, "bad.jsonl is not a tokenizer.json"),
    "tokenizer=TokenizerFile('none.json')": (65, "cannot read none.json: No such file"),
    "model=replace(MODEL, vocab=100)": (64, "make model.vocab at least 259"),
    "model=replace(MODEL, heads=3)": (64, "heads=3"),
    "mesh=MeshShape(fsdp=16), batch=16": (64, "needs 16 devices and there are 8"),
    "mesh=MeshShape(fsdp=8), batch=12": (64, "12 rows"),
    "mesh=MeshShape(context=8), length=12": (64, "data.length=12 does not divide"),
    "mesh=MeshShape(tensor=8)": (64, "does not divide over tensor=8"),
    "accumulate=3": (64, "data.batch=8 must be a multiple of accumulate=3"),
    "steps=0": (64, "steps must be at least 1, not 0"),
    "steps=2": (64, "warmup must be below steps"),
    "name='a/b'": (64, "name='a/b' cannot be the name of a folder"),
}


@pytest.mark.parametrize("changes", RECIPES)
def test_a_recipe_that_cannot_be_trained(call: Call, tmp_path: Path, changes: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": "bad\n{"text": "good"}\n')
    (tmp_path / "latin.txt").write_bytes(b"good\ncaf\xe9\n")
    file = write_recipe(tmp_path, f"samples=None, {changes}")
    status, said = RECIPES[changes]
    found, err = call(tmp_path, "train", file)
    assert (found, said in err) == (status, True), err
    assert not (tmp_path / "runs").exists()


WORDS = {
    "model.layer=3": "did you mean 'model.layers'?",
    "steps=many": "steps must be int",
    "model.dim=1.5": "model.dim must be int",
    "optimizer=AdamX": "AdamX",
    "steps": "write field=value",
    "data.batch=0": "batch=0 must be 1 or more",
    "checkpoints.every=0": "checkpoints.every is 0; it must be above 0",
    "--devices=some": "invalid int value: 'some'",
    "--devices=0": "--devices takes a number from 1 to 1024, not 0",
    "--run=corpus.txt": "corpus.txt cannot be written",
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_does_not_fit(call: Call, tmp_path: Path, word: str) -> None:
    file = write_recipe(tmp_path)
    (tmp_path / "corpus.txt").write_text("text")
    before = contents(tmp_path)
    status, err = call(tmp_path, "train", file, word)
    assert status == (66 if word.startswith("--run") else 64) and WORDS[word] in err
    assert {n: b for n, b in contents(tmp_path).items() if "__pycache__" not in n} == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def recipe(:\n", "my.py:1"),
        ("def recipe():\n    return 1 / 0\n", "my.py:2: ZeroDivisionError"),
        ("def recipe():\n    return 1\n", "not a Recipe"),
        ("def recip():\n    return 1\n", "has no function recipe(); did you mean 'recip'?"),
        ("import jscale.modles\n", "my.py:1: ModuleNotFoundError"),
    ],
)
def test_a_file_that_is_no_recipe(call: Call, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "my.py").write_text(text)
    status, err = call(tmp_path, "train", "my.py")
    assert status == 64 and said in err


def test_a_recipe_that_is_not_there(call: Call, tmp_path: Path) -> None:
    status, err = call(tmp_path, "train", "quickstrat")
    assert status == 64 and "did you mean 'quickstart'?" in err
    status, err = call(tmp_path, "train", "my.py")
    assert status == 64 and err.startswith("there is no file my.py")


RUNS = {
    "generate nowhere --prompt a": (66, "nowhere is not the folder of a run"),
    "generate cache --prompt a": (66, "cache is not the folder of a run: it has no recipe.json"),
    "generate run": (64, "--prompt"),
    "generate run --prompt a --step 7": (66, "has no step 7; the steps there are: 5, 10"),
    "generate run --prompt a --length 0": (64, "a length of at least 1 token, not 0"),
    "generate run --prompt a --temperature -1": (64, "temperature must be 0 or a positive number"),
    "generate run --prompt a --temperature nan": (64, "temperature must be 0 or a positive number"),
    "generate run --prompt a --top 0": (64, "top must keep at least 1 token, not 0"),
    "generate run --prompt \udce9": (64, "is not Unicode text"),
    "generate run --prompt a --seed 99999999999999999999": (64, "must fit into 64 bits"),
    "evaluate nowhere": (66, "nowhere is not the folder of a run"),
    "evaluate run --batches 0": (64, "evaluation needs at least 1 batch, not 0"),
    "evaluate run --step 3": (66, "has no step 3"),
    "evaluate run --no-heldout": (64, "there is nothing to measure: give a --task"),
    "train nowhere": (64, "there is no recipe, file or run folder 'nowhere'"),
    "explain run --devices 0": (64, "there must be at least 1 device, not 0"),
}


@pytest.mark.parametrize("words", RUNS)
def test_what_a_run_cannot_do(call: Call, ended: Path, words: str) -> None:
    status, said = RUNS[words]
    before = contents(ended)
    found, err = call(ended, *words.split())
    assert (found, said in err) == (status, True), err
    assert contents(ended) == before


def test_the_sentence_is_all_that_a_process_says(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, "source=TextFiles(('missing.txt',))")
    status, _, err = child("train", file, "--devices", 2, cwd=tmp_path)
    assert (status, err) == (65, "jscale: error: the file 'missing.txt' does not exist\n")
