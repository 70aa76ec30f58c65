"""Two processes with two devices each train one run, and agree with one that has four."""

import json
import signal

import numpy as np
import pytest
import several_processes as several

from zosam_jax.train.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, and how the processes of each group have ended."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "file").write_text("")
    ended = {
        task: several.group(task, folder, *sizes)
        for task, sizes in (("killed", (2, 2)), ("whole", (2, 2)), ("one", (1, 4)))
    }
    return folder, ended
