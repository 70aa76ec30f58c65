import dataclasses
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import zosam_jax
from zosam_jax import models
from zosam_jax.cli import main as cli
from zosam_jax.cli import terminal
from zosam_jax.data.augment.pipeline import OPERATIONS
from zosam_jax.data.table import DATASETS
from zosam_jax.gradients import registry as gradients
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.presets import PRESETS
from zosam_jax.sparsity import registry as sparsity
from zosam_jax.sparsity.budgets import BUDGETS
from zosam_jax.train import effects
from zosam_jax.train.optimizers import OPTIMIZERS


def command(*arguments, cwd):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "COLUMNS": "80"}
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
        "heavy = {'orbax', 'tensorflow_datasets', 'matplotlib', 'sklearn', "
        "'scipy.ndimage'}\n"
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
            flag = f"--{field.name.rstrip('_').replace('_', '-')}"
            assert f"{flag} " in text or f"{flag}, " in text


def test_the_help_lists_every_name_of_the_registries(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert "- dense: " in text
    for name in (*DATASETS, *models.names(), *gradients.METHODS):
        assert f"- {name}: " in text
    for name, row in gradients.METHODS.items():
        assert f"- {name}: {row.title}. {row.when[:20]}" in text
    for name in sparsity.METHODS:
        assert (f"- {name}: " in text) == (name != "ticket"), name
    for flag, names in (
        ("--optimizer STR", OPTIMIZERS),
        ("--budget STR", (*BUDGETS, "global")),
        ("--augment ", OPERATIONS),
    ):
        entry = re.split(r"\n. --", text[text.index(f" {flag}") :], maxsplit=1)[0]
        for name in names:
            assert re.search(rf"\b{name}\b", entry), (flag, name)


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
        (["trian"], "no command 'trian'. Did you mean 'train'? Commands: train, swe"),
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
    ("line", "part"),
    [
        ("train --method rigll", "--method 'rigll' is unknown. Did you mean 'rigl'?"),
        ("train --rho -1", "--rho -1.0 must be a finite number >= 0 and <= 1e+06."),
        ("train --batch_size 0", "--batch-size 0 must be an integer >= 1."),
        ("train --learning-rat 1", "Did you mean --learning-rate?"),
        ("train --gradient-options direction=guided", "'directions'"),
        ("train --seed abc", "--seed: 'abc' is no whole number."),
        ("train --seed", "Missing value for argument '--seed'."),
        ("train --preset", "Missing value for argument '--preset'."),
        ("train --method ticket", "Use `zosam lottery`"),
        ("train --method dynamic", "needs --method-options: drop=VALUE grow=VALUE. dr"),
        ("train --method nm --method-options n=2", "--method-options: m=VALUE. m: We"),
        ("train --milestones nan --schedule step", "--milestones nan must be"),
        ("train --num-processes 2", "--num-processes is for --distributed. Say both"),
        (
            "train --distributed --coordinator 10.0.0.1",
            "must be HOST:PORT, as 10.0.0.2",
        ),
        (
            "train --distributed --num-processes 2 --process-id 2",
            "--process-id 2 must be an integer >= 0 and <= 1.",
        ),
        ("train --distributed --process-timeout 0", "--process-timeout 0 must be"),
        ("lottery --rewind weight", "Did you mean 'weights'"),
        ("lottery --method rigl", "zosam lottery has no flag --method."),
        ("lottery --early-bird --rounds 3", "--rounds 3 must be 1"),
        ("--seed 1", "the command comes first, before --seed."),
        ("data", "zosam data needs an action. Actions: list, prepare."),
        ("data lst", "Did you mean 'list'?"),
        ("data prepare", "zosam data prepare needs NAME"),
        ("data prepare --data-dr x", "Did you mean --data-dir?"),
        ("report --ou x", "zosam report has no flag --ou. Did you mean --out?"),
    ],
)
def test_a_bad_command_line_says_what_would_work(line, part, capsys):
    assert cli.main(line.split()) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert part in text


