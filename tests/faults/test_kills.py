"""What `kills.py` compares, and where it strikes; it makes the kills itself."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import killed
import numpy as np
import orbax.checkpoint as ocp
import pytest
from kill_cases import COMMANDS, cases
from run_differences import differences

LINES = [
    {"step": 4, "split": "test", "loss": 0.5, "seconds": 1.0},
    {"step": 8, "split": "test", "loss": 0.25, "seconds": 2.0},
]


def write(folder, *, lines=LINES, weights=(1.0, -0.0), steps=(8,)):
    """A run folder with what is compared."""
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    (folder / "summary.json").write_text(json.dumps({"loss": 0.25, "seconds": 3.0}))
    (folder / "curves.png").write_bytes(b"")
    for step in steps:
        path = folder / "checkpoints" / str(step)
        path.mkdir(parents=True)
        (path / "_CHECKPOINT_METADATA").write_text("{}")
        state = {"params": np.asarray(weights, np.float32)}
        ocp.PyTreeCheckpointer().save(path / "state", state)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "run")


def test_times_are_no_difference(whole, tmp_path):
    later = [{**line, "seconds": 9.0} for line in LINES]
    assert differences(whole, write(tmp_path / "run", lines=later)) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lines": LINES[:1]}, "metrics.jsonl: line 2"),
        ({"lines": [*LINES, LINES[1]]}, "metrics.jsonl: line 3"),
        ({"lines": [LINES[0], {**LINES[1], "loss": 0.25 + 2**-50}]}, "line 2/loss"),
        # A zero of another sign is equal, and has other bits.
        ({"weights": (1.0, 0.0)}, "checkpoints/8: ['params']"),
        ({"weights": (1.0, -0.0, 0.0)}, "checkpoints/8: ['params']"),
        ({"steps": (8, 12)}, "only in one folder: checkpoints/12"),
    ],
)
def test_every_other_bit_is_one(change, name, whole, tmp_path):
    (found,) = differences(whole, write(tmp_path / "run", **change))
    assert name in found


def test_an_older_checkpoint_is_no_difference(whole, tmp_path):
    assert differences(whole, write(tmp_path / "run", steps=(4, 8))) == []


def test_what_is_left_behind_is_a_difference(whole, tmp_path):
    other = write(tmp_path / "run")
    (other / "summary.json.tmp").touch()
    (found,) = differences(whole, other)
    assert found == "only in one folder: summary.json.tmp"


def test_the_kills_are_many_and_spread():
    every = [(case.command, *kill) for case in cases() for kill in case.kills]
    assert len(every) >= 40
    assert {name for name, *_ in every} == set(COMMANDS)
    for command in ("train", "lottery", "evaluate"):
        signals = {number for name, number, _ in every if name == command}
        assert signals >= {"KILL", "TERM", "HUP", "USR1"}
    moments = {moment.what for _, _, moment in every}
    assert {"compiling", "last evaluation, test images", "summary not named"} <= moments


# In a process of its own: nothing removes an audit hook. Without JAX, it is a fast one.
@pytest.mark.parametrize(
    ("arrange", "left"),
    [
        ('at_event("os.rename", "new2", trigger)', {"new1", "new2", "old"}),
        ('at_call("shutil:move", trigger)', {"new1", "old"}),
    ],
)
def test_the_signal_comes_right_before_the_second_time(arrange, left, tmp_path):
    program = f"""
import shutil, signal
from pathlib import Path
import killed
trigger = killed.Trigger(signal.SIGKILL, 2, Path("reached"))
killed.{arrange}
for name in "new1", "new2", "new2", "new3":
    Path("old").touch()
    shutil.move("old", name)
"""
    environment = {"PYTHONPATH": str(Path(killed.__file__).parent)}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == left | {"reached"}
