"""JAX's cache of compiled programs on disk, which the commands use by default."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def folder() -> Path:
    """Returns the default folder, under `XDG_CACHE_HOME` or `~/.cache`.

    Its name depends on the features of the processor: a program that was compiled for
    another one may not run.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    features = platform.machine() + platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        found = (x for x in lines if x.startswith(("flags", "Features")))
        features += next(found, "")
    digest = hashlib.sha256(features.encode()).hexdigest()[:12]
    return Path(base, "zosam_jax", f"programs-{digest}")


def use() -> None:
    """Keeps programs that take more than a second to compile in `folder()`.

    JAX's own settings rule: with `JAX_COMPILATION_CACHE_DIR` it is that folder, and
    with `JAX_ENABLE_COMPILATION_CACHE=false` there is none. JAX goes on with a warning
    where the folder cannot be written.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder()))
