"""A run from its configuration to its summary: the host's side of training."""

import collections
import contextlib
import dataclasses
import errno
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from zosam_jax import data
from zosam_jax.runs import files, folder, metrics, summary
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.progress import Display, Silent, Status, duration
from zosam_jax.train import checkpoint, gradients, methods, optimizer
from zosam_jax.train.interruption import interruptions
from zosam_jax.train.plan import plan
from zosam_jax.train.programs import Programs
from zosam_jax.train.step import Totals, TrainState, count_weights

# Steps (or blocks of them) that are dispatched before the host looks at the oldest.
_LAG = 2
# Seconds that a block of compiled steps should take.
_BLOCK_SECONDS = 1.0


class Result(NamedTuple):
    """How a call of `run` ended.

    Attributes:
      folder: The run's folder.
      status: "finished", "stopped" (by `on_epoch`), "unchanged" (it was one of these
        before), or "interrupted".
      summary: The contents of `summary.json`; None where interrupted.
      signal: The signal that came in during the run, else None.
    """

    folder: Path
    status: str
    summary: dict[str, Any] | None
    signal: int | None = None


def run(
    config: TrainConfig,
    *,
    dataset: data.Dataset | data.Streamed | None = None,
    model: Any = None,
    display: Display | None = None,
    command: Sequence[str] | None = None,
    programs: Programs | None = None,
    start: TrainState | None = None,
    on_epoch: Callable[[int, TrainState], bool] | None = None,
) -> Result:
    """Trains as the configuration says, and leaves a run folder.

    A run that is in the folder already goes on from its last complete checkpoint, to
    the same numbers bit for bit on the same machine and software. SIGINT and SIGTERM
    end the step, write a checkpoint and return; a second one acts at once.

    Args:
      config: The configuration.
      dataset: Images to train on instead of those that `config.dataset` names.
      model: A Linen module, called with `(images, train=...)`, instead of the one that
        `config.model` names.
      display: Where to show what happens. Default: nowhere.
      command: The command line, for the record.
      programs: Those of `config`, instead of new ones for `dataset` and `model`; see
        `Programs.again`.
      start: A state of another run, as NumPy arrays, to begin with instead of the
        initial one; training goes on from its step. Not read where the run resumes.
      on_epoch: Called with the number of epochs done and the state: before the first
        step, and after every epoch, before its checkpoint is written. True ends the run
        there, if a step was done. A run that resumes repeats the calls from its
        checkpoint on.

    Raises:
      RunError: The run cannot start or go on; the message says what would work.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    show = display or Silent()
    folder.check(config)
    finished = folder.read_summary(config)
    if finished is not None:
        show.message(
            f"{config.folder} is finished already, at test accuracy "
            f"{finished['test_accuracy']:.2%}; --overwrite would start anew."
        )
        return Result(config.folder, "unchanged", finished)
    programs = programs or plan(config, dataset, model)
    needed = (config.keep + 2) * checkpoint.size_in_bytes(programs.abstract)
    folder.check_space(config, needed)
    with (
        folder.claim(config) as path,
        interruptions() as received,
        contextlib.closing(show),
        contextlib.closing(
            checkpoint.Checkpoints(path / "checkpoints", config.keep)
        ) as checkpoints,
        _full_disks(path, checkpoints),
    ):
        session = _Session(programs, path, checkpoints, show, received, start, on_epoch)
        return session.run(command)


@contextlib.contextmanager
def _full_disks(path: Path, checkpoints: checkpoint.Checkpoints) -> Iterator[None]:
    """Says what is left where a file could not be written for lack of room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"the disk of {path} is full. {checkpoints.last_good()} Make room and run "
            "the same command again."
        ) from error


