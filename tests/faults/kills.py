"""Kills commands at chosen moments, continues them, and compares every bit.

    python tests/faults/kills.py --out benchmarks/results/kills.json

`zosam train` (with `--overwrite` too), `zosam lottery` and `zosam evaluate` run on the
digits, in processes of seconds. A signal (SIGKILL, SIGTERM, SIGHUP, SIGUSR1, SIGINT)
ends each of them: from outside, some time after a line of its output, or from inside,
right before a file is opened, renamed or deleted or a function is called. Then the same
command runs again, and its folder is compared with one that was never interrupted: the
same files, all figures but times and speeds, and every array of the checkpoints. Only
older checkpoints may be others: an interruption leaves one of its own. A kill ends in
one of

- survival: everything is the same;
- clean error: the second command ends with a sentence;
- difference: it finishes with other files, figures or arrays;
- traceback: one of the two shows a traceback, or the first an unexpected exit status;
- not reached: the command had ended before the moment came.

All but the first are faults. Compiled programs are kept, except where a compilation is
to be interrupted.
"""

# ruff: noqa: T201
import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2])]

from zosam_jax.train import quiet  # noqa: E402

ENDINGS = ("survival", "clean error", "difference", "traceback", "not reached")
SECONDS = 600  # that a process may take, on a machine with other work

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

TIMES = {"seconds", "images_per_second", "compile_seconds"}
TIMES |= {"compile_seconds_by_program", "written", "command", "started", "sessions"}
TIMES |= {"out", "commit", "overwrite"}


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


class Case(NamedTuple):
    """A command and how it is killed.

    Attributes:
      command: One of `COMMANDS`.
      kills: Signals and moments, one for each process before the last.
    """

    command: str
    kills: tuple[tuple[str, Moment], ...]


class Reading(NamedTuple):
    """How a case ended.

    Attributes:
      case: The case.
      ending: One of `ENDINGS`.
      statuses: The exit statuses of all its processes.
      detail: What differs, or what was printed.
    """

    case: Case
    ending: str
    statuses: tuple[int, ...]
    detail: str


# Moments.


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
    yield from (Case("train", (kill,)) for kill in singles)
    resumed = _before("metrics of the resumed run", "os.rename", "metrics.jsonl.tmp")
    yield Case("train", (("KILL", second["named"]), ("KILL", resumed)))
    yield Case("train", (("TERM", _step(STEPS + 7)), ("KILL", second["half"])))


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
    return (Case("train --overwrite", (kill,)) for kill in singles)


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
    return (Case("lottery", (kill,)) for kill in singles)


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
    return (Case("evaluate", (kill,)) for kill in singles)


def cases() -> list[Case]:
    """Returns all cases."""
    parts = _train_cases, _overwrite_cases, _lottery_cases, _evaluate_cases
    return [case for part in parts for case in part()]


# Processes.


class Ended(NamedTuple):
    """A process that ended.

    Attributes:
      status: Its exit status; minus the number of the signal that ended it.
      text: What it printed, errors too.
      reached: Whether it was sent its signal.
    """

    status: int
    text: str
    reached: bool


def words(command: str, folder: Path) -> list[str]:
    """Returns the words of a command on a folder."""
    name, given = command.split()[0], COMMANDS[command]
    if name == "evaluate":
        return [name, str(folder), *given]
    return [name, *given, str(folder)]