@pytest.mark.quick
def test_without_a_command_the_help_is_shown(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "usage: zosam" in text
    assert "--tyro-write-completion bash" in text


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"zosam {zosam_jax.__version__}\n"


@pytest.mark.parametrize("line", ["--help", "presets", "report RUN --out OUT"])
def test_a_reader_that_goes_ends_a_command_quietly(line, tmp_path):
    run = Path(__file__).parents[2] / "benchmarks" / "results" / "digits"
    line = line.replace("RUN", str(run)).replace("OUT", str(tmp_path))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "zosam_jax", *line.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


class Full(io.StringIO):
    """An output on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("line", ["presets", "--version", "train --print-config"])
def test_an_output_that_cannot_be_written_is_named(line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(line.split()) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: standard output cannot be written: No space left")


def test_a_message_names_flags_but_not_the_options_of_constructors():
    fields = ("batch_size", "epochs", "momentum", "out", "gradient", "gradient_options")
    for message, typed in (
        ("batch_size=0 is bad", "--batch-size 0 is bad"),
        ("out= must be a folder", "--out must be a folder"),
        ("use epochs=3 or epochs=4.", "use --epochs 3 or --epochs 4."),
        ("out='a/momentum=3' is", "--out 'a/momentum=3' is"),
        (
            "gradient='msam' with gradient_options=['momentum=2']: momentum=2 is bad",
            "--gradient 'msam' with --gradient-options ['momentum=2']: momentum=2 is "
            "bad",
        ),
        ("gradient_options: momentum=2", "--gradient-options: momentum=2"),
    ):
        assert terminal.as_typed(message, fields) == typed


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--optimizer lion --momentum 0.9", "it is for optimizer sgd or rmsprop"),
        ("--optimizer adamw --nesterov", "it is for optimizer sgd or rmsprop"),
        ("--momentum 0 --nesterov", "with a momentum above 0"),
        ("--milestones 0.2 0.4", "it is for schedule step"),
        ("--schedule step --final-learning-rate 1e-3", "it is for schedule cosine"),
        ("--weight-decay 0 --decay kernels", "a weight decay above 0"),
        ("--gradient backprop --rho 0.1", "it is for sharpness-aware gradients"),
        ("--gradient backprop --aux-from ascent", "gradients of several passes"),
        ("--method dense --sparsity 0.5", "has no effect with --method 'dense'"),
        ("--method dense --budget erk", "has no effect with --method 'dense'"),
        ("--method snip --drop-fraction 0.1", "has no effect with --method 'snip'"),
        ("--data-dir /data", "it is for data sets of TFDS"),
    ],
)
def test_a_flag_without_effect_is_refused(line, part, capsys):
    assert cli.main(["train", "--print-config", *line.split()]) == 2
    text = capsys.readouterr().err
    assert "has no effect" in text
    assert part in text


def test_what_a_preset_sets_without_effect_falls_back_to_the_default(capsys):
    line = "train --preset imagenet-resnet50 --schedule cosine --optimizer lion"
    assert cli.main([*line.split(), "--method", "snip", "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["milestones"] == [0.5, 0.75]
    assert (config["nesterov"], config["update_interval"]) == (False, None)
    assert config["learning_rate"] == 1.6


def test_every_preset_uses_all_its_fields():
    for name, preset in PRESETS.items():
        assert effects.without_effect(preset.config) == [], name


def test_processes_that_nobody_tells_of_must_be_described(monkeypatch, capsys):
    def initialize(*arguments, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    assert cli.main(["train", "--distributed"]) == 2
    text = capsys.readouterr().err
    assert "JAX found no cluster" in text
    assert "say --coordinator HOST:PORT --num-processes N --process-id I" in text


def test_a_lost_process_is_not_waited_for(monkeypatch, capsys):
    from zosam_jax.cli import distributed
    from zosam_jax.runs.errors import LostProcess
    from zosam_jax.train import loop

    def run(config, **rest):
        raise LostProcess("process 0 has lost another one")

    left = []
    monkeypatch.setattr(loop, "run", run)
    monkeypatch.setattr(distributed, "leave", left.append)
    cli.main(["train"])
    assert left == [75]
    assert "error: process 0 has lost another one" in capsys.readouterr().err


def test_several_processes_go_on_by_the_command_that_began(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps({"config": TrainConfig().record()})
    )
    line = ["train", "--distributed", "--resume", str(tmp_path)]
    assert cli.main(line) == 2
    assert "the command that began the run" in capsys.readouterr().err


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


def test_train_and_report_from_end_to_end(tmp_path, monkeypatch, capsys):
    flags = ["--out", "run", "--epochs", "1", "--model", "mlp"]
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
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "run", "--out", "report"]) == 0
    assert "finished" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").exists()
    assert cli.main(["train", *flags, "--momentum", "0.3"]) == 2
    assert "momentum: 0.9 -> 0.3" in capsys.readouterr().err
