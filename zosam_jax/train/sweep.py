"""The training of a sweep: each run in a process of its own, some at a time."""

import contextlib
import os
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
from zosam_jax.train.interruption import Stop, interruptions

# Exit statuses of `zosam train` after which the same command goes on.
_TIME_LIMIT = 75
_SIGNALS = {
    128 + number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
}
_POLL_SECONDS = 0.05


class Process(Protocol):
    """A process that trains a run, as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Returns its exit status; None while it runs."""
        ...

    def wait(self) -> int:
        """Returns its exit status, once it has ended."""
        ...

    def send_signal(self, sig: int, /) -> None:
        """Sends a signal to it."""
        ...


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
    jobs: int,
    start: Callable[[Planned], Process],
    say: Callable[[str], None],
    beside: Mapping[str, Any],
) -> SweepResult:
    """Trains the runs of a sweep that are not finished, and records how each ends.

    A run that fails does not end the others. A first signal is passed on to the
    processes, which write their checkpoints; no further run starts.

    Args:
      plan: The runs.
      path: Folder of the sweep. It is created if it does not exist.
      jobs: Processes at a time.
      start: Starts the process of a run.
      say: Shows a line.
      beside: Further entries of `sweep.json`.

    Raises:
      RunError: The folder of a run holds another run.
    """
    outcomes = {
        each.name: Outcome(sweep.FINISHED if is_done(each) else sweep.WAITING)
        for each in plan
    }
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    return _Sweep(plan, path, outcomes, start, say, beside).train(jobs)


class _Sweep:
    """The runs of a call, and the processes that train now."""

    def __init__(
        self,
        plan: Sequence[Planned],
        path: Path,
        outcomes: dict[str, Outcome],
        start: Callable[[Planned], Process],
        say: Callable[[str], None],
        beside: Mapping[str, Any],
    ):
        self._plan, self._path, self._outcomes = plan, path, outcomes
        self._start, self._say, self._beside = start, say, beside
        self._running: dict[str, tuple[Process, float]] = {}

    def train(self, jobs: int) -> SweepResult:
        """Trains with some processes at a time until all have ended."""
        waiting = [
            x for x in self._plan if self._outcomes[x.name].status != sweep.FINISHED
        ]
        done = len(self._plan) - len(waiting)
        if done:
            self._say(f"{done} of {len(self._plan)} runs are finished already")
        self._record()
        sent = 0
        with interruptions(Stop()) as stop:
            try:
                while self._running or (waiting and not stop.signals):
                    while waiting and len(self._running) < jobs and not stop.signals:
                        self._begin(waiting.pop(0))
                    for number in stop.signals[sent:]:
                        self._send(number)
                        sent += 1
                    self._look()
                    time.sleep(_POLL_SECONDS if self._running else 0)
            except BaseException:
                # A second signal: the processes act at once too.
                self._send(signal.SIGTERM)
                for process, _ in self._running.values():
                    process.wait()
                self._look()
                raise
        number = stop.signals[0] if stop.signals else None
        return SweepResult(self._outcomes, number)

    def _begin(self, planned: Planned) -> None:
        self._running[planned.name] = self._start(planned), time.monotonic()

    def _send(self, number: int) -> None:
        for process, _ in self._running.values():
            # It may have ended a moment ago.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _look(self) -> None:
        """Records the processes that have ended."""
        for planned in self._plan:
            process, began = self._running.get(planned.name, (None, 0.0))
            status = None if process is None else process.poll()
            if status is None:
                continue
            del self._running[planned.name]
            outcome = _outcome(self._path, planned, status)
            self._outcomes[planned.name] = outcome
            self._record()
            self._say(self._line(planned, outcome, time.monotonic() - began))

    def _line(self, planned: Planned, outcome: Outcome, seconds: float) -> str:
        ended = sum(x.status != sweep.WAITING for x in self._outcomes.values())
        found = summary.read(planned.config.folder)
        figures = ""
        if outcome.status == sweep.FINISHED and found is not None:
            figures = f", test accuracy {found['test_accuracy']:.2%}"
        return (
            f"{ended}/{len(self._plan)} {planned.name}: {outcome.status}{figures}, "
            f"{duration(seconds)}"
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


def _outcome(path: Path, planned: Planned, status: int) -> Outcome:
    """Returns how a process ended.

    Args:
      path: Folder of the sweep.
      planned: The run.
      status: Exit status of its process.
    """
    if status == 0:
        return Outcome(sweep.FINISHED)
    if status == _TIME_LIMIT:
        return Outcome(sweep.OUT_OF_TIME)
    if status in _SIGNALS:
        return Outcome(sweep.INTERRUPTED)
    log = log_of(path, planned)
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        said = [x.removeprefix("error: ") for x in lines if x.startswith("error: ")]
        if said:
            return Outcome(sweep.FAILED, said[-1])
    how = f"signal {-status} ended it" if status < 0 else f"its exit status is {status}"
    return Outcome(sweep.FAILED, f"{how}; see {log}.")


def log_of(path: Path, planned: Planned) -> Path:
    """Returns the file of what the process of a run has printed."""
    return path / "logs" / f"{planned.name}.log"


def process(path: Path, planned: Planned, words: Sequence[str] = ()) -> Process:
    """Starts `zosam train` for a run, whose output goes to its log.

    Args:
      path: Folder of the sweep.
      planned: The run.
      words: Further words of its command line.
    """
    given = path / "configs" / f"{planned.name}.json"
    log = log_of(path, planned)
    with explained(path):
        for file in (given, log):
            file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(given, planned.config.record())
        line = [sys.executable, "-m", "zosam_jax", "train", "--config", str(given)]
        # Several processes cannot each reserve most of the memory of a GPU.
        usual = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        with log.open("a") as output:
            return subprocess.Popen(
                [*line, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**usual, **os.environ},
                # Ctrl-C in a terminal reaches this process alone, which passes it on.
                start_new_session=True,
            )
