"""The notebook runs from top to bottom, says what its stored outputs say, and behaves in Jupyter.

`python tests/docs/test_notebook.py` runs it and stores its outputs anew.
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from jscale.mesh.compat import setting

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
FREE = "free"  # the tag of a cell whose text differs from machine to machine
NUMBERS = re.compile(r"\d[\d.,]*( [KMGT]?i?B)?")
PICTURES = ("image/svg+xml", "text/html")  # what is kept of an output, the first that there is
LIMIT = 2_000_000  # bytes of the notebook


def execute(notebook: Any, folder: Path) -> Any:
    """The notebook with its outputs, run in a folder by a kernel of this Python.

    Raises:
        CellExecutionError: a cell failed that is not tagged `raises-exception`.
    """
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where)
    return client.execute(env=environment(folder))


def environment(folder: Path) -> dict[str, str]:
    """Of the kernel: a home of its own, no devices set up, and the programs that tests compiled."""
    mine = {
        "HOME": str(folder),
        "IPYTHONDIR": str(folder / ".ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    cache = setting("jax_compilation_cache_dir")
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}
    return {**{k: v for k, v in os.environ.items() if k != "NPROC"}, **kept, **mine}


def clean(notebook: Any) -> Any:
    """The notebook as it is stored: one picture of each output, no times, no names of machines."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).clear()
            output.pop("transient", None)
            data = output.get("data", {})
            for kind in [k for k in PICTURES if k in data][1:]:
                del data[kind]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def said(cell: Any) -> str:
    """The text that a code cell printed, or the plain text of what it showed."""
    parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return "".join(parts).strip()


def comparable(text: str) -> str:
    """A text without what may differ: the numbers of collectives, which are the compiler's."""
    counted = "sent per device" in text or text.startswith("all-gathers in a step")
    masked = NUMBERS.sub("#", text) if counted else text
    return " ".join(masked.split())


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def ran(stored: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, run now."""
    fresh = nbformat.from_dict(stored)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    return clean(execute(fresh, tmp_path_factory.mktemp("notebook")))


def test_it_says_now_what_it_said_when_it_was_stored(stored: Any, ran: Any) -> None:
    pairs = list(zip(code_cells(stored), code_cells(ran), strict=True))
    for was, now in pairs:
        if FREE not in was.metadata.get("tags", ()):
            assert comparable(said(now)) == comparable(said(was)), was.source
    assert sum(1 for was, _ in pairs if said(was)) >= 8


def test_the_model_has_learned_the_song(ran: Any) -> None:
    [line] = [said(c) for c in code_cells(ran) if c.source.startswith('print("7 green"')]
    assert line.startswith("7 green bottles hanging on the wall")


def test_other_rules_take_the_gathers_out_of_the_program(ran: Any) -> None:
    tables = [said(cell) for cell in code_cells(ran) if "sent per device" in said(cell)]
    assert [("all-gather" in table) for table in tables] == [True, False]
    [counts] = [said(c) for c in code_cells(ran) if said(c).startswith("all-gathers in a step")]
    assert re.fullmatch(r"all-gathers in a step: [1-9]\d* before, 0 after", counts)


def test_the_same_pictures_are_drawn(stored: Any, ran: Any) -> None:
    def titles(notebook: Any) -> list[str]:
        shown = [o for cell in code_cells(notebook) for o in cell.outputs]
        pictures = [o.data["image/svg+xml"] for o in shown if "image/svg+xml" in o.get("data", {})]
        assert all(picture.startswith("<svg") for picture in pictures)
        return [picture.partition("<title>")[2].partition("</title>")[0] for picture in pictures]

    was, now = titles(stored), titles(ran)
    assert was == now and len(was) == 4 and was[:2] == ["mesh fsdp=4 tensor=2", "loss"]


def test_it_is_stored_clean(stored: Any) -> None:
    nbformat.validate(stored)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < LIMIT and "/tmp/" not in text and "/home/" not in text
    assert [cell.execution_count for cell in code_cells(stored)] == list(
        range(1, len(code_cells(stored)) + 1)
    )
    streams = {o.name for cell in code_cells(stored) for o in cell.outputs if "name" in o}
    assert streams <= {"stdout"}
    assert all(o.output_type != "error" for cell in code_cells(stored) for o in cell.outputs)


STOPPED = """import os, signal
import jscale
from jscale.metrics import Progress
from jscale.run.events import Stepped
from jscale.launch.recipes.tiny import recipe

def interrupt(event):
    if isinstance(event, Stepped) and event.step == 3:
        os.kill(os.getpid(), signal.SIGINT)  # what the kernel gets when the user presses the button

tiny = recipe()
with jscale.Trainer(tiny, callbacks=[interrupt], progress=Progress(tiny.steps)) as trainer:
    trainer.fit()
"""
AGAIN = """with jscale.Trainer(tiny, progress=Progress(tiny.steps)) as trainer:
    print(trainer)
    begun = trainer.step
    trainer.fit()
assert 0 < begun < tiny.steps == trainer.step
"""
LATE = "jscale.simulate(8)"


@pytest.fixture(scope="module")
def misused(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells of a notebook whose user interrupts, goes on, and simulates too late."""
    fails = {"tags": ["raises-exception"]}
    cells = [
        new_code_cell(STOPPED, metadata=fails),
        new_code_cell(AGAIN),
        new_code_cell("trainer.state"),
        new_code_cell(LATE, metadata=fails),
    ]
    return execute(new_notebook(cells=cells), tmp_path_factory.mktemp("misused")).cells


def failure(cell: Any) -> Any:
    [error] = [output for output in cell.outputs if output.output_type == "error"]
    return error


def test_an_interrupted_cell_leaves_a_saved_run_that_goes_on(misused: list[Any]) -> None:
    error = failure(misused[0])
    assert error.ename == "Stopped" and "is saved, run it again to go on" in error.evalue
    printed = [o.text for o in misused[1].outputs if o.output_type == "stream"]
    assert printed[0].startswith("<Trainer of 'tiny': step ") and len(printed[0]) < 200


def test_progress_is_one_output_that_is_drawn_anew(misused: list[Any]) -> None:
    shown = [o for o in misused[1].outputs if o.output_type == "display_data"]
    assert len(shown) == 1 and len(misused[1].outputs) == 2
    text = shown[0].data["text/plain"]
    assert "going on from step" in text and "step 100/100" in text
    assert text.count("step 100/100") == 1 and len(text.splitlines()) < 20


def test_a_state_is_shown_in_a_line(misused: list[Any]) -> None:
    assert re.fullmatch(r"<State of \d+ arrays, [\d.]+ MB in all>", said(misused[2]))


def test_devices_simulated_too_late_are_a_clear_error(misused: list[Any]) -> None:
    error = failure(misused[3])
    assert error.ename == "ConfigError"
    assert "simulate(8) came too late" in error.evalue and "call it first" in error.evalue


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = clean(execute(nbformat.read(NOTEBOOK, as_version=4), Path(folder)))
    nbformat.write(made, NOTEBOOK)
    sys.stdout.write(f"wrote {NOTEBOOK}\n")
