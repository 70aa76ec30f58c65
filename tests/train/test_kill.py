"""Runs in processes of their own: killed and continued, and on four devices."""

import json
import os
import signal
import subprocess
import sys

import devices
import jax
import numpy as np
import pytest
import tiny_run

# How, and the checkpoints that are complete then.
KILLED = {
    "between two checkpoints": ("kill_at=6", ["4"]),
    "inside one": ("kill_in=8", ["4"]),
}


def process(*words):
    """The program `tiny_run`."""
    return subprocess.run(
        [sys.executable, tiny_run.__file__, *map(str, words)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole run, and two that were killed and that its process has ended too.

    Each with how its process was killed, and what it left of checkpoints.
    """
    folder = tmp_path_factory.mktemp("runs")
    killed = {}
    for name, (kill, _) in KILLED.items():
        ended = process(folder / name, kill)
        left = sorted(p.name for p in (folder / name / "checkpoints").iterdir())
        killed[name] = ended.returncode, left
    done = process(*(folder / name for name in ("whole", *KILLED)))
    assert done.returncode == 0, done.stderr
    return folder, killed


@pytest.fixture(scope="module")
def whole(runs):
    return tiny_run.final(runs[0] / "whole")


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_ends_with_the_same_bits(runs, whole, name):
    folder, killed = runs
    status, left = killed[name]
    kill, complete = KILLED[name]
    assert status == -signal.SIGKILL
    assert [name for name in left if name.isdigit()] == complete
    assert any("tmp" in name for name in left) == kill.startswith("kill_in")
    record = json.loads((folder / name / "config.json").read_text())
    assert len(record["sessions"]) == 2
    tiny_run.assert_same(tiny_run.final(folder / name), whole)


SEVERAL = """
import json
from pathlib import Path
import tiny_run

folder, refusal = Path(FOLDER), ""
try:
    tiny_run.train(folder / "refused", batch_size=10)
except tiny_run.RunError as error:
    refusal = str(error)
print(json.dumps({"refusal": refusal, "status": tiny_run.train(folder / "run").status}))
"""


@pytest.fixture(scope="module")
def on_four(tmp_path_factory):
    """The folder of a run on four devices, and how it and a refused one have ended."""
    folder = tmp_path_factory.mktemp("four")
    program = SEVERAL.replace("FOLDER", repr(str(folder)))
    return folder, devices.run(program, 4)


def test_four_devices_agree_with_one(on_four, whole):
    folder, found = on_four
    assert found["status"] == "finished"
    state = tiny_run.final(folder / "run")
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=2e-3, atol=2e-4)


def test_a_batch_that_does_not_divide_is_refused(on_four):
    folder, found = on_four
    assert "batch_size=10 must be a multiple of the 4 devices; 8" in found["refusal"]
    assert not (folder / "refused").exists()
