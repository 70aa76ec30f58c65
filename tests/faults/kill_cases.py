"""The commands that `kills.py` kills, and the moments at which it does."""

import signal
from collections.abc import Iterator
from typing import NamedTuple

# A sparse network with a memory in the gradient, held-out images and an average.
_COMMON = (
    *("--model", "mlp", "--model-options", "hidden=(16,)", "--batch-size", "64"),
    *("--gradient-options", "directions=guided", "--warmup-epochs", "0"),
    *("--validation", "0.1", "--ema", "0.9", "--checkpoint-every", "1"),
    *("--log-every", "0"),
)
_TRAIN = (*_COMMON, "--epochs", "4", "--update-interval", "5")
COMMANDS = {
    "train": (*_TRAIN, "--out"),
    "train --overwrite": (*_TRAIN, "--overwrite", "--out"),
    "lottery": (
        *(*_COMMON, "--epochs", "2", "--rounds", "2", "--rewind-epoch", "1"),
        *("--sparsity", "0.8", "--out"),
    ),
    "evaluate": (
        *("--corruptions", "fog", "contrast", "--severities", "1", "2"),
        *("--images", "100"),
    ),
}
"""The words of each command but the folder, which comes last, or first."""
ON_A_RUN = ("train --overwrite", "evaluate")
"""Commands that begin with the folder of a finished run."""
STEPS = 20  # of an epoch


class Moment(NamedTuple):
    """When a process is sent a signal.

    Attributes:
      what: What it is doing then.
      place: From inside, as `killed.py` takes it; from outside, the beginning of a line
        of its output, or "" for its start.
      after: From outside: seconds after that line.
      cold: Whether it compiles its programs anew.
      late: Whether no step is left, so that it may end as without the signal.
    """

    what: str
    place: str
    after: float | None = None
    cold: bool = False
    late: bool = False


class Kill(NamedTuple):
    """A signal and its moment.

    Attributes:
      name: That of the signal, as "KILL".
      moment: When it is sent.
    """

    name: str
    moment: Moment

    @property
    def number(self) -> signal.Signals:
        """The signal as the system knows it."""
        return signal.Signals[f"SIG{self.name}"]

    def __str__(self) -> str:
        """Returns the signal and what the process is doing."""
        return f"SIG{self.name}: {self.moment.what}"


class Case(NamedTuple):
    """A command and how it is killed.

    Attributes:
      command: One of `COMMANDS`.
      kills: One for each process before the last.
    """

    command: str
    kills: tuple[Kill, ...]

    def __str__(self) -> str:
        """Returns the command and its kills as one line."""
        return f"{self.command} | {', then '.join(map(str, self.kills))}"


def _case(command: str, *kills: tuple[str, Moment]) -> Case:
    return Case(command, tuple(Kill(*kill) for kill in kills))


def _before(what: str, event: str, part: str, count: int = 1) -> Moment:
    return Moment(what, f"file {event} {part} {count}")


def _call(what: str, name: str, count: int, *, late: bool = False) -> Moment:
    return Moment(what, f"call zosam_jax.{name} {count}", late=late)


def _step(count: int) -> Moment:
    return _call(f"step {count}", "train.compiled_run:CompiledRun.advance", count)


def _saving(step: int, folder: str = "checkpoints") -> dict[str, Moment]:
    """Returns the moments of writing a checkpoint."""
    place = f"{folder}/{step}.orbax-checkpoint-tmp"
    return {
        "begun": _before(
            f"metrics synced, checkpoint {step} not begun", "os.mkdir", place
        ),
        "half": _before(f"checkpoint {step} half written", "open", f"{place}/state", 2),
        "arrays": _before(
            f"arrays of checkpoint {step} written",
            "os.rename",
            f"{place}/state.orbax-checkpoint-tmp",
        ),
        "named": _before(
            f"checkpoint {step} written, not named", "os.rename", f"{folder}/{step} "
        ),
    }


IMPORTING = Moment("importing", "", 0.3)
PREPARING = Moment("preparing", "preparing", 0.0)
COMPILING = Moment("compiling", "compiling...", 0.5, cold=True)
TRAINING = [Moment("training", "compiled in", after) for after in (0.03, 0.1, 0.3)]


