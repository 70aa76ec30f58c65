"""The training of a run in one process: epochs, records, checkpoints, summary."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from zosam_jax import sparsity
from zosam_jax._types import Params, PyTree
from zosam_jax.runs import files, metrics, summary, trackers
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.runs.progress import Display, Status, duration
from zosam_jax.train import checkpoint, processes
from zosam_jax.train.batch import normalized
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.interruption import Stop
from zosam_jax.train.step import Totals, TrainState, count_weights, evaluated

OnEpoch = Callable[[int, TrainState], bool]

# Steps (or blocks of them) that are dispatched before the host looks at the oldest.
_LAG = 2
# Seconds that a block of compiled steps should take.
_BLOCK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Setup:
    """The constant inputs of the training of a run.

    Attributes:
      config: The configuration: where and how often to save and to log.
      compiled: The programs.
      folder: The run's folder, absolute.
      checkpoints: Its checkpoints, for all processes.
      display: Where to show progress.
      stop: What ends this call before the end of the run.
      on_epoch: Called at the end of every epoch, or None; see `loop.run`.
    """

    config: TrainConfig
    compiled: CompiledRun
    folder: Path
    checkpoints: checkpoint.CheckpointsOfAll
    display: Display
    stop: Stop
    on_epoch: OnEpoch | None

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.compiled.experiment


@dataclasses.dataclass
class _Position:
    """The progress of the training.

    Attributes:
      step: Steps done.
      saved_step: Step of the newest checkpoint.
      sparsity: Fraction of zeros in the sparse layers at the last evaluation.
      test_accuracy: Top-1 accuracy of the last evaluation; None before the first.
      is_stopped: Whether `on_epoch` ended the run.
    """

    step: int
    saved_step: int
    sparsity: float
    test_accuracy: float | None
    is_stopped: bool = False


@dataclasses.dataclass
class _Epoch:
    """The clock of one epoch.

    Attributes:
      number: Number of the epoch, from 0.
      first_step: The step at which this process began it.
      began: When it began, in seconds.
      looked: When progress was shown last.
      ready: When the last block of steps was known to be done.
    """

    number: int
    first_step: int
    began: float
    looked: float
    ready: float


class Session:
    """The training of a run from one step to its end or an interruption.

    Attributes:
      setup: What does not change.
      position: How far the training is.
      epoch: The clock of the current epoch.
      block: Steps of the next compiled block.
      first_step: The step at which this process began.
      started: When it began, in seconds.
      seconds_before: Seconds that earlier processes trained.
      log: The metrics file; None in all processes but the first.
      ending: When all processes stop.
    """

    setup: Setup
    position: _Position
    epoch: _Epoch
    block: int
    first_step: int
    started: float
    seconds_before: float
    log: metrics.MetricsLog | None
    ending: processes.Agreement

    def __init__(self, setup: Setup, state: TrainState, records: Sequence[JSON]):
        """Begins to train.

        Args:
          setup: What does not change.
          state: The state to begin with.
          records: The lines of `metrics.jsonl` up to its step.
        """
        step = int(state.step)
        tests = [r["accuracy"] for r in records if r["split"] == "test"]
        self.setup = setup
        self.position = _Position(
            step=step,
            saved_step=step,
            sparsity=_sparsity(setup, state),
            test_accuracy=tests[-1] if tests else None,
        )
        self.block = 1
        self.first_step = step
        self.started = time.perf_counter()
        self.epoch = _Epoch(0, step, self.started, self.started, self.started)
        self.seconds_before = max((r["seconds"] for r in records), default=0.0)
        self.ending = processes.Agreement()
        self.log = None
        processes.first(self._open_log)

    def _open_log(self) -> None:
        folder, config = self.setup.folder, self.setup.config
        found = None
        if names := config.all_trackers:
            say, step = self.setup.display.message, self.position.step
            found = trackers.Trackers(names, folder, config.record(), step, say)
        self.log = metrics.MetricsLog(folder, found)

    def close(self) -> None:
        """Closes the metrics file."""
        if self.log is not None:
            self.log.close()

    def train(self, state: TrainState) -> TrainState:
        """Returns the state at the end of the run, or where it was interrupted.

        `setup.stop` and `on_epoch` end it early.
        """
        setup, experiment, here = self.setup, self.setup.experiment, self.position
        first, within = divmod(here.step, experiment.steps_per_epoch)
        if not within:
            here.is_stopped = self._is_stopped_at(first, state) and first > 0
        self.started = time.perf_counter()
        for epoch in range(first, first if here.is_stopped else experiment.epochs):
            state, totals, speed = self._train_epoch(state, epoch)
            is_due = False
            if totals and here.step == (epoch + 1) * experiment.steps_per_epoch:
                self._record(state, epoch, totals, speed)
                is_due = (epoch + 1) % setup.config.checkpoint_every == 0
                here.is_stopped = self._is_stopped_at(epoch + 1, state)
            is_last = here.step == experiment.total_steps
            is_end = is_last or here.is_stopped or self._must_stop()
            if here.step > here.saved_step and (is_due or is_end):
                self._save(state)
            if is_end:
                break
        setup.checkpoints.wait()
        return state

    def _is_stopped_at(self, epochs: int, state: TrainState) -> bool:
        """Returns what `on_epoch` says in process 0."""
        if self.setup.on_epoch is None:
            return False
        is_stopped = self.setup.on_epoch(epochs, state)
        return processes.first(lambda: is_stopped)

    def _must_stop(self) -> bool:
        """Whether a signal or the time limit ends this call, in all processes."""
        stop, step = self.setup.stop, self.position.step
        # A limit shorter than one step would otherwise never end the run.
        is_late = stop.is_over and step > self.first_step
        return self.ending.stops(step, bool(stop.signals) or is_late)

    @property
    def is_complete(self) -> bool:
        """Whether the run is at its end, or was stopped by `on_epoch`."""
        here = self.position
        return here.is_stopped or here.step >= self.setup.experiment.total_steps

    def _train_epoch(
        self, state: TrainState, epoch: int
    ) -> tuple[TrainState, Totals | None, float]:
        """Returns state, totals and speed at the end of an epoch or an interruption."""
        setup, here = self.setup, self.position
        begin, now = here.step, time.perf_counter()
        end = (epoch + 1) * setup.experiment.steps_per_epoch
        batches = setup.compiled.batches(begin)
        waiting: collections.deque[tuple[int, Totals]] = collections.deque()
        totals = None
        self.epoch = _Epoch(epoch, begin, now, now, now)
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
        self._check_finite(totals)
        images = (here.step - begin) * setup.experiment.batch_size
        return state, totals, images / (time.perf_counter() - now)

    def _look(self, size: int, totals: Totals) -> None:
        """Waits for an earlier block of steps, and shows progress if it is time to."""
        jax.block_until_ready(totals)
        if processes.are_several():
            # All or none must fail, and only one shows progress.
            self._check_finite(jax.device_get(totals))
        now, experiment = time.perf_counter(), self.setup.experiment
        if experiment.scans:
            per_step = max(now - self.epoch.ready, 1e-6) / size
            self.block = max(1, min(int(_BLOCK_SECONDS / per_step), 2 * self.block))
        self.epoch.ready = now
        if now - self.epoch.looked < self.setup.display.interval:
            return
        self.epoch.looked = now
        totals = jax.device_get(totals)
        self._check_finite(totals)
        done = self.epoch.number * experiment.steps_per_epoch + int(totals.steps)
        images = (done - self.epoch.first_step) * experiment.batch_size
        status = self._status(done, totals, images / (now - self.epoch.began))
        self.setup.display.update(status)

    def _status(self, step: int, totals: Totals, speed: float) -> Status:
        experiment, count = self.setup.experiment, max(int(totals.steps), 1)
        elapsed = time.perf_counter() - self.started
        left = experiment.total_steps - step
        return Status(
            step=step,
            total_steps=experiment.total_steps,
            epoch=self.epoch.number + 1,
            epochs=experiment.epochs,
            loss=float(totals.loss) / count,
            accuracy=float(totals.correct) / (count * experiment.batch_size),
            test_accuracy=self.position.test_accuracy,
            sparsity=self.position.sparsity,
            images_per_second=speed,
            seconds_left=left * elapsed / max(step - self.first_step, 1),
        )

    def _check_finite(self, totals: Totals) -> None:
        if totals.bad_step >= 0 or not math.isfinite(totals.loss):
            self._fail(int(totals.bad_step))

    def _fail(self, step: int) -> None:
        """Raises `RunError` for a loss that is not finite.

        Args:
          step: The step of the loss, or -1 if it is unknown.
        """
        self.setup.checkpoints.wait()
        where = f"at step {step}" if step >= 0 else f"near step {self.position.step}"
        rho = self.setup.experiment.gradient.rho
        now = f" (now {rho:g})" if isinstance(rho, int | float) else ""
        raise RunError(
            f"the loss is not finite {where} (epoch {self.epoch.number + 1}). "
            f"{self.setup.checkpoints.last_good()} Try, with another --out, a lower "
            f"--learning-rate (now {self.setup.config.learning_rate:g}), --clip-norm 1"
            + (f", or a smaller --rho{now}." if rho else ".")
        )

    def _record(
        self, state: TrainState, epoch: int, totals: Totals, speed: float
    ) -> None:
        """Evaluates at the end of an epoch; writes and shows the numbers."""
        setup, here = self.setup, self.position
        tested: dict[str, tuple[float, float]] = {}
        validation = () if setup.experiment.validation is None else ("validation",)
        for split in ("test", *validation):
            tested[split] = setup.compiled.evaluate(state, split)
            if not math.isfinite(tested[split][0]):
                self._fail(-1)
        here.test_accuracy = tested["test"][1]
        here.sparsity = _sparsity(setup, state)
        seconds = self.seconds_before + time.perf_counter() - self.started
        status = self._status(here.step, totals, speed)
        where = {"step": here.step, "epoch": epoch + 1}
        lines = [where | self._training_figures(totals, status, seconds)]
        for split, (loss, accuracy) in tested.items():
            lines.append(
                {
                    **where,
                    "split": split,
                    "loss": loss,
                    "accuracy": accuracy,
                    "sparsity": here.sparsity,
                    "seconds": seconds,
                }
            )
        processes.first(lambda: self._write(lines))
        setup.display.epoch(status)

    def _write(self, lines: Sequence[JSON]) -> None:
        """Appends lines to `metrics.jsonl`."""
        assert self.log is not None
        for line in lines:
            self.log.write(line)

    def _sync(self) -> None:
        assert self.log is not None
        self.log.sync()

    def _training_figures(self, totals: Totals, status: Status, seconds: float) -> JSON:
        """Returns the training line of `metrics.jsonl` for an epoch."""
        experiment, steps = self.setup.experiment, int(totals.steps)
        updates = self.position.step // experiment.accumulate_steps
        rate = experiment.learning_rate
        known: dict[str, float] = {}
        if rate is not None:
            known["learning_rate"] = float(jnp.asarray(rate(max(updates - 1, 0))))
        return {
            "split": "train",
            "loss": status.loss,
            "accuracy": status.accuracy,
            "sparsity": status.sparsity,
            **known,
            "perturbation_norm": float(totals.perturbation_norm) / steps,
            "perturbation_cosine": float(totals.perturbation_cosine) / steps,
            "unperturbed_steps": int(totals.unperturbed),
            "images_per_second": status.images_per_second,
            "seconds": seconds,
        }

    def _save(self, state: TrainState) -> None:
        saved = checkpoint.snapshot(state)
        if not checkpoint.is_finite((saved.params, saved.model_state)):
            self._fail(-1)
        # A power cut must not leave a checkpoint of epochs without metrics.
        processes.first(self._sync)
        self.setup.checkpoints.save(self.position.step, saved)
        self.position.saved_step = self.position.step

    def summarize(self, state: TrainState) -> JSON:
        """Writes `summary.json`, shows its numbers, and returns its contents."""
        show, memorized = self.setup.display, self._memorized(state)
        score = self.setup.experiment.facts.score
        found = processes.first(lambda: self._summary(state, memorized))
        show.message(
            f"{found['status']}: test {score} {found['test_accuracy']:.2%} at "
            f"sparsity {found['sparsity']:.2%} in {duration(found['seconds'])} and "
            f"{found['compile_seconds']:.0f} s of compilation"
        )
        if "selected_epoch" in found:
            show.message(
                f"the held-out images choose epoch {found['selected_epoch']}: test "
                f"{score} {found['selected_test_accuracy']:.2%}"
            )
        return found

    def _summary(
        self, state: TrainState, memorized: tuple[float, float] | None
    ) -> JSON:
        """Writes `summary.json` and returns its contents."""
        setup = self.setup
        if processes.are_several():
            # Process 0 computes alone.
            state = checkpoint.snapshot(state)
        found = summary.summarize(
            metrics.read(setup.folder / "metrics.jsonl"),
            step=self.position.step,
            steps_per_epoch=setup.experiment.steps_per_epoch,
            status="stopped" if self.position.is_stopped else "finished",
            counts={
                **count_weights(setup.experiment, state),
                **_removable(setup.experiment, state),
                **_costs(setup.experiment, state),
            },
            memorized=memorized,
            compile_seconds=setup.compiled.compile_seconds,
        )
        files.write_json(setup.folder / "summary.json", found)
        return found

    def _memorized(self, state: TrainState) -> tuple[float, float] | None:
        """Returns the training accuracies on the given labels and on the clean ones.

        None without label noise.
        """
        setup = self.setup
        if setup.experiment.clean_labels is None:
            return None
        _, given = setup.compiled.evaluate(state, "train")
        _, clean = setup.compiled.evaluate(state, "train_clean")
        setup.display.message(
            f"training images: accuracy {given:.2%} on the given labels, {clean:.2%} "
            "on the clean ones"
        )
        return given, clean


def _sparsity(setup: Setup, state: TrainState) -> float:
    return float(count_weights(setup.experiment, state)["sparsity"])


def _costs(experiment: Experiment, state: TrainState) -> JSON:
    """Returns the densities of layers and the share of FLOPs, for `summary.json`.

    "layers" has the density of each sparse layer by its path; a dense network has none.
    "flops_share" is the FLOPs of a forward pass, as `zs.sparsity.report`
    counts them, divided by those of the dense network.
    """
    if experiment.method is None:
        return {"layers": {}, "flops_share": 1.0}
    params, model_state = evaluated(state)
    example, _ = experiment.example

    def forward(params: Params) -> PyTree:
        raw = jnp.zeros((1, *example.shape), example.dtype)
        variables = {"params": params, **model_state}
        inputs = normalized(experiment, raw)
        return experiment.model.apply(variables, inputs, train=False)

    masks = sparsity.masks(state.opt_state)
    found = sparsity.report(params, masks, forward=forward, method=experiment.method)
    dense, sparse = found.inference_dense, found.inference_sparse
    return {
        "layers": {row.path: row.density for row in found.rows if row.sparse},
        # A network without products of weights has no FLOPs to save.
        "flops_share": sparse / dense if sparse and dense else 1.0,
    }


def _removable(experiment: Experiment, state: TrainState) -> dict[str, int]:
    """Returns the number of parameters of units that nothing reads.

    `zs.sparsity.compact` would cut them out. Empty for a dense run, and for a model
    that does not say where its units are.
    """
    model = experiment.model
    if experiment.method is None or not hasattr(model, "cuts"):
        return {}
    masks = sparsity.masks(state.opt_state)
    found = sparsity.removable(state.params, masks, model.cuts())
    return {"parameters_removable": sum(found.values())}
