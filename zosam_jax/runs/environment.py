"""The environment of a run: package versions, source commit and machine."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from zosam_jax._version import __version__
from zosam_jax.runs.files import JSON

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and the packages it computes with.

    >>> list(versions())[:3]
    ['python', 'zosam-jax', 'jax']
    """
    own = {"python": platform.python_version(), "zosam-jax": __version__}
    return own | {name: importlib.metadata.version(name) for name in _PACKAGES}


def machine() -> JSON:
    """Returns the operating system and the number of CPUs of this machine.

    >>> list(machine())
    ['platform', 'cpus']
    """
    return {"platform": platform.platform(), "cpus": os.cpu_count()}


def commit() -> str | None:
    """Returns the Git commit of this package's source, or None if it has none.

    The commit of a modified source ends in "-dirty".
    """
    source = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", "-C", str(source.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    # The package may be installed inside the repository of another project, whose
    # commit says nothing about this package.
    if git("ls-files", "--error-unmatch", source.name) is None:
        return None
    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    return f"{head}-dirty" if head and changes else head
