"""Runs in processes of their own: killed and continued, and on eight devices."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run
from devices import flags


def process(out, *fields, devices=1):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags(devices),
    }
    program = Path(tiny_run.__file__)
    return subprocess.run(
        [sys.executable, str(program), str(out), *fields],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    done = process(path)
    assert done.returncode == 0, done.stderr
    return tiny_run.final(path)


@pytest.mark.parametrize(
    ("kill", "complete"), [("kill_at=6", ["4"]), ("kill_in=8", ["4"])]
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, whole, kill, complete):
    """Between two checkpoints, and inside one."""
    path = tmp_path / "run"
    assert process(path, kill).returncode == -signal.SIGKILL
    entries = sorted(p.name for p in (path / "checkpoints").iterdir())
    assert [name for name in entries if name.isdigit()] == complete
    assert any("tmp" in name for name in entries) == kill.startswith("kill_in")
    done = process(path)
    assert done.returncode == 0, done.stderr
    tiny_run.assert_same(tiny_run.final(path), whole)


def test_eight_devices_agree_with_one(tmp_path, whole):
    path = tmp_path / "run"
    done = process(path, devices=8)
    assert done.returncode == 0, done.stderr
    state = tiny_run.final(path)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=2e-3, atol=2e-4)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    failed = process(tmp_path / "run", "batch_size=12", devices=8)
    assert failed.returncode == 2
    assert "batch_size=12 must be a multiple of the 8 devices; 8" in failed.stderr
    assert not (tmp_path / "run").exists()
