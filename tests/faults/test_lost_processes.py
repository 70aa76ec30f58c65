"""How `lost_processes.py` judges a kill; it makes the kills itself."""

import signal

import lost_processes
import numpy as np
import pytest

ROW = {
    "processes": 4,
    "killed": 1,
    "statuses": [75, -signal.SIGKILL, -signal.SIGABRT, 75],
    "seconds": 21.0,
    "goes_on": ["finished"] * 4,
    "differences": [],
    "weights_from_one_process": 1e-7,
    "others_from_one_process": [],
}


@pytest.mark.parametrize(
    ("change", "ending"),
    [
        ({}, "survival"),
        ({"statuses": [75, -signal.SIGKILL, 1, 75]}, "traceback"),
        ({"statuses": [0, -signal.SIGKILL, 75, 75]}, "traceback"),
        ({"seconds": 61.0}, "too late"),
        ({"goes_on": ["finished"] * 3 + [None]}, "difference"),
        ({"goes_on": ["interrupted"] * 4}, "difference"),
        ({"differences": ["metrics.jsonl: line 2"]}, "difference"),
        ({"weights_from_one_process": 1e-3}, "difference"),
        ({"others_from_one_process": ["masks"]}, "difference"),
    ],
)
def test_a_kill_ends_well_only_if_all_of_it_does(change, ending):
    assert lost_processes.ending({**ROW, **change}) == ending


def test_the_distance_is_that_of_the_last_checkpoints(tmp_path, monkeypatch):
    runs = {"one": {"9": 5.0, "12": 1.0}, "other": {"12": 1.25}}
    for name, steps in runs.items():
        for step in steps:
            (tmp_path / name / "checkpoints" / step).mkdir(parents=True)

    def read(path):
        weight = np.float32(runs[path.parents[1].name][path.name])
        return {"w": np.array([weight, 2], np.float32), "m": np.array([weight > 1])}

    monkeypatch.setattr(lost_processes, "read_arrays", read)
    found = lost_processes.distance(tmp_path / "one", tmp_path / "other")
    assert found == (0.25, ["m"])
