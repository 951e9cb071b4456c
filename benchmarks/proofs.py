"""Which test proves what of which kernel, and a record of those that passed.

    python benchmarks/proofs.py [--fast] [REGEX]    # run the tests that prove something

What passed is kept in benchmarks/results/proofs.json, test by test; docs/kernels.md is written from
it. To add an implementation, add its rows to `PROOFS`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "proofs.json"
TESTS = "tests/pallas_kernels"


class Proof(NamedTuple):
    """Tests that prove something of an implementation.

    `kind` is "run" (as a program of the CPU), "interpreted" (step by step, without its chip) or
    "compiled" (for chips that are not here; the chip is the pattern's group, or `chip`).
    """

    operation: str
    implementation: str
    kind: str
    tests: str  # a pattern of "file::test[parameters]", the folder left out
    chip: str | None = None


PROOFS = (
    Proof("attention", "reference", "run", r"test_attention\.py::test_the_reference_equals_a_loop"),
    Proof("attention", "dense", "run", r"test_attention\.py::test_tiles_of_the_size.*[\[-]dense\b"),
    Proof("attention", "xla", "run", r"test_attention\.py::test_tiles_equal_the_reference"),
    Proof("attention", "xla", "run", r"test_attention\.py::test_tiles_of_the_size.*[\[-]xla\b"),
    Proof(
        *("attention", "tpu", "interpreted"),
        r"test_attention_tpu\.py::test_(the_grid|the_large_grid|masks_scores|float32|bfloat16)",
    ),
    Proof(
        *("attention", "tpu", "compiled"),
        r"test_attention_tpu\.py::test_compiles_for_the_chip\w*\[(?P<chip>\w+)-",
    ),
    Proof(
        *("attention", "triton", "interpreted"),
        r"test_attention_gpu\.py::test_(the_grid|the_large_grid|ugly_shapes|under_transf)",
    ),
    Proof(
        *("attention", "triton", "compiled"),
        r"test_attention_gpu\.py::test_all_compile_for\w*\[\w+-(?P<chip>\w+):1\]",
    ),
    Proof(
        *("attention", "triton", "compiled"),
        *(r"test_attention_gpu\.py::test_it_compiles_for_a_gpu", "h100"),
    ),
    Proof(
        "retention", "reference", "run", r"test_retention\.py::test_the_recurrence_equals_a_loop"
    ),
    *(
        Proof(
            *("attention", name, "interpreted"),
            rf"test_attention_(sinks|together)\.py::test_(it_is|all_of|padding|packed).*\b{name}\]",
        )
        for name in ("tpu", "triton")
    ),
    Proof(
        *("attention", "mosaic_gpu", "interpreted"),
        r"test_attention_mosaic_gpu\.py::test_(all_)?values_and_gradients",
    ),
    Proof(
        *("attention", "mosaic_gpu", "compiled"),
        *(r"test_attention_mosaic_gpu\.py::test_it_compiles_for_a_gpu", "h100"),
    ),
    Proof(
        *("attention", "mosaic_blackwell", "interpreted"),  # by JAX 0.12 and newer
        r"test_attention_blackwell\.py::test_(all_)?values_and_gradients",
    ),
    Proof(
        *("attention", "mosaic_blackwell", "compiled"),
        *(r"test_attention_blackwell\.py::test_it_compiles_for_a_gpu", "b200"),
    ),
    Proof("retention", "xla", "run", r"test_retention\.py::test_chunks_and_the_recurrence_equal"),
    Proof("retention", "tpu", "interpreted", r"test_retention\.py::test_the_kernel_equals"),
    Proof(
        *("retention", "tpu", "compiled"),
        r"test_retention\.py::test_the_kernel_compiles_for_every.*-(?P<chip>\w+)-\d+\]",
    ),
    Proof(
        *("retention", "tpu", "compiled"),
        *(r"test_retention\.py::test_the_kernel_compiles_for_a_chip", "v5p"),
    ),
    Proof("retention", "triton", "interpreted", r"test_retention\.py::test_the_gpu_kernels_equal"),
    Proof(
        *("retention", "triton", "compiled"),
        *(r"test_retention\.py::test_the_gpu_kernels_compile_and", "h100"),
    ),
    Proof(
        *("retention", "triton", "compiled"),
        r"test_retention\.py::test_the_gpu_kernels_compile_for_every\w*\[.*\b(?P<chip>[hb]\d+):",
    ),
    Proof(
        *("dilated_attention", "reference", "run"),
        r"test_dilated_attention\.py::test_against_a_loop\[reference",
    ),
    Proof(
        *("dilated_attention", "xla", "run"),
        r"test_dilated_attention\.py::test_(against_a_loop\[xla|gathered_equals)",
    ),
    Proof(
        *("linear_cross_entropy", "reference", "run"),
        r"test_linear_cross_entropy\.py::test_bfloat16_is_near_float32\[.*reference",
    ),
    Proof(
        *("linear_cross_entropy", "xla", "run"),
        r"test_linear_cross_entropy\.py::test_chunks_equal_the_reference",
    ),
    *(
        Proof(
            *("linear_cross_entropy", name, "interpreted"),
            rf"test_linear_cross_entropy_kernels\.py::test_(values|bfloat16)\w*\[.*\b{name}\]",
        )
        for name in ("tpu", "triton")
    ),
    Proof(
        *("linear_cross_entropy", "tpu", "compiled"),
        r"test_linear_cross_entropy_chips\.py::test_compiles_f\w*\[(?P<chip>v\w+|tpu7x)-",
    ),
    Proof(
        *("linear_cross_entropy", "triton", "compiled"),
        r"test_linear_cross_entropy_chips\.py::test_compiles_f\w*\[(?P<chip>[hb]\d+)-",
    ),
    Proof(
        *("grouped_matmul", "xla", "run"),
        r"test_grouped_matmul\.py::test_(any_groups|many_groups|ugly_groups|bfloat16).*xla",
    ),
    *(
        Proof(
            *("grouped_matmul", name, "interpreted"),
            rf"test_grouped_matmul_kernels\.py::test_(any|many|ugly)_groups.*[\[-]{name}\]",
        )
        for name in ("tpu", "triton")
    ),
    Proof(
        *("grouped_matmul", "tpu", "compiled"),
        r"test_grouped_matmul_chips\.py::test_compiles_where\w*\[(?P<chip>v\w+|tpu7x)-",
    ),
    Proof(
        *("grouped_matmul", "triton", "compiled"),
        r"test_grouped_matmul_chips\.py::test_compiles_where\w*\[(?P<chip>[hb]\d+)-",
    ),
    Proof(
        *("decode_attention", "reference", "run"),
        r"test_decode_attention\.py::test_the_reference_equals_a_loop",
    ),
    Proof(
        *("decode_attention", "xla", "run"),
        r"test_decode_attention\.py::test_(parts_equal_the_reference|quantised_pages_equal)",
    ),
    *(
        Proof(
            *("decode_attention", name, "interpreted"),
            rf"test_decode_attention\w*\.py::test_kernels_(equal_the_reference|on_the_grid)\[{name}",
        )
        for name in ("tpu", "triton")
    ),
    Proof(
        *("decode_attention", "tpu", "compiled"),
        r"test_decode_attention\w*\.py::test_all_compile_for_tpus.*-(?P<chip>\w+)-\d+\]",
    ),
    Proof(
        *("decode_attention", "tpu", "compiled"),
        *(r"test_decode_attention\w*\.py::test_it_compiles_for_a_tpu", "v6e"),
    ),
    Proof(
        *("decode_attention", "triton", "compiled"),
        r"test_decode_attention\w*\.py::test_all_compile_for_gpus.*-(?P<chip>\w+):\d+\]",
    ),
    Proof(
        *("decode_attention", "triton", "compiled"),
        *(r"test_decode_attention\w*\.py::test_it_compiles_for_a_gpu", "h100"),
    ),
)


def proves(test: str) -> list[tuple[Proof, str | None]]:
    """What a test proves, and for which chip."""
    name = test.removeprefix(f"{TESTS}/")
    found = [(proof, re.match(proof.tests, name)) for proof in PROOFS]
    chip = lambda proof, match: proof.chip or match.groupdict().get("chip")
    return [(proof, chip(proof, match)) for proof, match in found if match]


def proven(
    record: Mapping[str, Any], operation: str, implementation: str, kind: str
) -> dict[str | None, list[str]]:
    """The tests that prove it by chip; only of chips of which every recorded test passed."""
    found: dict[str | None, list[str]] = {}
    failed = set()
    for test, outcome in record["tests"].items():
        for proof, chip in proves(test):
            if proof[:3] == (operation, implementation, kind):
                found.setdefault(chip, []).append(test)
                failed |= {chip} if outcome["outcome"] != "passed" else set()
    return {chip: tests for chip, tests in found.items() if chip not in failed}


EVERY = "slow or not slow"


def collected(marks: str = EVERY) -> list[str]:
    """All tests of kernels of such marks."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marks]
    done = subprocess.run([*words, TESTS], cwd=ROOT, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


class Recorder:
    """A plugin of pytest that keeps how each test ended, and its properties, as soon as it has.

    What was skipped stays as it was: another JAX may have run it.
    """

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.stamp = {"jax": version("jax"), "date": time.strftime("%Y-%m-%d", time.gmtime())}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "skipped" and (report.when == "call" or report.outcome != "passed"):
            properties = {name: value for name, value in report.user_properties}
            found = {"outcome": report.outcome, **self.stamp}
            self.tests[report.nodeid] = found | ({"properties": properties} if properties else {})
            keep(self.tests)


def keep(ended: Mapping[str, Any]) -> None:
    """Write how tests ended to the record; the others in it stay as they were."""
    kept = json.loads(RESULT.read_text())["tests"] if RESULT.exists() else {}
    kept = {name: outcome for name, outcome in (kept | dict(ended)).items() if proves(name)}
    RESULT.write_text(json.dumps({"tests": dict(sorted(kept.items()))}, indent=1) + "\n")


def forget(tests: Iterable[str]) -> None:
    """Leave out of the record what is not among these tests."""
    there = set(tests)
    kept = json.loads(RESULT.read_text())["tests"] if RESULT.exists() else {}
    RESULT.write_text(json.dumps({"tests": {n: o for n, o in kept.items() if n in there}}))


def run(tests: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How the tests end, in this process."""
    import pytest

    recorder = Recorder()
    os.chdir(ROOT)
    pytest.main(["-q", "-m", EVERY, *tests], plugins=[recorder])
    return recorder.tests


def main() -> None:
    """Run what proves something and is asked for; keep how it ended."""
    parser = argparse.ArgumentParser(description="Run what proves something of a kernel.")
    parser.add_argument("only", nargs="?", default="", help="a pattern of tests")
    parser.add_argument("--fast", action="store_true", help="leave slow tests out")
    options = parser.parse_args()
    if not options.fast:
        forget(collected())
    marks = "not slow" if options.fast else EVERY
    tests = [t for t in collected(marks) if proves(t) and re.search(options.only, t)]
    print(f"{len(tests)} tests", file=sys.stderr)
    ended = run(tests)
    keep(ended)
    failed = [name for name, outcome in ended.items() if outcome["outcome"] != "passed"]
    print("\n".join(["not passed:", *failed]) if failed else "all passed")


if __name__ == "__main__":
    main()
