"""The training of a sweep: processes of one run or several, some at a time."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from zosam_jax.runs import files, folder, summary, sweep
from zosam_jax.runs.errors import explained
from zosam_jax.runs.files import JSON
from zosam_jax.runs.progress import duration
from zosam_jax.runs.sweep import Planned
from zosam_jax.train import devices, grouping
from zosam_jax.train.devices import Device
from zosam_jax.train.interruption import Stop, interruptions

APART = 65
"""Exit status of a process that cannot train its runs in one program."""

# Exit statuses of `zosam train` after which the same command goes on.
_TIME_LIMIT = 75
_SIGNALS = {
    128 + number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
}
_POLL_SECONDS = 0.05


class Process(Protocol):
    """A process that trains runs, as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Returns its exit status; None while it runs."""
        ...

    def wait(self) -> int:
        """Returns its exit status, once it has ended."""
        ...

    def send_signal(self, sig: int, /) -> None:
        """Sends a signal to it."""
        ...


class Job(NamedTuple):
    """What a process trains.

    Attributes:
      runs: One run, or several that differ in seed and radius alone.
      device: The only device that the process sees; None: all of this machine.
      processes: Number of processes on that device.
    """

    runs: tuple[Planned, ...]
    device: Device | None = None
    processes: int = 1

    @property
    def name(self) -> str:
        """The name of its log: that of the run, or of the first with "+3"."""
        others = len(self.runs) - 1
        return self.runs[0].name + (f"+{others}" if others else "")

    @property
    def place(self) -> str:
        """Where it trains, as " on gpu:0", or ""."""
        return "" if self.device is None else f" on {self.device.name}"


class Outcome(NamedTuple):
    """How a run of a sweep ended.

    Attributes:
      status: A status of `sweep.json`.
      reason: Why it failed, in a sentence; else "".
    """

    status: str
    reason: str = ""


class SweepResult(NamedTuple):
    """How a call of `train_all` ended.

    Attributes:
      outcomes: How each run ended, by the name of its folder.
      signal: The signal that ended the call early, or None.
    """

    outcomes: dict[str, Outcome]
    signal: int | None

    def named(self, status: str) -> list[str]:
        """Returns the runs with a status."""
        return [name for name, own in self.outcomes.items() if own.status == status]


def is_done(planned: Planned) -> bool:
    """Whether a run is finished, with as many epochs as planned.

    Raises:
      RunError: Its folder holds something else.
    """
    epochs = folder.check(planned.config)
    done = epochs == planned.config.epochs
    return done and summary.read(planned.config.folder) is not None


def train_all(
    plan: Sequence[Planned],
    path: Path,
    *,
    slots: Sequence[Device | None],
    start: Callable[[Job], Process],
    say: Callable[[str], None],
    beside: Mapping[str, Any],
    together: int = 1,
) -> SweepResult:
    """Trains the runs of a sweep that are not finished, and records how each ends.

    A run that fails does not end the others. A first signal is passed on to the
    processes, which end in order; no further one starts.

    Args:
      plan: The runs.
      path: Folder of the sweep. It is created if it does not exist.
      slots: The device of each of the processes at a time. The next process gets the
        first that is free.
      start: Starts a process.
      say: Shows a line.
      beside: Further entries of `sweep.json`.
      together: Most runs in one program. A process that cannot train its runs
        together ends with status `APART`; each then has a process of its own.

    Raises:
      RunError: The folder of a run holds another run.
    """
    outcomes = {
        each.name: Outcome(sweep.FINISHED if is_done(each) else sweep.WAITING)
        for each in plan
    }
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    return _Sweep(plan, path, outcomes, slots, start, say, beside).train(together)


class _Running(NamedTuple):
    """A process that trains now.

    Attributes:
      job: What it trains.
      process: The process.
      began: When it began, in seconds.
    """

    job: Job
    process: Process
    began: float


class _Sweep:
    """The runs of a call, and the processes that train now, by slot."""

    def __init__(
        self,
        plan: Sequence[Planned],
        path: Path,
        outcomes: dict[str, Outcome],
        slots: Sequence[Device | None],
        start: Callable[[Job], Process],
        say: Callable[[str], None],
        beside: Mapping[str, Any],
    ):
        self._plan, self._path, self._outcomes = plan, path, outcomes
        self._slots, self._start, self._say = slots, start, say
        self._beside = beside
        self._waiting: list[tuple[Planned, ...]] = []
        self._running: dict[int, _Running] = {}

    def train(self, together: int) -> SweepResult:
        """Trains until all processes have ended."""
        left = [
            x for x in self._plan if self._outcomes[x.name].status != sweep.FINISHED
        ]
        self._waiting = grouping.groups(left, together)
        done = len(self._plan) - len(left)
        if done:
            self._say(f"{done} of {len(self._plan)} runs are finished already")
        for each in left if together > 1 else ():
            if reason := grouping.obstacle(each.config):
                self._say(f"{each.name} trains alone: {reason}")
        self._record()
        sent = 0
        with interruptions(Stop()) as stop:
            try:
                while self._running or (self._waiting and not stop.signals):
                    if not stop.signals:
                        self._fill()
                    for number in stop.signals[sent:]:
                        self._send(number)
                        sent += 1
                    self._look()
                    time.sleep(_POLL_SECONDS if self._running else 0)
            except BaseException:
                # A second signal: the processes act at once too.
                self._send(signal.SIGTERM)
                for running in self._running.values():
                    running.process.wait()
                self._look()
                raise
        number = stop.signals[0] if stop.signals else None
        return SweepResult(self._outcomes, number)

    def _fill(self) -> None:
        """Starts a process in each free slot."""
        for slot, device in enumerate(self._slots):
            if slot not in self._running and self._waiting:
                on_device = self._slots.count(device)
                job = Job(self._waiting.pop(0), device, on_device)
                began = time.monotonic()
                self._running[slot] = _Running(job, self._start(job), began)

    def _send(self, number: int) -> None:
        for running in self._running.values():
            # It may have ended a moment ago.
            with contextlib.suppress(ProcessLookupError):
                running.process.send_signal(number)

    def _look(self) -> None:
        """Records the processes that have ended."""
        for slot, (job, process, began) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[slot]
            if status == APART:
                reason = _said(log_of(self._path, job)) or "see its log"
                self._say(f"{job.name} trains run by run: {reason}")
                self._waiting[:0] = [(planned,) for planned in job.runs]
                continue
            for planned in job.runs:
                outcome = _outcome(self._path, job, planned, status)
                self._outcomes[planned.name] = outcome
                self._say(self._line(job, planned, time.monotonic() - began))
            self._record()

    def _line(self, job: Job, planned: Planned, seconds: float) -> str:
        outcome = self._outcomes[planned.name]
        ended = sum(x.status != sweep.WAITING for x in self._outcomes.values())
        own, figures = planned.config.folder, ""
        found = summary.read(own)
        if outcome.status == sweep.FINISHED and found is not None:
            score = folder.read_score(own)
            figures = f", test {score} {found['test_accuracy']:.2%}"
        others = f" in one program of {len(job.runs)}" if len(job.runs) > 1 else ""
        return (
            f"{ended}/{len(self._plan)} {planned.name}: {outcome.status}{figures}, "
            f"{duration(seconds)}{others}{job.place}"
        )

    def _record(self) -> None:
        entries: list[JSON] = [
            {
                "folder": name,
                "status": own.status,
                **({"reason": own.reason} if own.reason else {}),
            }
            for name, own in self._outcomes.items()
        ]
        with explained(self._path):
            sweep.write(self._path, entries, self._beside)


def _outcome(path: Path, job: Job, planned: Planned, status: int) -> Outcome:
    """Returns how a run ended.

    Args:
      path: Folder of the sweep.
      job: What its process trained.
      planned: The run.
      status: Exit status of the process.
    """
    if status == 0 or (len(job.runs) > 1 and is_done(planned)):
        return Outcome(sweep.FINISHED)
    if status == _TIME_LIMIT:
        return Outcome(sweep.OUT_OF_TIME)
    if status in _SIGNALS:
        return Outcome(sweep.INTERRUPTED)
    log = log_of(path, job)
    if said := _said(log, planned.name) or _said(log):
        return Outcome(sweep.FAILED, said)
    how = f"signal {-status} ended it" if status < 0 else f"its exit status is {status}"
    return Outcome(sweep.FAILED, f"{how}; see {log}.")


_PROMPT = "$ "


def _said(log: Path, name: str | None = None) -> str | None:
    """Returns the last error in a log, of all its runs or of one; None without one.

    Errors of earlier processes, before the last command, do not count.
    """
    start = "error: " if name is None else f"error: {name}: "
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        begun = [i for i, line in enumerate(lines) if line.startswith(_PROMPT)]
        lines = lines[begun[-1] if begun else 0 :]
        said = [x.removeprefix(start) for x in lines if x.startswith(start)]
        return said[-1] if said else None
    return None


def log_of(path: Path, job: Job) -> Path:
    """Returns the file of what a process has printed."""
    return path / "logs" / f"{job.name}.log"


def process(path: Path, job: Job) -> Process:
    """Starts the process of a job, whose output goes to its log.

    One run is a `zosam train`. It sees the device of the job alone, if it has one.

    Args:
      path: Folder of the sweep.
      job: What it trains.
    """
    log = log_of(path, job)
    with explained(path):
        log.parent.mkdir(parents=True, exist_ok=True)
        given = [_written(path, planned) for planned in job.runs]
        words = ["zosam_jax", "train", "--config", given[0]]
        if len(given) > 1:
            words = ["zosam_jax.cli.together", *given]
        with log.open("a") as output:
            output.write(f"{_PROMPT}python -m {shlex.join(words)}\n")
            output.flush()
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(job),
                # Ctrl-C in a terminal reaches this process alone, which passes it on.
                start_new_session=True,
            )


def _written(path: Path, planned: Planned) -> str:
    """Returns the file of the configuration of a run, which is written."""
    given = path / "configs" / f"{planned.name}.json"
    given.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(given, planned.config.record())
    return str(given)


def _environment(job: Job) -> dict[str, str]:
    outer = dict(os.environ)
    if job.device is not None:
        return outer | devices.environment(job.device, job.processes, outer)
    # Several processes cannot each reserve most of the memory of a GPU.
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | outer
