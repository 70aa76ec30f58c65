"""A file or a run that sets the defaults of all flags."""

import json
import shutil
from pathlib import Path

import pytest

from zosam_jax.cli import main as cli
from zosam_jax.lottery.config import LotteryConfig
from zosam_jax.runs import files
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import loop

STORED = Path(__file__).parents[2] / "benchmarks" / "results" / "digits"


def printed(capsys, *arguments):
    assert cli.main([*arguments, "--print-config"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    shutil.copy(STORED / "config.json", path)
    return path


@pytest.mark.quick
@pytest.mark.parametrize("name", ["train", "lottery"])
def test_a_printed_configuration_is_read_back(name, tmp_path, capsys):
    flags = ["--preset", "cifar-vgg19", "--augment", "flip", "cutout=8"]
    first = printed(capsys, name, *flags)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(first))
    assert printed(capsys, name, "--config", str(path)) == first
    changed = printed(capsys, name, f"--config={path}", "--seed", "7")
    assert changed == first | {"seed": 7}


@pytest.mark.quick
def test_a_run_is_resumed_by_its_folder(run, capsys, monkeypatch):
    stored = json.loads((run / "config.json").read_text())["config"]
    found = printed(capsys, "train", "--resume", str(run))
    usual = json.loads(json.dumps(TrainConfig().record()))
    assert found == usual | stored | {"out": str(run)}
    called = []

    def fake(config, **rest):
        called.append(config)
        return loop.Result(config.folder, "interrupted", None, 15)

    monkeypatch.setattr(loop, "run", fake)
    assert cli.main(["train", "--resume", str(run), "--epochs", "50"]) == 143
    assert (called[0].folder, called[0].epochs) == (run, 50)


def test_a_lottery_is_resumed_by_its_folder(tmp_path, capsys):
    train = TrainConfig(method="dense", out=str(tmp_path), seed=3)
    config = LotteryConfig(train=train, rounds=4, rewind_epoch=2)
    files.write_json(tmp_path / "lottery.json", {"config": config.record()})
    found = printed(capsys, "lottery", "--resume", str(tmp_path))
    assert found == json.loads(json.dumps(config.record()))


def test_what_cannot_set_the_defaults_is_said(run, tmp_path, capsys):
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"epochs": "ten"}')
    other = tmp_path / "other.json"
    other.write_text('{"epoch": 3}')
    cases = {
        ("--config", str(wrong)): "epochs",
        ("--config", str(other)): "does not know: epoch",
        ("--config", str(tmp_path / "none")): "there is no such file",
        ("--config", str(tmp_path)): "is a folder, where a file",
        ("--config", str(wrong), "--preset", "digits"): "each set the defaults",
        ("--resume", str(tmp_path / "none")): "not the folder of a run",
        ("--resume", str(tmp_path)): "holds several runs (run)",
        ("--resume", str(run), "--preset", "digits"): "each set the defaults",
        ("--resume", "x" * 300): "too long",
    }
    for arguments, part in cases.items():
        assert cli.main(["train", *arguments, "--print-config"]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert part in text, text
        assert text.count("\n") == 1