class Runner:
    """Runs commands, and kills them.

    Attributes:
      place: A folder for what they write.
    """

    def __init__(self, place: Path):
        """Runs nothing yet.

        Args:
          place: An empty folder.
        """
        self.place = place
        self.number = 0
        self.whole = {name: place / name.split()[0] / "run" for name in COMMANDS}

    def prepare(self, commands: Sequence[str]) -> None:
        """Runs each command as it is compared with, and so keeps its programs.

        Args:
          commands: Names of the commands.
        """
        needed = {*commands, *("train" for name in commands if name in ON_A_RUN)}
        for name in ("train", "lottery", "evaluate"):
            if name not in needed:
                continue
            self._begin(name, self.whole[name])
            ended = self.run(name, self.whole[name])
            if ended.status:
                raise SystemExit(f"{name} fails without a kill:\n{ended.text}")

    def _begin(self, command: str, folder: Path) -> None:
        """Makes what a command begins with."""
        folder.parent.mkdir(parents=True)
        if command in ON_A_RUN:
            shutil.copytree(self.whole["train"], folder)

    def run(
        self, command: str, folder: Path, kill: tuple[str, Moment] | None = None
    ) -> Ended:
        """Returns how a process of a command ends.

        Args:
          command: Name of the command.
          folder: Its run folder.
          kill: Signal and moment, or None.
        """
        given, reached = words(command, folder), folder.parent / "reached"
        reached.unlink(missing_ok=True)
        program = ["-m", "zosam_jax"]
        if kill and kill[1].after is None:
            number = str(int(_number(kill[0])))
            program = [str(HERE.with_name("killed.py")), number]
            program += [kill[1].place, str(reached)]
        with subprocess.Popen(
            [sys.executable, *program, *given],
            env=self._environment(cold=bool(kill and kill[1].cold)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            watchdog = threading.Timer(SECONDS, process.kill)
            watchdog.start()
            text = _watch(process, kill, reached)
            watchdog.cancel()
        return Ended(process.returncode, text, reached.exists())

    def _environment(self, *, cold: bool) -> dict[str, str]:
        settings = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.place / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_ENABLE_COMPILATION_CACHE": str(not cold).lower(),
            "PYTHONPATH": str(HERE.parents[2]),
            "PYTHONUNBUFFERED": "1",
        }
        return os.environ | settings

    def kill(self, case: Case) -> Reading:
        """Returns how a case ends."""
        self.number += 1
        folder = self.place / f"{self.number:03}" / "run"
        self._begin(case.command, folder)
        statuses: list[int] = []
        try:
            for kill in case.kills:
                ended = self.run(case.command, folder, kill)
                statuses.append(ended.status)
                if fault := _fault(ended, *kill):
                    return Reading(case, *_split(fault, statuses, ended.text))
            ended = self.run(case.command, folder)
            statuses.append(ended.status)
            if "Traceback" in ended.text:
                return Reading(case, *_split("traceback", statuses, ended.text))
            if ended.status:
                return Reading(case, *_split("clean error", statuses, ended.text))
            found = differences(self.whole[case.command], folder)
            ending = "difference" if found else "survival"
            return Reading(case, *_split(ending, statuses, "\n".join(found)))
        finally:
            shutil.rmtree(folder.parent)


def _split(
    ending: str, statuses: Sequence[int], detail: str
) -> tuple[str, tuple[int, ...], str]:
    return ending, tuple(statuses), detail


def _number(name: str) -> signal.Signals:
    return signal.Signals[f"SIG{name}"]


def _watch(
    process: subprocess.Popen[str], kill: tuple[str, Moment] | None, reached: Path
) -> str:
    """Returns what a process prints, and sends it its signal if that is from outside.

    Args:
      process: The process.
      kill: Signal and moment, or None.
      reached: The file that tells that the signal was sent.
    """
    assert process.stdout is not None
    lines: list[str] = []

    def send() -> None:
        assert kill is not None
        if process.poll() is None:
            reached.touch()
            process.send_signal(_number(kill[0]))

    waiting = kill is not None and kill[1].after is not None
    timer: threading.Timer | None = None

    def start() -> threading.Timer:
        assert kill is not None
        assert kill[1].after is not None
        timer = threading.Timer(kill[1].after, send)
        timer.start()
        return timer

    if waiting and kill is not None and not kill[1].place:
        timer, waiting = start(), False
    for line in process.stdout:
        lines.append(line)
        if waiting and kill is not None and line.startswith(kill[1].place):
            timer, waiting = start(), False
    if timer is not None:
        timer.cancel()
    return "".join(lines)


def _fault(ended: Ended, name: str, moment: Moment) -> str | None:
    """Returns the ending of a process that was not killed as it should be, or None."""
    if not ended.reached:
        return "not reached"
    number = int(_number(name))
    expected = {-number}
    if name != "KILL":
        expected |= {128 + number}
    if moment.late and name != "KILL":
        expected |= {0}
    if "Traceback" in ended.text or ended.status not in expected:
        return "traceback"
    return None


# What a run left.


def differences(whole: Path, folder: Path) -> list[str]:
    """Returns what differs between two folders, a line each.

    Args:
      whole: The folder of a command that was not interrupted.
      folder: The other.
    """
    names = [
        {str(p.relative_to(root)) for p in root.rglob("*") if _is_record(p, root)}
        for root in (whole, folder)
    ]
    lone = sorted(names[0] ^ names[1])
    found = [f"only in one folder: {name}" for name in lone if not _is_old(name, names)]
    for name in sorted(names[0] & names[1]):
        pair = whole / name, folder / name
        if name.endswith((".json", ".jsonl")):
            texts = [_figures(path) for path in pair]
        elif (pair[0] / "_CHECKPOINT_METADATA").exists():
            texts = [_arrays(path) for path in pair]
        else:
            continue
        if texts[0] != texts[1]:
            found.append(f"{name}: {_first_difference(*texts)}")
    return found


def _is_record(path: Path, root: Path) -> bool:
    """Whether a path is a file of the run, or a whole checkpoint."""
    inside = path.relative_to(root).parts
    within = [part for part in inside[:-1] if part.isdigit()]
    return not within and (path.is_file() or path.name.isdigit())


def _is_old(name: str, names: Sequence[set[str]]) -> bool:
    """Whether a path is a checkpoint, and both folders have a newer one."""
    step = Path(name)
    others = (
        [int(path.name) for path in map(Path, own) if path.parent == step.parent]
        for own in names
        if step.parent.name == "checkpoints"
    )
    newest = [max(steps, default=-1) for steps in others]
    return bool(newest) and int(step.name) < min(newest)


def _figures(path: Path) -> dict[str, Any]:
    """Returns the entries of a file but times and speeds, by line and path."""
    lines = path.read_text().splitlines()
    texts = lines if path.suffix == ".jsonl" else ["".join(lines)]
    return {
        f"line {number}{place}": value
        for number, text in enumerate(texts, start=1)
        for place, value in _entries(json.loads(text))
    }


def _entries(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in TIMES:
                yield from _entries(inner, f"{place}/{key}")
    elif isinstance(value, list):
        yield f"{place}/length", len(value)
        for index, inner in enumerate(value):
            yield from _entries(inner, f"{place}/{index}")
    else:
        yield place, value


def _arrays(path: Path) -> dict[str, Any]:
    """Returns type, shape and bytes of every array of a checkpoint, by its path."""
    import jax

    with contextlib.closing(ocp.PyTreeCheckpointer()) as reader:
        state = reader.restore(path / "state")
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    arrays = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}
    return {
        key: (str(x.dtype), x.shape, x.tobytes()) for key, x in sorted(arrays.items())
    }


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    for key in (*one, *other):
        if one.get(key) != other.get(key):
            return f"{key}: {one.get(key)!r:.80} != {other.get(key)!r:.80}"
    raise AssertionError("they are the same")


# The command.


def count(readings: Sequence[Reading]) -> dict[str, int]:
    """Returns the number of kills with each ending."""
    found: collections.Counter[str] = collections.Counter()
    for reading in readings:
        found[reading.ending] += len(reading.case.kills)
    return {ending: found[ending] for ending in ENDINGS}


def told(reading: Reading) -> str:
    """Returns a case and its ending as one line."""
    kills = ", then ".join(f"SIG{s}: {m.what}" for s, m in reading.case.kills)
    statuses = " ".join(map(str, reading.statuses))
    return f"{reading.ending} | {reading.case.command} | {kills} | {statuses}"


def main() -> int:
    """Makes all kills, prints the counts and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--only", default="", help="a part of `command | kills`")
    options = parser.parse_args()
    quiet.silence()
    # Behind `nohup` or `&`, processes would inherit that these are ignored.
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [c for c in cases() if options.only in told(Reading(c, "", (), ""))]
    started = time.perf_counter()
    readings: list[Reading] = []
    with tempfile.TemporaryDirectory() as place:
        runner = Runner(Path(place).resolve())
        runner.prepare([case.command for case in chosen])
        for case in chosen:
            readings.append(runner.kill(case))
            print(told(readings[-1]), flush=True)
            if readings[-1].ending != "survival":
                print(readings[-1].detail[-2000:], flush=True)
    seconds = time.perf_counter() - started
    number = sum(len(case.kills) for case in chosen)
    print(f"{number} kills in {seconds:.0f} s")
    by_command = {
        name: count([r for r in readings if r.case.command == name])
        for name in COMMANDS
    }
    by_signal = {
        f"SIG{name}": count([r for r in readings if r.case.kills[-1][0] == name])
        for name in ("KILL", "TERM", "HUP", "USR1", "INT")
    }
    everything = count(readings)
    for name, row in {**by_command, **by_signal, "all": everything}.items():
        print(f"{name:18}", *(f"{n} {ending}" for ending, n in row.items()), sep="  ")
    if options.out:
        from benchmarks import record

        record.write(
            options.out,
            {
                "kills": number,
                "seconds": round(seconds),
                "all": everything,
                "by_command": by_command,
                "by_signal": by_signal,
                "cases": [
                    {
                        "command": r.case.command,
                        "kills": [[f"SIG{s}", m.what] for s, m in r.case.kills],
                        "statuses": r.statuses,
                        "ending": r.ending,
                    }
                    for r in readings
                ],
            },
        )
    return int(any(r.ending != "survival" for r in readings))


if __name__ == "__main__":
    sys.exit(main())
