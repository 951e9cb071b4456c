"""What can be measured: each file holds a `SUBJECT`, and is found by its name."""

import importlib
import pkgutil

from jscale.errors import ConfigError, did_you_mean
from jscale.launch.bench.subject import Subject


def names() -> list[str]:
    """The names of all subjects."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def subject(name: str) -> Subject:
    """The subject of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in names():
        raise ConfigError(f"nothing to measure is called {name!r}; {did_you_mean(name, names())}")
    return importlib.import_module(f"{__name__}.{name}").SUBJECT
