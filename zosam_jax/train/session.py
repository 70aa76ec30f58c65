"""The training of a run in one process: its steps, epochs and ends."""

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

from zosam_jax.runs.files import JSON
from zosam_jax.train import processes
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.interruption import Stop
from zosam_jax.train.step import Totals, TrainState

if TYPE_CHECKING:
    from zosam_jax.train.cutting import Cut
    from zosam_jax.train.recording import Output, Recording

OnEpoch = Callable[[int, TrainState], bool]

# Steps (or blocks of them) that are dispatched before the host looks at the oldest.
_LAG = 2
# Seconds that a block of compiled steps should take.
_BLOCK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Setup:
    """The constant inputs of the training of a run.

    Attributes:
      output: What the run is, and where its record goes.
      compiled: The programs of its experiment.
      stop: What ends this call before the end of the run.
      on_epoch: Called at the end of every epoch, or None; see `loop.run`.
      cut: Cuts out units that have no future; None: the network stays as it is.
    """

    output: "Output"
    compiled: CompiledRun
    stop: Stop
    on_epoch: OnEpoch | None
    cut: "Callable[[CompiledRun, TrainState], Cut | None] | None" = None

    def narrowed(self, compiled: CompiledRun) -> "Setup":
        """Returns the setup with the programs of a smaller network."""
        output = dataclasses.replace(self.output, experiment=compiled.experiment)
        return dataclasses.replace(self, output=output, compiled=compiled)

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.compiled.experiment


@dataclasses.dataclass
class _Epoch:
    """The clock of one epoch.

    Attributes:
      first_step: The step at which this process began it.
      began: When it began, in seconds.
      looked: When progress was shown last.
      ready: When the last block of steps was known to be done.
    """

    first_step: int
    began: float
    looked: float
    ready: float


