"""A share of the hostile files. `python tests/faults/hostile_files.py` opens all."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("hostile_files.py")


def test_a_share_of_the_hostile_files_ends_in_clean_errors_or_right_pixels():
    # In a process without JAX's threads, which starts one for each file.
    command = [sys.executable, str(PROGRAM), "--quick", "--every", "5"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 silent acceptance  0 traceback" in found.stdout.splitlines()[-1]