@dataclasses.dataclass
class _Session:
    """One process at work on a run."""

    programs: Programs
    path: Path
    checkpoints: checkpoint.Checkpoints
    show: Display
    received: list[int]
    begin: TrainState | None
    on_epoch: Callable[[int, TrainState], bool] | None

    def run(self, command: Sequence[str] | None) -> Result:
        self.config = self.programs.task.config
        self.schedule = optimizer.learning_rate(
            self.config, self.programs.task.optimizer_steps
        )
        state = self._start(command)
        self.log = metrics.MetricsLog(
            self.path, tensorboard=self.config.tensorboard, step=self.first_step
        )
        try:
            state = self._train(state)
        finally:
            self.log.close()
        number = self.received[0] if self.received else None
        if self.step < self.programs.task.total_steps and not self.is_stopped:
            self.show.message(
                f"interrupted at step {self.step}. {self.checkpoints.last_good()} The "
                "same command goes on from here."
            )
            return Result(self.path, "interrupted", None, number)
        figures = self._summarize(state)
        return Result(self.path, figures["status"], figures, number)

    def _start(self, command: Sequence[str] | None) -> TrainState:
        """Compiles, and returns the state to start from: restored, or new."""
        programs, show = self.programs, self.show
        restored = self.checkpoints.restore(programs.abstract, show.message)
        given = self.begin if restored is None else restored
        step = 0 if given is None else int(given.step)
        devices = {
            "backend": jax.default_backend(),
            "device": jax.local_devices()[0].device_kind,
            "devices": jax.local_device_count(),
        }
        changes = folder.write_config(self.path, self.config, command, step, devices)
        show.message(self._headline())
        advice = methods.advice(self.config, programs.task.optimizer_steps)
        if advice:
            show.message(advice)
        if restored is not None:
            show.message(f"resuming at step {step} of {programs.task.total_steps}")
        if restored is not None and changes:
            show.message(
                "not as in the session before, so the last digits may differ: "
                + ", ".join(changes)
            )
        if not programs.is_compiled:
            show.message("compiling")
        programs.compile()
        state = programs.init() if given is None else programs.place(given)
        self.step = self.first_step = self.saved_step = step
        kept = metrics.cut(self.path / "metrics.jsonl", step)
        self.seconds_before = max((r["seconds"] for r in kept), default=0.0)
        tests = [r["accuracy"] for r in kept if r["split"] == "test"]
        self.test_accuracy = tests[-1] if tests else None
        self.sparsity = count_weights(state, self.config.method)["sparsity"]
        total = sum(programs.compile_seconds.values())
        show.message(f"compiled in {total:.1f} s")
        self.block = 1
        self.is_stopped = False
        epochs, within = divmod(step, programs.task.steps_per_epoch)
        if self.on_epoch is not None and not within:
            self.is_stopped = self.on_epoch(epochs, state) and epochs > 0
        self.started = time.perf_counter()
        return state

    def _headline(self) -> str:
        task, c = self.programs.task, self.config
        count = sum(x.size for x in jax.tree.leaves(self.programs.abstract.params))
        sparse = "" if c.method == "dense" else f" at sparsity {c.sparsity:g}"
        examples = "images" if task.dataset.kind == "image" else "sequences"
        return (
            f"{c.dataset}: {task.dataset.num_train:,} training and "
            f"{task.dataset.num_test:,} test {examples}; {c.model} with {count:,} "
            f"parameters; {c.method}{sparse}, {c.gradient}, {c.optimizer}; "
            f"{task.mesh.size} x {jax.local_devices()[0].device_kind}; {self.path}"
        )

    def _train(self, state: TrainState) -> TrainState:
        task = self.programs.task
        first = self.step // task.steps_per_epoch
        for epoch in range(first, first if self.is_stopped else self.config.epochs):
            state, totals, speed = self._epoch(state, epoch)
            is_last = self.step == task.total_steps
            is_due = False
            if totals and self.step == (epoch + 1) * task.steps_per_epoch:
                self._record(state, epoch, totals, speed)
                is_due = (epoch + 1) % self.config.checkpoint_every == 0
                if self.on_epoch is not None:
                    self.is_stopped = self.on_epoch(epoch + 1, state)
            is_end = is_last or self.is_stopped or bool(self.received)
            if self.step > self.saved_step and (is_due or is_end):
                self._save(state)
            if is_end:
                break
        self.checkpoints.wait()
        return state

    def _epoch(
        self, state: TrainState, epoch: int
    ) -> tuple[TrainState, Totals | None, float]:
        """Trains to the end of an epoch, or to an interruption."""
        programs, begin = self.programs, self.step
        end = (epoch + 1) * programs.task.steps_per_epoch
        batches = programs.batches(begin)
        waiting: collections.deque[tuple[int, Totals]] = collections.deque()
        totals = None
        self.epoch, self.epoch_began = epoch, time.perf_counter()
        self.epoch_step = begin
        self.looked = self.ready = self.epoch_began
        while self.step < end and not self.received:
            stop = min(self.step + self.block, end)
            state, totals = programs.advance(state, next(batches), stop)
            waiting.append((stop - self.step, totals))
            self.step = stop
            if len(waiting) > _LAG:
                self._look(*waiting.popleft())
        batches.close()
        if totals is None:
            return state, None, 0.0
        totals = jax.device_get(totals)
        self._check_finite(totals)
        elapsed = time.perf_counter() - self.epoch_began
        return state, totals, (self.step - begin) * self.config.batch_size / elapsed

    def _look(self, size: int, totals: Totals) -> None:
        """Waits for an earlier block of steps, and shows it if it is time to."""
        jax.block_until_ready(totals)
        now = time.perf_counter()
        if self.programs.scans:
            per_step = max(now - self.ready, 1e-6) / size
            self.block = max(1, min(int(_BLOCK_SECONDS / per_step), 2 * self.block))
        self.ready = now
        if now - self.looked < self.show.interval:
            return
        self.looked = now
        totals = jax.device_get(totals)
        self._check_finite(totals)
        spe = self.programs.task.steps_per_epoch
        done = self.epoch * spe + int(totals.steps)
        speed = (done - self.epoch_step) * self.config.batch_size
        self.show.update(self._status(done, totals, speed / (now - self.epoch_began)))

    def _status(self, step: int, totals: Totals, speed: float) -> Status:
        task, count = self.programs.task, max(int(totals.steps), 1)
        elapsed = time.perf_counter() - self.started
        left = (task.total_steps - step) * elapsed / max(step - self.first_step, 1)
        return Status(
            step=step,
            total_steps=task.total_steps,
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            loss=float(totals.loss) / count,
            accuracy=float(totals.correct) / (count * self.config.batch_size),
            test_accuracy=self.test_accuracy,
            sparsity=self.sparsity,
            images_per_second=speed,
            seconds_left=left,
        )

    def _check_finite(self, totals: Totals) -> None:
        if totals.bad_step >= 0 or not math.isfinite(totals.loss):
            self._fail(int(totals.bad_step))

    def _fail(self, step: int) -> None:
        self.checkpoints.wait()
        where = f"at step {step}" if step >= 0 else f"near step {self.step}"
        rho = gradients.radius(self.config)
        raise RunError(
            f"the loss is not finite {where} (epoch {self.epoch + 1}). "
            f"{self.checkpoints.last_good()} Try, with another --out, a lower "
            f"--learning-rate (now {self.config.learning_rate:g}), --clip-norm 1"
            + (f", or a smaller --rho (now {rho:g})." if rho else ".")
        )

    def _record(
        self, state: TrainState, epoch: int, totals: Totals, speed: float
    ) -> None:
        """Evaluates at the end of an epoch, and writes and shows the figures."""
        tested = {}
        for split in ("test", *self._validation):
            tested[split] = self.programs.evaluate(state, split)
            if not math.isfinite(tested[split][0]):
                self._fail(-1)
        self.test_accuracy = tested["test"][1]
        self.sparsity = count_weights(state, self.config.method)["sparsity"]
        seconds = self.seconds_before + time.perf_counter() - self.started
        status = self._status(self.step, totals, speed)
        where = {"step": self.step, "epoch": epoch + 1}
        steps = int(totals.steps)
        updates = self.step // self.config.accumulate_steps
        self.log.write(
            {
                **where,
                "split": "train",
                "loss": status.loss,
                "accuracy": status.accuracy,
                "sparsity": self.sparsity,
                "learning_rate": float(self.schedule(max(updates - 1, 0))),
                "perturbation_norm": float(totals.perturbation_norm) / steps,
                "perturbation_cosine": float(totals.perturbation_cosine) / steps,
                "unperturbed_steps": int(totals.unperturbed),
                "images_per_second": speed,
                "seconds": seconds,
            }
        )
        for split, (loss, accuracy) in tested.items():
            self.log.write(
                {
                    **where,
                    "split": split,
                    "loss": loss,
                    "accuracy": accuracy,
                    "sparsity": self.sparsity,
                    "seconds": seconds,
                }
            )
        self.show.epoch(status)

    def _save(self, state: TrainState) -> None:
        saved = checkpoint.snapshot(state)
        if not checkpoint.is_finite((saved.params, saved.model_state)):
            self._fail(-1)
        self.checkpoints.save(self.step, saved)
        self.saved_step = self.step

    def _summarize(self, state: TrainState) -> dict[str, Any]:
        """Writes `summary.json` and returns its contents."""
        found = summary.summarize(
            metrics.read(self.path / "metrics.jsonl"),
            step=self.step,
            steps_per_epoch=self.programs.task.steps_per_epoch,
            status="stopped" if self.is_stopped else "finished",
            counts=count_weights(state, self.config.method),
            compile_seconds=self.programs.compile_seconds,
        )
        files.write_json(self.path / "summary.json", found)
        self.show.message(
            f"{found['status']}: test accuracy {found['test_accuracy']:.2%} at "
            f"sparsity {found['sparsity']:.2%} in {duration(found['seconds'])} and "
            f"{found['compile_seconds']:.0f} s of compilation"
        )
        if "selected_epoch" in found:
            self.show.message(
                f"the held-out images choose epoch {found['selected_epoch']}: test "
                f"accuracy {found['selected_test_accuracy']:.2%}"
            )
        return found

    @property
    def _validation(self) -> tuple[str, ...]:
        return () if self.programs.task.validation is None else ("validation",)
