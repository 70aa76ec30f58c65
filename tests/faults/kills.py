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
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2])]

import attacks  # noqa: E402
from kill_cases import COMMANDS, ON_A_RUN, Case, Kill, cases  # noqa: E402
from run_differences import differences  # noqa: E402

from zosam_jax.train import quiet  # noqa: E402

ENDINGS = ("survival", "clean error", "difference", "traceback", "not reached")
SECONDS = 600  # that a process may take, on a machine with other work


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

    def run(self, command: str, folder: Path, kill: Kill | None = None) -> Ended:
        """Returns how a process of a command ends.

        Args:
          command: Name of the command.
          folder: Its run folder.
          kill: How it is killed, or None.
        """
        given, reached = words(command, folder), folder.parent / "reached"
        reached.unlink(missing_ok=True)
        program = ["-m", "zosam_jax"]
        if kill and kill.moment.after is None:
            program = [str(HERE.with_name("killed.py")), str(int(kill.number))]
            program += [kill.moment.place, str(reached)]
        with subprocess.Popen(
            [sys.executable, *program, *given],
            env=self._environment(cold=bool(kill and kill.moment.cold)),
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

        def reading(ending: str, detail: str) -> Reading:
            return Reading(case, ending, tuple(statuses), detail)

        try:
            for kill in case.kills:
                ended = self.run(case.command, folder, kill)
                statuses.append(ended.status)
                if fault := _fault(ended, kill):
                    return reading(fault, ended.text)
            ended = self.run(case.command, folder)
            statuses.append(ended.status)
            if "Traceback" in ended.text:
                return reading("traceback", ended.text)
            if ended.status:
                return reading("clean error", ended.text)
            found = differences(self.whole[case.command], folder)
            return reading("difference" if found else "survival", "\n".join(found))
        finally:
            shutil.rmtree(folder.parent)


def _watch(process: subprocess.Popen[str], kill: Kill | None, reached: Path) -> str:
    """Returns what a process prints, and sends it its signal if that is from outside.

    Args:
      process: The process.
      kill: How it is killed, or None.
      reached: The file that tells that the signal was sent.
    """
    assert process.stdout is not None
    lines: list[str] = []
    timer: threading.Timer | None = None
    # The first line, an empty one, is the start.
    for line in itertools.chain([""], process.stdout):
        lines.append(line)
        if kill is None or kill.moment.after is None or timer is not None:
            continue
        if line.startswith(kill.moment.place):
            timer = threading.Timer(kill.moment.after, _send, (process, kill, reached))
            timer.start()
    if timer is not None:
        timer.cancel()
    return "".join(lines)


def _send(process: subprocess.Popen[str], kill: Kill, reached: Path) -> None:
    """Sends a process its signal, unless it has ended."""
    if process.poll() is None:
        reached.touch()
        process.send_signal(kill.number)


def _fault(ended: Ended, kill: Kill) -> str | None:
    """Returns the ending of a process that was not killed as it should be, or None."""
    if not ended.reached:
        return "not reached"
    expected = {-kill.number}
    if kill.name != "KILL":
        expected |= {128 + kill.number}
        expected |= {0} if kill.moment.late else set()
    if "Traceback" in ended.text or ended.status not in expected:
        return "traceback"
    return None


def count(readings: Sequence[Reading]) -> dict[str, int]:
    """Returns the number of kills with each ending."""
    endings = [r.ending for r in readings for _ in r.case.kills]
    return attacks.count(endings, ENDINGS)


def told(reading: Reading) -> str:
    """Returns a case and its ending as one line."""
    statuses = " ".join(map(str, reading.statuses))
    return f"{reading.ending} | {reading.case} | {statuses}"


def report(readings: Sequence[Reading], seconds: float) -> dict[str, Any]:
    """Returns the figures of an attack, and every case.

    Args:
      readings: How the cases ended.
      seconds: The time that they took.
    """
    return {
        "kills": sum(len(r.case.kills) for r in readings),
        "seconds": round(seconds),
        "all": count(readings),
        "by_command": {
            name: count([r for r in readings if r.case.command == name])
            for name in COMMANDS
        },
        "by_signal": {
            f"SIG{name}": count([r for r in readings if r.case.kills[-1].name == name])
            for name in ("KILL", "TERM", "HUP", "USR1", "INT")
        },
        "cases": [
            {
                "command": r.case.command,
                "kills": [[f"SIG{k.name}", k.moment.what] for k in r.case.kills],
                "statuses": r.statuses,
                "ending": r.ending,
            }
            for r in readings
        ],
    }


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
    chosen = [case for case in cases() if options.only in str(case)]
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
    found = report(readings, time.perf_counter() - started)
    print(f"{found['kills']} kills in {found['seconds']} s")
    attacks.show({**found["by_command"], **found["by_signal"], "all": found["all"]})
    attacks.write(options.out, found)
    return int(any(r.ending != "survival" for r in readings))


if __name__ == "__main__":
    sys.exit(main())
