import json

import pytest

from zosam_jax.runs import metrics
from zosam_jax.runs.errors import RunError


def test_metrics_are_cut_back_to_the_restored_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = metrics.MetricsLog(tmp_path)
    for step in (4, 8, 12):
        log.write({"step": step, "split": "train", "loss": step / 4})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 16, "spl')
    kept = metrics.cut(path, 8)
    assert [r["step"] for r in kept] == [4, 8]
    assert [json.loads(line) for line in path.read_text().splitlines()] == kept
    assert metrics.cut(tmp_path / "none.jsonl", 8) == []


def test_a_damaged_metrics_file_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4}\nnot json\n{"step": 8}\n')
    with pytest.raises(RunError, match="line 2"):
        metrics.read(path)


def test_tensorboard_scalars(tmp_path):
    log = metrics.MetricsLog(tmp_path, tensorboard=True)
    log.write({"step": 4, "split": "test", "loss": 0.5, "epoch": 1})
    log.close()
    assert any((tmp_path / "tensorboard").iterdir())


def test_tensorboard_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(RunError, match=r"pip install tensorboardX"):
        metrics.check_tensorboard()
