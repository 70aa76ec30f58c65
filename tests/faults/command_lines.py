"""Runs hundreds of hostile command lines that the parser passes, in one process.

    python tests/faults/command_lines.py --out benchmarks/results/command-lines.json

Every flag of every command meets extreme values, every option of a constructor meets
values of the wrong kind, and seeded combinations of flags meet each other. The command
runs to the point where the first program would be compiled, as in `--dry-run`. It ends
in one of

- clean error: status 2 and one line that begins with "error: ";
- survival: it would go on, and the values make sense;
- silent acceptance: it would go on, though the values make no sense or have no effect;
- traceback: any other exception, or a line that took longer than a minute.

Which values make sense is said here, by `SENSE`, and not by the library.
"""

# ruff: noqa: T201
import argparse
import contextlib
import dataclasses
import io
import math
import os
import random
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2])]

import attacks  # noqa: E402
from attacks import ENDINGS, FAULTS  # noqa: E402

from zosam_jax.cli import main as cli  # noqa: E402
from zosam_jax.gradients import registry as gradients  # noqa: E402
from zosam_jax.models.table import MODELS  # noqa: E402
from zosam_jax.runs.config import TrainConfig  # noqa: E402
from zosam_jax.sparsity import registry as sparsity  # noqa: E402
from zosam_jax.sparsity.methods.dynamic import Options  # noqa: E402
from zosam_jax.train import option_strings  # noqa: E402
from zosam_jax.train.compiled_run import CompiledRun  # noqa: E402

SEED = 0
RUN = HERE.parents[2] / "benchmarks" / "results" / "digits"

# A training whose programs are traced in a fraction of a second.
SMALL = {
    "--model": "mlp",
    "--model-options": "hidden=(8,)",
    "--method": "rigl",
    "--gradient": "backprop",
    "--epochs": "2",
}

INTEGERS = (
    *("-1", "0", "1", "7", "100000", "2147483647", "2147483648"),
    *("4294967296", "9223372036854775807", "9223372036854775808", "9" * 40, "1_000"),
)
FLOATS = (
    *("nan", "inf", "-inf", "-1", "0", "-0.0", "1e-300", "1e-9", "0.3", "1"),
    *("0.9999999999999999", "2", "1e6", "9e25", "1e39", "1e300", "1e400"),
)
TEXTS = (
    "",
    " ",
    "none",
    "a" * 300,
    "../..",
    "~nobody/x",
    "$x^{$bad",
    "run[red]x",
    "é\n",
)


class Sense(NamedTuple):
    """When a value of a flag makes sense in the small training, on the digits.

    Attributes:
      least: Smallest value.
      most: Largest value.
      but: A value between them that makes none.
    """

    least: float
    most: float
    but: float | None = None


