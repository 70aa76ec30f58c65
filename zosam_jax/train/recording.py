"""The record that a training leaves in its folder: metrics, checkpoints, summary."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import sparsity, tree
from zosam_jax.runs import files, folder, metrics, summary, trackers
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import Divergence
from zosam_jax.runs.files import JSON
from zosam_jax.runs.progress import Display, Status, duration
from zosam_jax.train import checkpoint, divergence, forward, processes, scores
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.step import Cosines, Totals, TrainState, count_weights, evaluated


@dataclasses.dataclass(frozen=True)
class Output:
    """What a run is, and where its record goes.

    Attributes:
      config: The configuration: where and how often to save and to log.
      experiment: The experiment.
      folder: The run's folder, absolute.
      checkpoints: Its checkpoints, for all processes.
      display: Where to show progress.
    """

    config: TrainConfig
    experiment: Experiment
    folder: Path
    checkpoints: checkpoint.CheckpointsOfAll
    display: Display


class Recording:
    """The record of a training, from one step to its end or an interruption.

    Attributes:
      output: Where it goes.
      step: Steps done.
      epoch: Number of the epoch in progress, from 0.
      saved_step: Step of the newest checkpoint.
      sparsity: Fraction of zeros in the sparse layers at the last evaluation.
      test_accuracy: Score of the last evaluation; None before the first.
      first_step: The step at which this process began.
      started: When it began, in seconds; later by those of compilations since then.
      seconds_before: Seconds that earlier processes trained.
    """

    def __init__(self, output: Output, state: TrainState, records: Sequence[JSON]):
        """Opens the metrics file.

        Args:
          output: Where the record goes.
          state: The state to begin with.
          records: The lines of `metrics.jsonl` up to its step.
        """
        tests = [r["accuracy"] for r in records if r["split"] == "test"]
        self.output = output
        self.step = self.first_step = self.saved_step = int(state.step)
        self.epoch = 0
        self.sparsity = self._sparsity(state)
        self.test_accuracy: float | None = tests[-1] if tests else None
        self.started = time.perf_counter()
        # A session may have ended within an epoch, after the last record.
        ended = processes.first(lambda: folder.seconds_at(output.folder, self.step))
        self.seconds_before: float = max([ended, *(r["seconds"] for r in records)])
        # None in all processes but the first.
        self._log: metrics.MetricsLog | None = None
        processes.first(self._open_log)

    def _open_log(self) -> None:
        place, config = self.output.folder, self.output.config
        found = None
        if names := config.all_trackers:
            say = self.output.display.message
            found = trackers.Trackers(names, place, config.record(), self.step, say)
        self._log = metrics.MetricsLog(place, found)

    def close(self) -> None:
        """Closes the metrics file."""
        if self._log is not None:
            self._log.close()

    @property
    def _seconds(self) -> float:
        """Seconds of training, with those of earlier processes."""
        return self.seconds_before + time.perf_counter() - self.started

    def note_end(self) -> None:
        """Writes where and when this process ends, for the clock of the next one."""
        step, seconds, place = self.step, self._seconds, self.output.folder
        processes.first(lambda: folder.end_session(place, step, seconds))

    def _sparsity(self, state: TrainState) -> float:
        return float(count_weights(self.output.experiment, state)["sparsity"])

    def status(self, step: int, totals: Totals, speed: float) -> Status:
        """Returns what a display shows of the training.

        Args:
          step: Steps done.
          totals: The sums over the epoch, as NumPy arrays.
          speed: Images per second.
        """
        experiment, count = self.output.experiment, max(int(totals.steps), 1)
        examples = count * experiment.batch_size
        elapsed = time.perf_counter() - self.started
        left = experiment.total_steps - step
        return Status(
            step=step,
            total_steps=experiment.total_steps,
            epoch=self.epoch + 1,
            epochs=experiment.epochs,
            loss=float(totals.loss) / count,
            accuracy=scores.figures(experiment, totals.correct, examples)["accuracy"],
            test_accuracy=self.test_accuracy,
            sparsity=self.sparsity,
            images_per_second=speed,
            seconds_left=left * elapsed / max(step - self.first_step, 1),
        )

    def check_finite(self, totals: Totals) -> None:
        """Raises `Divergence` if a loss of the run was not finite.

        Args:
          totals: The sums over the epoch, as NumPy arrays.
        """
        if totals.bad_step >= 0 or not math.isfinite(totals.loss):
            self._fail(int(totals.bad_step))

    def _fail(self, step: int) -> None:
        """Raises `Divergence` for a loss that is not finite.

        Args:
          step: The step of the loss, or -1 if it is unknown.
        """
        output = self.output
        output.checkpoints.wait()
        where = f"at step {step}" if step >= 0 else f"near step {self.step}"
        raise Divergence(
            f"the loss is not finite {where} (epoch {self.epoch + 1}). "
            f"{output.checkpoints.last_good()} "
            f"{divergence.advice(output.config, output.experiment)}"
        )

    def end_epoch(
        self,
        state: TrainState,
        totals: Totals,
        speed: float,
        tested: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Writes and shows the numbers of an epoch.

        Args:
          state: The state at its end.
          totals: Its sums, as NumPy arrays.
          speed: Images per second.
          tested: Loss, accuracy and perhaps other figures, by split: "test" and perhaps
            "validation".

        Raises:
          Divergence: A loss is not finite.
        """
        if not all(math.isfinite(found["loss"]) for found in tested.values()):
            self._fail(-1)
        self.test_accuracy = tested["test"]["accuracy"]
        self.sparsity = self._sparsity(state)
        seconds = self._seconds
        status = self.status(self.step, totals, speed)
        where = {"step": self.step, "epoch": self.epoch + 1}
        lines = [where | self._training_figures(totals, status, seconds)]
        rest = {"sparsity": self.sparsity, "seconds": seconds}
        for split, found in tested.items():
            lines.append({**where, "split": split, **found, **rest})
        processes.first(lambda: self._write(lines))
        self.output.display.epoch(status)

    def _write(self, lines: Sequence[JSON]) -> None:
        """Appends lines to `metrics.jsonl`."""
        assert self._log is not None
        for line in lines:
            self._log.write(line)

    def _sync(self) -> None:
        assert self._log is not None
        self._log.sync()

    def _training_figures(self, totals: Totals, status: Status, seconds: float) -> JSON:
        """Returns the training line of `metrics.jsonl` for an epoch."""
        experiment, steps = self.output.experiment, int(totals.steps)
        updates = self.step // experiment.accumulate_steps
        rate = experiment.learning_rate
        known: dict[str, float] = {}
        if rate is not None:
            known["learning_rate"] = float(jnp.asarray(rate(max(updates - 1, 0))))
        cosines = totals.cosines
        # The first step of a run has none before it.
        if isinstance(cosines, Cosines) and cosines.steps:
            known["successive_cosine"] = float(cosines.sum) / int(cosines.steps)
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

    def save(self, state: TrainState) -> None:
        """Starts to write a checkpoint.

        Raises:
          RunError: A weight is not finite, or the checkpoint could not be written.
        """
        saved = checkpoint.snapshot(state)
        if not checkpoint.is_finite((saved.params, saved.model_state)):
            self._fail(-1)
        # A power cut must not leave a checkpoint of epochs without metrics.
        processes.first(self._sync)
        network = self.output.experiment.network
        self.output.checkpoints.save(self.step, saved, network)
        self.saved_step = self.step

    def summarize(
        self,
        state: TrainState,
        memorized: tuple[float, float] | None,
        compile_seconds: Mapping[str, float],
        *,
        status: str,
    ) -> JSON:
        """Writes `summary.json`, shows its numbers, and returns its contents.

        Args:
          state: The last state.
          memorized: With label noise, the accuracies on the training images with the
            given labels and with the clean ones; else None.
          compile_seconds: Compilation time in seconds, by program.
          status: "finished" or "stopped".
        """
        show, score = self.output.display, self.output.experiment.facts.score
        if memorized is not None:
            show.message(
                f"training images: accuracy {memorized[0]:.2%} on the given labels, "
                f"{memorized[1]:.2%} on the clean ones"
            )
        if processes.are_several():
            # Process 0 computes alone.
            state = checkpoint.snapshot(state)
        found = processes.first(
            lambda: self._summary(state, memorized, compile_seconds, status)
        )
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
        self,
        state: TrainState,
        memorized: tuple[float, float] | None,
        compile_seconds: Mapping[str, float],
        status: str,
    ) -> JSON:
        """Writes `summary.json` and returns its contents."""
        place, experiment = self.output.folder, self.output.experiment
        found = summary.summarize(
            metrics.read(place / "metrics.jsonl"),
            step=self.step,
            steps_per_epoch=experiment.steps_per_epoch,
            status=status,
            counts={
                **count_weights(experiment, state),
                **_removable(experiment, state),
                **_costs(experiment, state),
            },
            memorized=memorized,
            compile_seconds=compile_seconds,
        )
        files.write_json(place / "summary.json", found)
        return found