def _train_cases() -> Iterator[Case]:
    steps = 4 * STEPS
    second, last = _saving(2 * STEPS), _saving(steps)
    write = "runs.metrics:MetricsLog.write"
    # Test and validation images of four epochs.
    test, validation = (
        _call(f"last evaluation, {name} images", "train.accuracy:batches", n, late=True)
        for name, n in (("test", 7), ("validation", 8))
    )
    summary = _before("summary not named", "os.rename", "summary.json.tmp")
    singles = (
        ("KILL", IMPORTING),
        ("TERM", PREPARING),
        *((name, COMPILING) for name in ("KILL", "TERM", "HUP")),
        ("KILL", _before("lock opened", "open", "run/.lock")),
        ("KILL", _before("configuration not written", "open", "config.json.tmp")),
        ("KILL", _before("configuration not named", "os.rename", "config.json.tmp")),
        ("KILL", _before("metrics of the start", "os.rename", "metrics.jsonl.tmp")),
        *zip(("KILL", "TERM", "USR1"), TRAINING, strict=True),
        ("KILL", _step(1)),
        ("HUP", _step(STEPS + 7)),
        ("USR1", _step(2 * STEPS)),
        ("INT", _step(2 * STEPS + 1)),
        ("KILL", _call("metrics of epoch 2, no line", write, 4)),
        ("KILL", _call("metrics of epoch 2, one line of three", write, 5)),
        ("TERM", _call("metrics of epoch 2, two lines of three", write, 6)),
        ("KILL", second["begun"]),
        ("KILL", second["half"]),
        ("USR1", second["half"]),
        ("KILL", second["arrays"]),
        ("KILL", second["named"]),
        ("TERM", second["named"]),
        (
            "KILL",
            _before("old checkpoint not deleted", "shutil.rmtree", f"points/{STEPS}"),
        ),
        ("KILL", _before("old checkpoint half deleted", "os.rmdir", f"points/{STEPS}")),
        ("KILL", test),
        ("TERM", test),
        ("HUP", validation),
        ("KILL", last["begun"]),
        ("KILL", last["named"]),
        ("KILL", _before("summary not written", "open", "summary.json.tmp")),
        ("KILL", summary),
        ("TERM", summary._replace(late=True)),
        ("KILL", _before("curves not drawn", "open", "curves.png")),
        ("TERM", _before("curves not named", "os.rename", "curves.png")),
    )
    yield from (_case("train", kill) for kill in singles)
    resumed = _before("metrics of the resumed run", "os.rename", "metrics.jsonl.tmp")
    yield _case("train", ("KILL", second["named"]), ("KILL", resumed))
    yield _case("train", ("TERM", _step(STEPS + 7)), ("KILL", second["half"]))


def _overwrite_cases() -> Iterator[Case]:
    singles = (
        ("KILL", _before("old summary not deleted", "os.remove", "run/summary.json")),
        (
            "KILL",
            _before("checkpoints not deleted", "shutil.rmtree", "run/checkpoints"),
        ),
        ("KILL", _before("old metrics not deleted", "os.remove", "run/metrics.jsonl")),
        ("KILL", _before("configuration not named", "os.rename", "config.json.tmp")),
        ("TERM", _step(STEPS + 7)),
    )
    return (_case("train --overwrite", kill) for kill in singles)


def _lottery_cases() -> Iterator[Case]:
    singles = (
        ("KILL", Moment("compiling", "compiling...", 0.5, cold=True)),
        ("KILL", _before("record not named", "os.rename", "lottery.json.tmp")),
        ("KILL", _before("first state not kept", "os.mkdir", "rewind/0.orbax")),
        ("KILL", _before("rewind state not named", "os.rename", f"rewind/{STEPS} ")),
        ("TERM", _step(STEPS + 7)),
        ("KILL", _before("end of round 0", "os.rename", "round-00/summary.json.tmp")),
        ("KILL", _before("between two rounds", "os.rename", "lottery.json.tmp", 2)),
        ("KILL", _before("start of round 1", "os.rename", "round-01/config.json.tmp")),
        # Later rounds begin after the first epoch.
        ("USR1", _step(2 * STEPS + 5)),
        ("KILL", _step(2 * STEPS + 9)),
        ("KILL", _saving(2 * STEPS, "round-01/checkpoints")["half"]),
        ("HUP", _step(3 * STEPS + 5)),
        ("KILL", _before("end of round 2", "os.rename", "round-02/summary.json.tmp")),
        ("TERM", _before("last record", "os.rename", "lottery.json.tmp", 4)),
    )
    return (_case("lottery", kill) for kill in singles)


def _evaluate_cases() -> Iterator[Case]:
    def adding(count: int) -> Moment:
        return _call(f"result {count}", "evaluate.results:Results.add", count)

    singles = (
        ("KILL", IMPORTING),
        ("KILL", _call("reading the weights", "train.checkpoint:digest", 1)),
        ("KILL", _before("results of before", "os.rename", "evaluation.jsonl.tmp")),
        ("KILL", adding(1)),
        ("USR1", adding(2)),
        ("TERM", adding(3)),
        ("INT", adding(4)),
        ("HUP", adding(5)),
        ("KILL", adding(5)),
        ("KILL", _before("figures not named", "os.rename", "evaluation.json.tmp")),
        ("KILL", _before("picture not named", "os.rename", "evaluation.png")),
    )
    return (_case("evaluate", kill) for kill in singles)


def cases() -> list[Case]:
    """Returns all cases."""
    parts = _train_cases, _overwrite_cases, _lottery_cases, _evaluate_cases
    return [case for part in parts for case in part()]
