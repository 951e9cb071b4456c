"""RetNet's claims of cost: the figures that are kept show them, and those of memory hold today."""

import json
import runpy
from pathlib import Path

import pytest

from jscale.models.retnet import Chunkwise, Parallel

FOLDER = Path(__file__).parents[2] / "benchmarks"
KEPT = FOLDER / "results" / "claims"


def test_the_kept_figures_show_the_claims():
    found = json.loads((KEPT / "retnet.json").read_text())
    grows, state = found["exponents"], found["decoding"]["retnet"]
    assert found["lengths"] == [1024, 2048, 4096, 8192, 16384]
    assert len(set(state["bytes"])) == 1
    assert abs(grows["decoding/retnet/seconds"]) < 0.15
    assert grows["decoding/llama/bytes"] > 0.9
    assert grows["rows/chunkwise/bytes"] < 1.1 and grows["rows/chunkwise/seconds"] < 1.2
    assert grows["rows/parallel/bytes"] > 1.8 and grows["rows/parallel/seconds"] > 1.5


def test_the_charts_are_there():
    figures = json.loads((KEPT / "retnet.json").read_text())
    for name in runpy.run_path(str(FOLDER / "claims" / "retnet.py"))["charts"](figures):
        assert "<svg" in (KEPT / f"{name}.svg").read_text()


@pytest.mark.slow
def test_memory_is_flat_in_decoding_linear_in_chunks_and_quadratic_at_once():
    claims = runpy.run_path(str(FOLDER / "claims" / "retnet.py"))
    lengths = (512, 1024, 2048, 4096)
    kept = claims["decoding"](claims["retnet"](Chunkwise()), lengths, 2)["bytes"]
    assert len(set(kept)) == 1
    grows = lambda form: claims["exponent"](lengths, claims["rows"](form, lengths, 0)["bytes"])
    assert grows(Chunkwise()) < 1.1 and grows(Parallel()) > 1.8
