"""Metrics in other places: what each tracker is told, by stand-ins of them."""

import importlib.util
import json
import sys
import types

import pytest

from zosam_jax.runs import metrics, trackers
from zosam_jax.runs.config import TRACKERS, TrainConfig
from zosam_jax.runs.errors import RunError

LINE = {"step": 4, "split": "test", "epoch": 1, "loss": 0.5, "note": "text"}
VALUES = {"test/epoch": 1.0, "test/loss": 0.5}


class Told:
    """Remembers calls, as (name, arguments, options)."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self

        return call


@pytest.fixture
def told(monkeypatch):
    """Stand-ins of all packages: what they are told."""
    found = {name: Told() for name in ("tensorboard", "wandb", "trackio")}
    board = types.SimpleNamespace(SummaryWriter=found["tensorboard"].writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    for name in ("wandb", "trackio"):
        module = types.SimpleNamespace(init=found[name].init)
        monkeypatch.setitem(sys.modules, name, module)
    client = found["mlflow"] = Told()
    client.get_experiment_by_name = lambda name: None
    client.create_experiment = lambda name: f"place of {name}"
    made = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r7"))
    client.create_run = lambda *a, **k: client.created(*a, **k) and made
    entities = types.SimpleNamespace(
        Metric=lambda *entry: entry, Param=lambda *entry: entry
    )
    module = types.SimpleNamespace(MlflowClient=lambda: client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return found


def opened(folder, names=TRACKERS, step=0, said=None):
    say = (lambda text: None) if said is None else said.append
    return trackers.Trackers(names, folder, {"epochs": 3}, step, say)


def test_every_tracker_gets_the_numbers_of_each_line(tmp_path, told):
    log = metrics.MetricsLog(tmp_path, opened(tmp_path))
    log.write(LINE)
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == LINE
    scalars = [(x, 4) for x in VALUES.items()]
    names = [c[0] for c in told["tensorboard"].calls]
    assert names == ["writer", "add_scalar", "add_scalar", "close"]
    assert [c[1] for c in told["tensorboard"].calls[1:3]] == [
        (name, value, step) for (name, value), step in scalars
    ]
    for name in ("wandb", "trackio"):
        begun, logged, ended = told[name].calls
        assert begun[2]["config"] == {"epochs": 3}
        assert (begun[2]["project"], begun[2]["resume"]) == ("zosam_jax", "allow")
        assert logged[1] == (VALUES, 4)
        assert ended[0] == "finish"
    created, params, logged, ended = told["mlflow"].calls
    assert created[1:] == (("place of zosam_jax",), {"run_name": tmp_path.name})
    assert params[2] == {"params": [("epochs", "3")]}
    rows = [(name, value, step) for name, value, _, step in logged[2]["metrics"]]
    assert rows == [(name, value, step) for (name, value), step in scalars]
    assert ended[:2] == ("set_terminated", ("r7",))


def test_a_run_that_goes_on_is_the_same_run_there(tmp_path, told):
    opened(tmp_path).close()
    keys = json.loads((tmp_path / "trackers.json").read_text())
    assert keys["mlflow"] == "r7"
    opened(tmp_path, step=8).close()
    assert json.loads((tmp_path / "trackers.json").read_text()) == keys
    ids = [c[2]["id"] for c in told["wandb"].calls if c[0] == "init"]
    assert ids == [keys["wandb"]] * 2
    names = [c[2]["name"] for c in told["trackio"].calls if c[0] == "init"]
    assert names == [keys["trackio"]] * 2
    calls = [c[0] for c in told["mlflow"].calls]
    assert calls.count("created") == 1
    assert ("update_run", ("r7",), {"status": "RUNNING"}) in told["mlflow"].calls
    purged = [c[2]["purge_step"] for c in told["tensorboard"].calls if c[0] == "writer"]
    assert purged == [None, 8]


def test_other_runs_are_other_runs_there(tmp_path, told):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        opened(tmp_path / name).close()
    ids = {c[2]["id"] for c in told["wandb"].calls if c[0] == "init"}
    assert len(ids) == 2


def test_a_tracker_that_fails_is_said_once_and_gets_no_more(tmp_path, told):
    said = []
    found = opened(tmp_path, ("wandb", "trackio"), said=said)

    def fail(*arguments):
        raise ConnectionError("no route")

    told["wandb"].log = fail
    log = metrics.MetricsLog(tmp_path, found)
    log.write(LINE)
    log.write({**LINE, "step": 8})
    log.close()
    assert said == ["the tracker wandb gets no more metrics: ConnectionError: no route"]
    assert [c[1][1] for c in told["trackio"].calls if c[0] == "log"] == [4, 8]
    assert "finish" not in [c[0] for c in told["wandb"].calls]


def test_one_that_cannot_begin_does_not_end_the_training(tmp_path, told, monkeypatch):
    def fail(**options):
        raise ValueError("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    said = []
    found = opened(tmp_path, ("wandb", "trackio"), said=said)
    assert said == ["the tracker wandb gets no more metrics: ValueError: no API key"]
    found.log(LINE)
    assert set(json.loads((tmp_path / "trackers.json").read_text())) == {"trackio"}


def test_one_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install mlflow"):
        trackers.check(["mlflow"])


def test_an_unknown_one_names_all():
    with pytest.raises(ValueError, match="Did you mean 'wandb'"):
        TrainConfig(trackers=("wandd",))
    assert set(trackers.KINDS) == set(TRACKERS)


def test_tensorboard_has_a_field_of_its_own_too():
    both = TrainConfig(tensorboard=True, trackers=("wandb", "tensorboard"))
    assert both.all_trackers == ("tensorboard", "wandb")


def test_tensorboard_writes_scalars(tmp_path):
    log = metrics.MetricsLog(tmp_path, opened(tmp_path, ("tensorboard",)))
    log.write(LINE)
    log.close()
    assert any((tmp_path / "tensorboard").iterdir())
