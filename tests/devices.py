"""Programs on several devices: a process of their own, with a CPU that plays them."""

import json
import os
import subprocess
import sys
from typing import Any


def run(program: str, devices: int) -> Any:
    """What the program prints in its last line, as JSON, on so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
