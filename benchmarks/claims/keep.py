"""What measurements of claims have in common: where figures are kept, what they ran on, a fit."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jscale.pictures.chart import Chart
from jscale.run.environment import versions

RESULTS = Path(__file__).parents[1] / "results" / "claims"
BEGAN = time.perf_counter()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"platform": jax.default_backend(), "cores": os.cpu_count(), "versions": versions()}


def keep(name: str, found: Mapping[str, Any], charts: Mapping[str, Chart]) -> None:
    """Write figures as JSON and charts as SVG under benchmarks/results/claims."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    for picture, chart in charts.items():
        chart.picture().save(RESULTS / f"{picture}.svg")


def tell(words: str) -> None:
    """Print progress, after the seconds since the program began."""
    print(f"{time.perf_counter() - BEGAN:6.0f} s  {words}", flush=True)


def exponent(lengths: Sequence[int], costs: Sequence[float]) -> float:
    """p of cost ~ length^p, fitted on a logarithmic scale.

    >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    x = np.log(np.asarray(lengths[: len(costs)], float))
    return float(np.polyfit(x, np.log(costs), 1)[0])
