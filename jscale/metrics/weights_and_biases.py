"""Weights & Biases, for those who installed it. Not tested against the service."""

import importlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jscale.errors import ConfigError


@dataclass(frozen=True)
class WandB:
    """Send numbers to a Weights & Biases project, under the name of the run's folder."""

    project: str  # at Weights & Biases
    entity: str | None = None  # user or team; None: your default
    mode: str = "online"  # online, or offline

    def __post_init__(self) -> None:
        if self.mode not in ("online", "offline"):
            raise ConfigError(f"WandB.mode is {self.mode!r}; it must be 'online' or 'offline'")

    def open(self, folder: Path, step: int) -> "WandBWriter":
        """Start the run, or continue the one of the same name.

        Raises:
            ConfigError: the package is not installed.
        """
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                'the recipe logs to Weights & Biases, which needs: pip install "jscale[wandb]"'
            ) from error
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            name=folder.name,
            id=_identity(folder),
            dir=str(folder),
            resume="allow",
        )
        return WandBWriter(run)


def _identity(folder: Path) -> str:
    """The service's name of this run, drawn once and kept in the folder for restarts."""
    file = folder / "wandb-id.txt"
    if not file.exists():
        file.write_text(secrets.token_hex(8))
    return file.read_text()


class WandBWriter:
    """Numbers against our own step, since the service refuses to step back after a restart."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers of one step."""
        self._run.log({"step": step, **values})

    def text(self, step: int, name: str, text: str) -> None:
        """Send a text of one step."""
        self._run.log({"step": step, name: text})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
