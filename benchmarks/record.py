"""The header of every result file: where, with what, and by which command."""

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax

from zosam_jax.train import folder


def environment() -> dict[str, Any]:
    """The machine, the versions, the commit and the command of this process."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": folder.commit(),
        "versions": folder.versions(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
    }


def write(path: Path, results: dict[str, Any]) -> None:
    """Writes the results with their header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), **results}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}")


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]
