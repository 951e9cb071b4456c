"""The figures as a file: one for each kind of device, a case anew in the place of the old one."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jscale.errors import ConfigError
from jscale.launch.bench.ceiling import Ceiling
from jscale.launch.bench.measure import Clock, rounded
from jscale.pallas_kernels.device import Device
from jscale.pallas_kernels.tiles.processor import processor
from jscale.pallas_kernels.tiles.table import file_name
from jscale.run.environment import versions

FOLDER = Path("benchmarks") / "results"
OTHERS = ("torch", "tokamax", "optax")


def path_of(where: Device) -> Path:
    """Where results are kept unless told otherwise, from the current folder."""
    return FOLDER / f"kernels-{file_name(where.kind)}.json"


def machine(where: Device, ceiling: Ceiling, clock: Clock) -> dict[str, Any]:
    """What the figures of a case are worth: device, versions, ceilings, load, date."""
    found = versions()
    for name in OTHERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "platform": where.platform,
        "device": where.kind,
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": found,
        "ceiling": rounded(ceiling._asdict()),
        "clock": clock.kind,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The cases of a file; none where there is no file.

    Raises:
        ConfigError: a file that holds no results.
    """
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no results of jscale bench: {error!r}") from error


def keep(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write cases to a file, others stay as they were.

    Raises:
        ConfigError: what is there holds no results, or the file cannot be written.
    """
    key = lambda case: json.dumps([case["operation"], case["case"]], sort_keys=True)
    cases = {key(case): case for case in [*read(path), *found]}
    text = json.dumps({"cases": [cases[name] for name in sorted(cases)]}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
