import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zosam_jax import models
from zosam_jax.cli import main as cli
from zosam_jax.data.table import DATASETS
from zosam_jax.gradients import registry as gradients
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.presets import PRESETS
from zosam_jax.sparsity import registry as sparsity


def command(*arguments, cwd=None, devices=1):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "COLUMNS": "80",
    }
    return subprocess.run(
        [sys.executable, "-m", "zosam_jax", *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.quick
def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(f"• {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([name, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: zosam {name}" in text


@pytest.mark.quick
def test_the_presets_are_listed(capsys):
    assert cli.main(["presets"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, preset in PRESETS.items():
        assert f"zosam train --preset {name} {preset.claim} Cost: " in text
        assert f" Evidence: {preset.evidence}" in text


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["train", "--print-config"]]
)
def test_what_only_prints_starts_without_the_heavy_packages(arguments):
    program = (
        "import sys\n"
        "from zosam_jax.cli import main as cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'flax', 'orbax', 'tensorflow_datasets', 'matplotlib', 'sklearn'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        if field.name != "ticket":
            assert f"--{field.name.replace('_', '-')} " in text or (
                f"--{field.name.replace('_', '-')}, " in text
            )


def test_the_help_lists_every_name_of_the_registries(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert "- dense: " in text
    for name in (*DATASETS, *gradients.METHODS):
        assert f"- {name}: " in text
    for name in sparsity.METHODS:
        assert (f"- {name}: " in text) == (name != "ticket"), name
    models_help = text[text.index("--model STR") : text.index("--width")]
    for name in models.names():
        assert re.search(rf"\b{name}\b", models_help), name


@pytest.mark.quick
def test_presets_and_flags_give_the_printed_configuration(capsys):
    arguments = ["train", "--preset", "cifar-resnet32", "--print-config"]
    assert cli.main([*arguments, "--rho", "0.1", "--dense", "stem/*", "head/*"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["model"], config["epochs"], config["rho"]) == ("resnet32", 160, 0.1)
    assert config["dense"] == ["stem/*", "head/*"]
    assert "preset" not in config
    options = ["directions=guided", "num_directions=2", "guides=(0.5, 0.9)"]
    arguments = ["train", "--print-config", "--gradient-options", *options]
    assert cli.main([*arguments, "--probe-fraction", "0.5"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["gradient_options"] == options
    assert (config["rho"], config["aux_from"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "--preset", "cifar10-quik"], "Did you mean 'cifar10-quick'"),
        (["train", "--model", "resnet322"], "Did you mean 'resnet32'"),
        (["train", "--dataset", "digit"], "Did you mean 'digits'"),
        (["report", "nowhere"], "not the folder of a run"),
        (["data", "prepare", "cifar11"], "Did you mean 'cifar10'"),
        (["trian"], "no command 'trian'. Did you mean 'train'? Commands: train, eva"),
        (["recipes"], "no command 'recipes'. Did you mean 'presets'?"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments, part, capsys, tmp_path):
    if arguments[0] == "train":
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert part in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "--method", "rigll"], "Did you mean 'rigl'"),
        (["train", "--rho", "-1"], "rho=-1.0 must be"),
        (["train", "--learning-rat", "1"], "--learning-rate"),
        (["train", "--gradient-options", "direction=guided"], "'directions'"),
        (["lottery", "--rewind", "weight"], "Did you mean 'weights'"),
        (["lottery", "--method", "rigl"], "Unrecognized"),
        (["lottery", "--early-bird", "--rounds", "3"], "rounds=3 must be 1"),
        (["train", "--method", "ticket"], "Use `zosam lottery`"),
        ([], "{train, evaluate, report, presets, data, lottery}"),
    ],
)
def test_a_bad_command_line_says_what_would_work(arguments, part, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert part in " ".join(capsys.readouterr().err.split())


def test_an_interrupted_run_has_the_status_of_its_signal(monkeypatch):
    from zosam_jax.train import loop

    result = loop.Result(Path("run"), "interrupted", None, 15)
    monkeypatch.setattr(loop, "run", lambda config, **rest: result)
    assert cli.main(["train"]) == 143


def test_lottery_flags_give_the_printed_configuration(capsys):
    arguments = ["lottery", "--preset", "cifar-resnet32", "--print-config"]
    arguments += ["--rounds", "12", "--rewind", "learning-rate", "--rewind-epoch", "5"]
    assert cli.main([*arguments, "--sparsity", "0.98"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["model"], config["epochs"], config["sparsity"]) == (
        "resnet32",
        160,
        0.98,
    )
    assert (config["rounds"], config["rewind"], config["rewind_epoch"]) == (
        12,
        "learning-rate",
        5,
    )
    # The preset's sparse-training method is not that of the rounds.
    assert config["method"] == "dense"
    assert "ticket" not in config
    assert "preset" not in config


def test_an_interrupted_lottery_has_the_status_of_its_signal(monkeypatch):
    from zosam_jax.lottery import rounds as lottery

    result = lottery.LotteryResult(Path("search"), "interrupted", [], 2)
    monkeypatch.setattr(lottery, "run_lottery", lambda config, **rest: result)
    assert cli.main(["lottery"]) == 130


def test_a_report_that_cannot_be_written_is_an_error(tmp_path, capsys):
    run = Path(__file__).parents[2] / "benchmarks" / "results" / "digits"
    file = tmp_path / "file"
    file.write_text("")
    assert cli.main(["report", str(run), "--out", str(file)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_data_list(capsys):
    assert cli.main(["data", "list"]) == 0
    *listed, others = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in listed] == list(DATASETS)
    assert all(
        row.label in line for row, line in zip(DATASETS.values(), listed, strict=True)
    )
    assert others.startswith("any other name: an image classification set of TFDS")


def test_digits_need_no_preparation(capsys):
    assert cli.main(["data", "prepare", "digits"]) == 0
    assert "needs no preparation" in capsys.readouterr().out


def test_train_and_report_from_end_to_end(tmp_path):
    flags = ["--out", "run", "--epochs", "1", "--width", "0.25"]
    flags += ["--gradient", "backprop", "--method", "random", "--tensorboard"]
    done = command("train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "epoch 1/1  loss" in done.stdout
    assert "finished: test accuracy" in done.stdout
    assert {p.name for p in Path(tmp_path, "run").iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
    }
    session = json.loads((tmp_path / "run" / "config.json").read_text())["sessions"][0]
    assert session["command"] == ["python", "-m", "zosam_jax", "train", *flags]
    done = command("report", "run", "--out", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert (tmp_path / "report" / "report.html").exists()
    done = command("train", *flags, "--rho", "0.3", cwd=tmp_path)
    assert done.returncode == 2
    assert "rho: None -> 0.3" in done.stderr