class Session:
    """The training of a run from one step to its end or an interruption.

    Attributes:
      setup: What does not change.
      recording: Its record, and how far it is.
      is_stopped: Whether `on_epoch` ended the run.
      epoch: The clock of the current epoch.
      block: Steps of the next compiled block.
      ending: When all processes stop.
    """

    setup: Setup
    recording: "Recording"
    is_stopped: bool
    epoch: _Epoch
    block: int
    ending: processes.Agreement

    def __init__(self, setup: Setup, recording: "Recording"):
        """Begins to train.

        Args:
          setup: What does not change.
          recording: The record of the run, up to the step to begin with.
        """
        self.setup = setup
        self.recording = recording
        self.is_stopped = False
        self.block = 1
        now = time.perf_counter()
        self.epoch = _Epoch(recording.step, now, now, now)
        self.ending = processes.Agreement()

    def train(self, state: TrainState) -> TrainState:
        """Returns the state at the end of the run, or where it was interrupted.

        `setup.stop` and `on_epoch` end it early.
        """
        setup, experiment, here = self.setup, self.setup.experiment, self.recording
        first, within = divmod(here.step, experiment.steps_per_epoch)
        if not within:
            self.is_stopped = self._is_stopped_at(first, state) and first > 0
        here.started = time.perf_counter()
        for epoch in range(first, first if self.is_stopped else experiment.epochs):
            state, totals, speed = self._train_epoch(state, epoch)
            is_due = False
            is_whole = here.step == (epoch + 1) * experiment.steps_per_epoch
            if totals and is_whole:
                here.end_epoch(state, totals, speed, self._tested(state))
                is_due = (epoch + 1) % setup.output.config.checkpoint_every == 0
                self.is_stopped = self._is_stopped_at(epoch + 1, state)
            is_last = here.step == experiment.total_steps
            is_end = is_last or self.is_stopped or self._must_stop()
            # What resumes from here must be what would have gone on.
            if is_whole and not (is_last or self.is_stopped):
                state = self._narrowed(state, epoch + 1, goes_on=not is_end)
            if here.step > here.saved_step and (is_due or is_end):
                here.save(state)
            if is_end:
                break
        setup.output.checkpoints.wait()
        return state

    def _narrowed(self, state: TrainState, epochs: int, *, goes_on: bool) -> TrainState:
        """Returns the state after a cut, if one is due and worth it.

        Args:
          state: The state at the end of an epoch.
          epochs: Epochs done.
          goes_on: Whether this call trains on.
        """
        cut, every = self.setup.cut, self.setup.output.config.compact_every
        if cut is None or every is None or epochs % every:
            return state
        began = time.perf_counter()
        found = cut(self.setup.compiled, state)
        if found is None:
            return state
        self.setup = self.setup.narrowed(found.compiled)
        self.recording.output = self.setup.output
        compiled, show = found.compiled, self.setup.output.display
        if goes_on:
            compiled.compile()
        seconds = time.perf_counter() - began
        self.recording.started += seconds
        show.message(f"{found.said}; compiled in {seconds:.1f} s")
        return compiled.place(found.state)

    def _is_stopped_at(self, epochs: int, state: TrainState) -> bool:
        """Returns what `on_epoch` says in process 0."""
        if self.setup.on_epoch is None:
            return False
        is_stopped = self.setup.on_epoch(epochs, state)
        return processes.first(lambda: is_stopped)

    def _must_stop(self) -> bool:
        """Whether a signal or the time limit ends this call, in all processes."""
        stop, step = self.setup.stop, self.recording.step
        # A limit shorter than one step would otherwise never end the run.
        is_late = stop.is_over and step > self.recording.first_step
        return self.ending.stops(step, bool(stop.signals) or is_late)

    @property
    def is_complete(self) -> bool:
        """Whether the run is at its end, or was stopped by `on_epoch`."""
        total = self.setup.experiment.total_steps
        return self.is_stopped or self.recording.step >= total

    def _train_epoch(
        self, state: TrainState, epoch: int
    ) -> tuple[TrainState, Totals | None, float]:
        """Returns state, totals and speed at the end of an epoch or an interruption."""
        setup, here = self.setup, self.recording
        begin, now = here.step, time.perf_counter()
        end = (epoch + 1) * setup.experiment.steps_per_epoch
        batches = setup.compiled.batches(begin)
        waiting: collections.deque[tuple[int, Totals]] = collections.deque()
        totals = None
        here.epoch, self.epoch = epoch, _Epoch(begin, now, now, now)
        while here.step < end and not self._must_stop():
            stop = min(here.step + self.block, end)
            state, totals = setup.compiled.advance(state, next(batches), stop)
            waiting.append((stop - here.step, totals))
            here.step = stop
            if len(waiting) > _LAG:
                self._look(*waiting.popleft())
        batches.close()
        if totals is None:
            return state, None, 0.0
        totals = jax.device_get(totals)
        here.check_finite(totals)
        images = (here.step - begin) * setup.experiment.batch_size
        return state, totals, images / (time.perf_counter() - now)

    def _look(self, size: int, totals: Totals) -> None:
        """Waits for an earlier block of steps, and shows progress if it is time to."""
        jax.block_until_ready(totals)
        if processes.are_several():
            # All or none must fail, and only one shows progress.
            self.recording.check_finite(jax.device_get(totals))
        now, experiment = time.perf_counter(), self.setup.experiment
        if experiment.scans:
            per_step = max(now - self.epoch.ready, 1e-6) / size
            self.block = max(1, min(int(_BLOCK_SECONDS / per_step), 2 * self.block))
        self.epoch.ready = now
        if now - self.epoch.looked < self.setup.output.display.interval:
            return
        self.epoch.looked = now
        totals = jax.device_get(totals)
        self.recording.check_finite(totals)
        number = self.recording.epoch
        done = number * experiment.steps_per_epoch + int(totals.steps)
        images = (done - self.epoch.first_step) * experiment.batch_size
        speed = images / (now - self.epoch.began)
        self.setup.output.display.update(self.recording.status(done, totals, speed))

    def _tested(self, state: TrainState) -> dict[str, dict[str, float]]:
        """Returns the figures on the test set and the held-out images, if any."""
        held_out = self.setup.experiment.validation is not None
        splits = ("test", "validation") if held_out else ("test",)
        return {split: self.setup.compiled.evaluate(state, split) for split in splits}

    def summarize(self, state: TrainState) -> JSON:
        """Writes `summary.json`, shows its numbers, and returns its contents."""
        compiled, memorized = self.setup.compiled, None
        if self.setup.experiment.clean_labels is not None:
            given = compiled.evaluate(state, "train")
            clean = compiled.evaluate(state, "train_clean")
            memorized = given["accuracy"], clean["accuracy"]
        status = "stopped" if self.is_stopped else "finished"
        return self.recording.summarize(
            state, memorized, compiled.compile_seconds, status=status
        )
