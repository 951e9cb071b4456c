"""What a run ran on: versions, devices, and the state of the code, written beside its recipe."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "jscale jax jaxlib flax optax orbax-checkpoint tensorstore grain numpy tokenizers libtpu"
    " jax-cuda13-plugin"
).split()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git(folder: Path) -> dict[str, Any] | None:
    """The commit of a working tree and whether it was changed since; None outside of one."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict[str, Any]:
    """Versions, devices, processes, platform, the command with its folder, the git state."""
    devices = jax.devices()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "devices": {"count": len(devices), "kind": devices[0].device_kind},
        "processes": jax.process_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "folder": str(Path.cwd()),
        "git": git(Path.cwd()),
    }
