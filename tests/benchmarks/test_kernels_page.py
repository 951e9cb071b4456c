"""The page on kernels says what the tables, the record of proofs and the results say."""

import ast
import json
import re
import runpy
from pathlib import Path

import pytest

from jscale.pallas_kernels.implementation import Implementation

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
AGAIN = "run python benchmarks/proofs.py and python benchmarks/kernels_page.py"


@pytest.fixture(scope="module")
def page():
    return runpy.run_path(str(FOLDER / "kernels_page.py"))


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((FOLDER / "results" / "proofs.json").read_text())


def test_the_page_is_written_from_what_is_kept(page):
    assert page["PAGE"].read_text() == page["page"](), AGAIN


def test_every_implementation_has_a_proof(page, record):
    assert not page["unproven"](record), AGAIN


def test_without_its_tests_an_implementation_has_no_proof(page, record):
    outcome = {"outcome": "passed"}
    one = "tests/pallas_kernels/test_retention.py::test_the_kernel_equals_the_parallel_form"
    rest = {name: o for name, o in record["tests"].items() if name != one}
    without = {"tests": rest}
    assert "retention by tpu" in page["unproven"](without)
    assert "retention by tpu" not in page["unproven"]({"tests": rest | {one: outcome}})
    failed = {"tests": rest | {one: {"outcome": "failed"}}}
    assert "retention by tpu" in page["unproven"](failed)
    assert "retention by tpu" not in page["unproven"](record)


def test_a_chip_counts_if_all_of_its_tests_passed(page):
    name = (
        "tests/pallas_kernels/test_attention_tpu.py::test_compiles_for_the_chip_where_it_is_chosen"
    )
    ended = {f"{name}[v4-plain]": "passed", f"{name}[v4-large]": "failed"}
    ended |= {f"{name}[v6e-plain]": "passed"}
    record = {"tests": {test: {"outcome": outcome} for test, outcome in ended.items()}}
    found = page["proofs"].proven(record, "attention", "tpu", "compiled")
    assert set(found) == {"v6e"}


def test_what_is_taken_by_name_only_needs_no_proof_and_says_so(page):
    only = Implementation(len, platforms=("gpu",), proven=False)
    assert page["places"]("attention", "new", only) == "gpu; by name only"


def test_recorded_tests_exist(record):
    known: dict[str, set[str]] = {}
    for test in record["tests"]:
        file, function = re.split(r"::|\[", test)[:2]
        if file not in known:
            tree = ast.parse((ROOT / file).read_text())
            known[file] = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        assert function in known[file], f"{test} is no more: {AGAIN}"


@pytest.mark.slow
def test_recorded_tests_are_collected_and_every_pattern_has_one(page, record):
    proofs = page["proofs"]
    there = proofs.collected()
    assert set(record["tests"]) <= set(there), AGAIN
    assert not set(proofs.PROOFS) - {proof for test in there for proof, _ in proofs.proves(test)}


def test_results_name_no_place_on_a_machine():
    for path in (FOLDER / "results").glob("*.json"):
        assert str(ROOT) not in path.read_text() and "/tmp/" not in path.read_text()