SENSE = {
    "--width": Sense(1 / 16, 64),
    "--sparsity": Sense(0, 0.9999),
    "--update-interval": Sense(1, 2**31 - 1),  # Larger than the run: said at its start.
    "--drop-fraction": Sense(0, 1),
    "--stop-fraction": Sense(0, 1),
    "--compact-every": Sense(1, 1),  # There are two epochs.
    "--score-images": Sense(0, 139),  # The smallest class has 139.
    "--rho": Sense(0, 1e6),
    "--block": Sense(1, 2),  # Larger ones leave the small network too few blocks.
    "--perturb-from": Sense(0, 0.9999),
    "--perturb-every": Sense(1, 2**31 - 1),
    "--perturb-probability": Sense(1e-9, 1),
    "--probe-fraction": Sense(1e-9, 1),
    "--learning-rate": Sense(1e-9, 1e6),
    "--momentum": Sense(0, 0.9999),
    "--weight-decay": Sense(0, 1e6),
    "--layer-decay": Sense(1, 1),  # The small network has no blocks.
    "--final-learning-rate": Sense(0, 0.1),
    "--warmup-epochs": Sense(0, 1.9999),
    "--clip-norm": Sense(0, 1e6),
    "--ema": Sense(0, 0.9999),
    "--batch-size": Sense(1, 1437),
    "--accumulate-steps": Sense(1, 1437 // 64 * 2),
    "--epochs": Sense(1, 1e8),
    "--label-noise": Sense(0, 1),
    "--label-smoothing": Sense(0, 0.9999),
    "--validation": Sense(0, 0.95),
    "--image-size": Sense(math.inf, 0),
    "--fsdp": Sense(-1, 1, but=0),  # There is one device; -1 stands for all.
    "--workers": Sense(0, 0),
    "--seed": Sense(0, 2**32 - 1),
    "--checkpoint-every": Sense(1, 2**31 - 1),
    "--keep": Sense(1, 1e5),
    "--log-every": Sense(0, 1e39),
    "--time-limit": Sense(1e-300, 1e300),  # Any makes progress: a step is done.
    "--rounds": Sense(1, 1000),
    "--rewind-epoch": Sense(0, 1),
    "--early-bird-window": Sense(math.inf, 0),
    "--early-bird-tolerance": Sense(math.inf, 0),
}
"""By flag. A flag with no effect in the small training makes no sense at any value."""

# What the flags need to have an effect at all.
WITH = {
    "--rho": {"--gradient": "sam"},
    "--compact-every": {"--method": "random"},
    "--perturb-from": {"--gradient": "sam"},
    "--perturb-every": {"--gradient": "sam"},
    "--perturb-probability": {"--gradient": "sam"},
    "--probe-fraction": {"--gradient": "zosam"},
    "--milestones": {"--schedule": "step"},
    "--early-bird-tolerance": {"--early-bird": None},
}


class Line(NamedTuple):
    """A command line.

    Attributes:
      words: Its words.
      kind: What it tries.
      makes_sense: Whether it may go on. None: either way, if nothing crashes.
    """

    words: tuple[str, ...]
    kind: str
    makes_sense: bool | None = None


class Ending(NamedTuple):
    """How a command line ended.

    Attributes:
      line: The line.
      ending: One of `ENDINGS`.
      detail: The message or the traceback.
      seconds: How long it took.
    """

    line: Line
    ending: str
    detail: str
    seconds: float


class Reached(Exception):
    """The command came to where the work begins."""


def _small(command: str, *words: str, **flags: str | None) -> tuple[str, ...]:
    """Returns the words of a small training, with further flags."""
    chosen: dict[str, str | None] = {
        k: v for k, v in SMALL.items() if command == "train" or k != "--method"
    }
    chosen |= {f"--{name.replace('_', '-')}": text for name, text in flags.items()}
    line = [command, "--out", "run", "--dry-run"]
    for flag, text in chosen.items():
        given = flag in words
        if not given:
            line += [flag] if text is None else [flag, text]
    return (*line, *words)


def _flags(extra: dict[str, str | None]) -> dict[str, str | None]:
    return {flag.removeprefix("--").replace("-", "_"): v for flag, v in extra.items()}


def values_of_flags() -> Iterator[Line]:
    """Every number flag with every extreme value."""
    fields = {f.name: f.type for f in dataclasses.fields(TrainConfig)}
    for name, kind in fields.items():
        flag = f"--{name.replace('_', '-')}"
        is_whole = kind in (int, int | None)
        if not is_whole and kind not in (float, float | None):
            continue
        for text in INTEGERS if is_whole else FLOATS:
            sense, value = SENSE[flag], float(text)
            fits = sense.least <= value <= sense.most and value != sense.but
            words = _small("train", flag, text, **_flags(WITH.get(flag, {})))
            yield Line(words, f"train {flag}", fits)
    for flag, values in (
        ("--rounds", INTEGERS),
        ("--rewind-epoch", INTEGERS),
        ("--early-bird-window", INTEGERS),
        ("--early-bird-tolerance", FLOATS),
        ("--sparsity", FLOATS),
    ):
        for text in values:
            sense = SENSE[flag]
            fits = sense.least <= float(text) <= sense.most
            extra = _flags(WITH.get(flag, {}))
            if extra:
                fits = 0 < float(text) < 0.2
            yield Line(_small("lottery", flag, text, **extra), f"lottery {flag}", fits)
    for text in ("nan", "inf", "-1", "0", "1", "1e-300", "0.5 0.2", "0.3 0.3", ""):
        words = ("--milestones", *text.split(), "--schedule", "step")
        yield Line(_small("train", *words), "train --milestones", not text)


def texts_of_flags() -> Iterator[Line]:
    """Flags that take text, with hostile text."""
    nonsense = {"--out": None, "--data-dir": False, "--teacher": False}
    for name in (
        "dataset",
        "data-dir",
        "model",
        "dtype",
        "method",
        "budget",
        "gradient",
    ):
        for text in TEXTS:
            yield Line(_small("train", f"--{name}", text), f"train --{name}", False)
    for name in (
        "aux-from",
        "probe-norm",
        "probe-dtype",
        "optimizer",
        "decay",
        "schedule",
        "loop",
    ):
        for text in TEXTS[:4]:
            yield Line(_small("train", f"--{name}", text), f"train --{name}", False)
    for flag, sense in nonsense.items():
        for text in TEXTS:
            is_other = sense is False and text != ""
            yield Line(
                _small("train", flag, text),
                f"train {flag}",
                False if is_other else None,
            )
    for text in (
        *("folder:", "text:", "folder:nowhere", "text:nowhere", "folder:/dev/null"),
        *("npz:", "npz:nowhere", "npz:/dev/null"),
        *(
            "text:/dev/null",
            "cifar10:9.9.9",
            "cifar10/none",
            "cifar10:",
            "digits:1.0.0",
        ),
        *("digits/x", "/etc", "mnist:*.*.*", "folder:~nobody", "text:/", "cifar10@1"),
    ):
        yield Line(_small("train", "--dataset", text), "train --dataset", False)
    for text in (
        *(
            "cutout=1000",
            "cutout=-1",
            "cutout=nan",
            "cutout=1e400",
            "crop=9",
            "crop=1e9",
        ),
        *("crop", "cutout", "flip=1", "mixup=0", "mixup=inf", "erasing=2", "rotate=3"),
        *("crop=4 crop=4", "crop=2 resized_crop", "=", "cutout=", "randaugment=99"),
    ):
        words = ("--augment", *text.split())
        sensible = text == "crop"
        yield Line(
            _small("train", *words), "train --augment", None if sensible else False
        )


BAD_OPTIONS = (
    "-1",
    "nan",
    "9999999999",
    "1e300",
    "()",
    "{'a': 1}",
    "x",
    "None",
    "True",
)


def options() -> Iterator[Line]:
    """Every option of every gradient, sparse method and model with hostile values."""
    draw = random.Random(SEED)
    for name, row in gradients.METHODS.items():
        for option in (*option_strings.defaults(row.make), "rho_min", "nonsense"):
            for text in draw.sample(BAD_OPTIONS, 3):
                words = ("--gradient", name, "--gradient-options", f"{option}={text}")
                yield Line(_small("train", *words), f"gradient option {option}")
    for name, row in sparsity.METHODS.items():
        for option in option_strings.defaults(row.make, Options):
            for text in draw.sample(BAD_OPTIONS, 3):
                words = ("--method", name, "--method-options", f"{option}={text}")
                yield Line(_small("train", *words), f"method option {option}")
    for name, row in MODELS.items():
        for option in (*row.options, "width", "dtype", "num_classes", "blocks", "name"):
            for text in draw.sample(BAD_OPTIONS, 3):
                words = ("--model", name, "--model-options", f"{option}={text}")
                yield Line(_small("train", *words), f"model option {option}")
    for text in ("width", "=3", "width=", "=", "", "a=b=c", "hidden=(8,) hidden=(8,)"):
        for kind in ("gradient", "method", "model"):
            words = (f"--{kind}-options", *shlex.split(text))
            yield Line(_small("train", *words), f"--{kind}-options", None)


def without_effect() -> Iterator[Line]:
    """Flags that have no effect beside the others."""
    for text in (
        "--optimizer lion --momentum 0.5",
        "--optimizer adamw --momentum 0.9",
        "--optimizer adafactor --nesterov",
        "--momentum 0 --nesterov",
        "--weight-decay 0 --decay kernels",
        "--schedule cosine --milestones 0.2 0.4",
        "--schedule constant --milestones 0.2 0.4",
        "--schedule step --final-learning-rate 1e-3",
        "--schedule constant --final-learning-rate 0.01",
        "--gradient backprop --rho 0.1",
        "--gradient zeroth_order --method set --rho 0.1",
        "--gradient backprop --aux-from descent",
        "--gradient backprop --probe-fraction 0.5",
        "--gradient backprop --probe-dtype bfloat16",
        "--method dense --sparsity 0.5",
        "--method dense --budget erk",
        "--method dense --dense head/*",
        "--method dense --update-interval 5",
        "--method dense --drop-fraction 0.5",
        "--method dense --stop-fraction 0.5",
        "--method snip --update-interval 5",
        "--method units --budget erk",
        "--method mest --drop-fraction 0.2",
        "--method nm --method-options n=2 m=4 --sparsity 0.5 --budget erk",
        "--data-dir somewhere",
        "--image-size 32",
        "--workers 2",
        "--dataset pydoc --model tinylm --augment flip",
        "--dataset pydoc --model tinylm --validation 0.1",
        "--print-config --workers 2 --dry-run",
    ):
        yield Line(_small("train", *shlex.split(text)), "without effect", False)
    for text in ("--early-bird-window 3", "--early-bird-tolerance 0.05"):
        yield Line(_small("lottery", *shlex.split(text)), "without effect", False)
    for text in (
        "RUN --published-dir .",
        "RUN --source published --frost-dir .",
        "RUN --source published --seed 3",
        "RUN --corruptions fog --frost-dir .",
    ):
        words = ("evaluate", *shlex.split(text.replace("RUN", str(RUN))))
        yield Line(words, "without effect", False)
    for text in ("digits --data-dir .", "digits --archive x", "pydoc --archive x"):
        words = ("data", "prepare", *shlex.split(text))
        yield Line(words, "without effect", False)


def other_commands() -> Iterator[Line]:
    """Hostile lines of predict, evaluate, analyze, report, data and presets."""
    for text in (
        *("", "nowhere", "nowhere nowhere", "/dev/null x", "RUN", "RUN nowhere"),
        *("RUN x --format x", "RUN x --checkpoint last"),
    ):
        words = shlex.split(text.replace("RUN", str(RUN)))
        yield Line(("predict", *words), "predict", False)
    for text in (
        *("nowhere", ".", "/dev/null", "''", "~nobody/x", "'a\nb'", "RUN/config.json"),
        *("RUN --severities 0", "RUN --severities 6", "RUN --severities"),
        *("RUN --corruptions", "RUN --corruptions none", "RUN --source other"),
        *("RUN --images 0", "RUN --images -1", "RUN --images 9999999999999999999"),
        *("RUN --seed -1", "RUN --seed 9223372036854775808", "RUN --out /dev/null"),
        *("RUN --source published --published-dir nowhere", "RUN --frost-dir nowhere"),
        *("RUN --frost-dir /dev/null", "RUN --data-dir nowhere", "RUN RUN"),
    ):
        words = shlex.split(text.replace("RUN", str(RUN)))
        yield Line(("evaluate", *words), "evaluate", False)
    for text in (
        *("", "nowhere", ".", "/dev/null", "''", "~nobody/x", "'a\nb'", "RUN"),
        *("RUN --parts", "RUN --parts all", "RUN --points 4", "RUN --points 0"),
        *("RUN --images 0", "RUN --rho 0", "RUN --rho nan", "RUN --extent -1"),
        *("RUN --seed -1", "RUN --batch-size 0", "RUN --split x", "RUN RUN"),
    ):
        words = shlex.split(text.replace("RUN", str(RUN)))
        yield Line(("analyze", *words), "analyze", False)
    for text in (
        *("", "nowhere", ".", "/dev/null", "''", "~nobody/x", "'a\nb'", "RUN/.."),
        *("RUN --out /dev/null", "RUN --out /proc/x", "RUN --out ''", "RUN nowhere"),
        *(
            "RUN --out RUN/config.json",
            f"RUN --out {'a' * 300}",
            "RUN --out /dev/full/x",
        ),
    ):
        words = shlex.split(text.replace("RUN", str(RUN)))
        is_fine = text == "RUN --out ''"
        yield Line(("report", *words), "report", None if is_fine else False)
    for text in (
        *(
            "nowhere",
            "''",
            "folder:",
            "text:",
            "cifar10:9.9.9",
            "cifar10/none",
            "x/y/z",
        ),
        *("folder:nowhere", "folder:new --archive nowhere", "folder:new --archive ."),
        *("cifar10 --archive nowhere", "cifar10 --archive /dev/null", "text:nowhere"),
        *("imagenet2012 --archive nowhere", "imagenet2012", f"folder:{'a' * 300}"),
        *("folder:/proc/x --archive ARCHIVE", "~nobody/x", "folder:~nobody/x", "../.."),
        *("cifar10 --data-dir /dev/null --archive /dev/null", "digits/1", "cifar11"),
    ):
        words = shlex.split(text.replace("ARCHIVE", __file__))
        yield Line(("data", "prepare", *words), "data prepare", False)
    for text in ("presets x", "presets --x", "data list x", "data", "data prepare"):
        yield Line(tuple(text.split()), "words", False)


def combinations(count: int) -> Iterator[Line]:
    """Seeded combinations of three flags with extreme values."""
    draw = random.Random(SEED)
    numbers = [f for f in SENSE if f not in WITH and "early" not in f]
    numbers = [f for f in numbers if f not in ("--rounds", "--rewind-epoch")]
    names = {
        "--gradient": list(gradients.METHODS),
        "--method": [n for n in sparsity.METHODS if n != "ticket"],
        "--optimizer": ["sgd", "adamw", "lion", "rmsprop", "adafactor"],
        "--schedule": ["cosine", "step", "constant"],
        "--model": ["mlp", "vgg19", "tinylm", "vit"],
    }
    fields = dataclasses.fields(TrainConfig)
    kinds = {f"--{field.name.replace('_', '-')}": field.type for field in fields}
    for _ in range(count):
        words: list[str] = []
        for flag in draw.sample(list(names), 2):
            words += [flag, draw.choice(names[flag])]
        for flag in draw.sample(numbers, 3):
            is_whole = kinds[flag] in (int, int | None)
            words += [flag, draw.choice(INTEGERS[:6] if is_whole else FLOATS)]
        yield Line(_small("train", *words), "combination")


def all_lines() -> list[Line]:
    """Every line, each once."""
    parts: Sequence[Callable[[], Iterator[Line]]] = (
        values_of_flags,
        texts_of_flags,
        options,
        without_effect,
        other_commands,
        lambda: combinations(150),
    )
    return list({line.words: line for part in parts for line in part()}.values())


def run(line: Line) -> Ending:
    """Runs a line to the point where the work begins."""
    out, err = io.StringIO(), io.StringIO()
    detail, status, began = "", None, time.perf_counter()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(line.words)
    except Reached:
        ending = "silent acceptance" if line.makes_sense is False else "survival"
    except BaseException as error:
        ending = "traceback"
        detail = f"{type(error).__name__}: {error}\n{traceback.format_exc()[-600:]}"
    else:
        detail = err.getvalue()
        is_clean = detail.startswith("error: ") and "Traceback" not in detail
        ending = "clean error" if status == 2 and is_clean else "survival"
        if ending == "survival" and line.makes_sense is False:
            ending = "silent acceptance"
    seconds = time.perf_counter() - began
    if seconds > 60:
        ending, detail = "traceback", f"it took {seconds:.0f} s. {detail}"
    return Ending(line, ending, detail.strip(), seconds)


def attack(lines: Sequence[Line], show: Callable[[str], None]) -> list[Ending]:
    """Runs lines in an empty folder, with the work after the checks left out."""

    def reached(*arguments: object, **options: object) -> None:
        raise Reached

    endings, before = [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with mock.patch.object(CompiledRun, "compile", reached):
                for number, line in enumerate(lines, start=1):
                    endings.append(run(line))
                    last = endings[-1]
                    if last.ending in FAULTS or last.seconds > 20:
                        show(
                            f"{last.ending}: {shlex.join(line.words)}\n  {last.detail}"
                        )
                    if number % 200 == 0:
                        show(f"{number} of {len(lines)}")
        finally:
            os.chdir(before)
    return endings


def report(endings: Sequence[Ending]) -> dict[str, Any]:
    """Returns the figures of an attack, with examples of every ending."""
    commands = sorted({ending.line.words[0] for ending in endings})
    examples = {
        name: [
            {"line": shlex.join(e.line.words), "detail": e.detail.splitlines()[:1]}
            for e in endings
            if e.ending == name
        ]
        for name in ENDINGS
    }
    draw = random.Random(SEED)
    return {
        "lines": len(endings),
        "seconds": round(sum(e.seconds for e in endings)),
        "slowest_seconds": round(max(e.seconds for e in endings), 1),
        "all": attacks.count(ending.ending for ending in endings),
        "by_command": {
            command: attacks.count(
                e.ending for e in endings if e.line.words[0] == command
            )
            for command in commands
        },
        "examples": {
            name: draw.sample(found, min(len(found), 12))
            for name, found in examples.items()
        },
    }


def main() -> int:
    """Runs all lines, prints the counts and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the figures")
    parser.add_argument("--share", type=int, default=1, help="every n-th line alone")
    parser.add_argument("--kind", default="", help="lines of kinds that contain this")
    chosen = parser.parse_args()
    lines = [line for line in all_lines() if chosen.kind in line.kind]
    endings = attack(lines[:: chosen.share], lambda text: print(text, flush=True))
    found = report(endings)
    print(f"{found['lines']} lines in {found['seconds']} s")
    attacks.show({**found["by_command"], "all": found["all"]})
    attacks.write(chosen.out, found)
    return int(any(e.ending in FAULTS for e in endings))


if __name__ == "__main__":
    sys.exit(main())
