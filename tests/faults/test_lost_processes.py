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


@pytest.fixture
def distance(tmp_path, monkeypatch):
    """The distance of two runs whose last checkpoints hold these arrays."""
    for name, steps in {"one": ("9", "12"), "other": ("12",)}.items():
        for step in steps:
            (tmp_path / name / "checkpoints" / step).mkdir(parents=True)

    def of(one, other):
        def read(path):
            assert path.name == "12"
            return {"one": one, "other": other}[path.parents[1].name]

        monkeypatch.setattr(lost_processes, "read_arrays", read)
        return lost_processes.distance(tmp_path / "one", tmp_path / "other")

    return of


WEIGHT = "['params']['kernel']"
STATE = {
    WEIGHT: np.array([1, 2], np.float32),
    "['opt_state']['inner'][0]['trace']": np.array([1], np.float32),
    "['opt_state']['masks']": np.array([True, False]),
    "['opt_state']['gradient']['info']['direction_norm']": np.float32(1.5),
}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (WEIGHT, [1, 1.75], (0.25, [])),
        ("['opt_state']['inner'][0]['trace']", [0.5], (0.5, [])),
        (
            "['opt_state']['masks']",
            [True, True],
            (0.0, ["['opt_state']['masks']"]),
        ),
        # The rounding of a loss of 2.3, over 0.002 and for 2,500 weights, is 0.006.
        ("['opt_state']['gradient']['info']['direction_norm']", 1.51, (0.0, [])),
    ],
)
def test_the_distance_is_that_of_what_is_trained(distance, key, value, expected):
    changed = {**STATE, key: np.array(value, STATE[key].dtype)}
    assert distance(STATE, changed) == expected


def test_weights_that_are_not_finite_are_no_survival(distance):
    changed = {**STATE, WEIGHT: np.array([np.nan, 2], np.float32)}
    largest, _ = distance(STATE, changed)
    change = {"weights_from_one_process": largest}
    assert lost_processes.ending({**ROW, **change}) == "difference"
