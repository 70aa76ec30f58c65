"""Programs on several devices: a process of their own, with a CPU that plays them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Of every program, which finds the modules of the tests.
START = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import mlir_contexts
mlir_contexts.share()
"""


def flags(devices: int) -> str:
    """`XLA_FLAGS` of a process whose CPU plays so many devices."""
    own = os.environ.get("XLA_FLAGS", "")
    return f"{own} --xla_force_host_platform_device_count={devices}"


def run(program: str, devices: int) -> Any:
    """What the program prints in its last line, as JSON, on so many devices."""
    result = subprocess.run(
        [sys.executable, "-c", START + program],
        env=os.environ | {"XLA_FLAGS": flags(devices), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def one_and_four(program: str) -> Any:
    """What the program finds on one device, and on four: `found`, as JSON.

    The program reads `DEVICES`. One process runs it twice: JAX is imported once.
    """
    twice = f"""
import json, jax
results = []
for count in (1, 4):
    names = {{"DEVICES": jax.devices()[:count]}}
    exec({program!r}, names)
    results.append(names["found"])
print(json.dumps(results))
"""
    return run(twice, 4)
