"""Compiled programs kept from one run to the next: the second start need not compile."""

import os
from pathlib import Path

import jax

from jscale.errors import ConfigError
from jscale.mesh.compat import setting


def keep_programs(folder: Path | None = None) -> Path:
    """Keep compiled programs in `folder` (by default ~/.cache/jscale/programs) and use them again.

    Where JAX has been told of a folder already, that one stands, unless another is given. A program
    is native code, so the folder must be ours alone.

    Raises:
        ConfigError: the folder belongs to somebody else or others may write into it.
    """
    told = setting("jax_compilation_cache_dir")
    if folder is None and told:
        return Path(told)
    folder = folder or Path.home() / ".cache" / "jscale" / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = folder.stat()
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise ConfigError(
            f"{folder} holds compiled programs and must be yours alone: chmod 700, or remove it"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