def _costs(experiment: Experiment, state: TrainState) -> JSON:
    """Returns the densities of layers and the share of FLOPs, for `summary.json`.

    "layers" has the density of each sparse layer by its path; a dense network has none.
    "flops_share" is the FLOPs of a forward pass, as `zs.sparsity.report`
    counts them, divided by those of the dense network.
    """
    if experiment.method is None:
        return {"layers": {}, "flops_share": 1.0}
    params, model_state = evaluated(state)
    found = sparsity.report(
        params,
        sparsity.masks(state.opt_state),
        forward=forward.of_example(experiment, model_state),
        method=experiment.method,
    )
    dense, sparse = found.inference_dense, found.inference_sparse
    layers = {row.path: row.density for row in found.rows if row.sparse}
    if experiment.whole is not None:
        # What was cut out is pruned. A multiply-add is two FLOPs.
        dense = 2.0 * forward.macs(experiment.whole)
        before, now = map(_sizes, (experiment.whole, experiment))
        layers = {
            path: density * now[path] / before[path] for path, density in layers.items()
        }
    return {
        "layers": layers,
        # A network without products of weights has no FLOPs to save.
        "flops_share": sparse / dense if sparse and dense else 1.0,
    }


def _sizes(experiment: Experiment) -> dict[str, int]:
    """Returns the number of weights of each parameter, by path."""
    params, _ = experiment.shapes
    return dict(
        zip(tree.paths(params), map(np.size, jax.tree.leaves(params)), strict=True)
    )


def _removable(experiment: Experiment, state: TrainState) -> dict[str, int]:
    """Returns the number of parameters of units that nothing reads.

    `zs.sparsity.compact` would cut them out, or the training has done so. Empty for a
    dense run, and for a model that does not say where its units are.
    """
    model = experiment.model
    if experiment.method is None or not hasattr(model, "cuts"):
        return {}
    masks = sparsity.masks(state.opt_state)
    found = sparsity.removable(state.params, masks, model.cuts())
    gone = 0
    if experiment.whole is not None:
        gone = sum(_sizes(experiment.whole).values()) - sum(_sizes(experiment).values())
    return {"parameters_removable": gone + sum(found.values())}
