"""Runs that differ in seed and radius alone, trained in one program.

Each has its own folder, and what is in it is what the run alone would have left, but
for rounding: its configuration, a line of metrics for each epoch and split, the last
checkpoint and the summary. The times are those of the program, which trains all runs.
There is no checkpoint before the end.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import Radius, Seed
from zosam_jax.data import Dataset
from zosam_jax.runs import folder, metrics, summary
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError, explained
from zosam_jax.runs.progress import Display, Shielded, Silent, Status
from zosam_jax.train import build, checkpoint, choices, effects, resume, scores
from zosam_jax.train.choices import Choices
from zosam_jax.train.examples import with_label_noise
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.grouping import obstacle
from zosam_jax.train.interruption import Stop, interruptions
from zosam_jax.train.lanes import Lanes
from zosam_jax.train.objects import Objects
from zosam_jax.train.recording import Output, Recording


class Apart(RunError):
    """Runs that cannot train in one program, each of which can train alone."""


class Ended(NamedTuple):
    """How a call of `train` ended.

    Attributes:
      is_complete: Whether all runs are finished or failed.
      failures: Why runs failed, by the name of their folder.
      signal: The signal that was received, or None.
    """

    is_complete: bool
    failures: dict[str, str]
    signal: int | None


def train(
    configs: Sequence[TrainConfig],
    given: Objects = Objects(),  # noqa: B008
    *,
    display: Display | None = None,
    command: Sequence[str] | None = None,
) -> Ended:
    """Trains runs in one program, and leaves the folder of each.

    A run whose loss is not finite fails, and the others go on. A signal ends all after
    the step; nothing of it is kept then, and the next call begins again.

    Args:
      configs: Configurations that differ in `seed`, `rho` and their folder alone.
      given: Objects in place of what they name.
      display: Where to show progress. Default: nowhere.
      command: The command line, for the record.

    Raises:
      Apart: They cannot train in one program.
      RunError: A run cannot start; the message says what would work.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    show, stop, given = Shielded(display or Silent()), Stop(), given.made()
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruptions(stop))
        stack.enter_context(contextlib.closing(show))
        lanes = _lanes(configs, given)
        places = [_claimed(stack, config) for config in configs]
        needed = len(configs) * checkpoint.size_in_bytes(lanes.abstract)
        folder.check_space(configs[0], 2 * needed)
        outputs = [
            Output(config, experiment, *place, _Named(show, place[0].name))
            for config, experiment, place in zip(
                configs, lanes.experiments, places, strict=True
            )
        ]
        for text in resume.opening(outputs[0], lanes.abstract.params):
            show.message(text)
        names = ", ".join(output.folder.name for output in outputs)
        show.message(
            f"{len(configs)} runs in one program: {names}. The figures below are their "
            "means"
        )
        for output in outputs:
            beside = {
                "objects": given.record(),
                "dataset": output.experiment.facts.record(),
            }
            resume.write_record(output, command, 0, beside, together=len(configs))
            metrics.cut(output.folder / "metrics.jsonl", 0)
        return _Group(stack, lanes, outputs, show, stop).train()


class _Named(Silent):
    """The display of one of several runs: its messages, behind its name."""

    def __init__(self, display: Display, name: str):
        self._display, self._name = display, name
        self.last: Status | None = None

    def message(self, text: str) -> None:
        self._display.message(f"{self._name}: {text}")

    def epoch(self, status: Status) -> None:
        self.last = status


def _claimed(
    stack: contextlib.ExitStack, config: TrainConfig
) -> tuple[Path, checkpoint.CheckpointsOfAll]:
    """Returns the locked folder of a run that has yet to begin, and its checkpoints."""
    folder.check(config)
    path = stack.enter_context(folder.claim(config))
    if summary.read(path) is not None:
        raise Apart(f"{path} is finished already.")
    if reason := obstacle(config):
        raise Apart(f"{path}: {reason}.")
    place = checkpoint.CheckpointsOfAll(path / "checkpoints", config.keep)
    return path, stack.enter_context(contextlib.closing(place))


def _lanes(configs: Sequence[TrainConfig], given: Objects) -> Lanes:
    """Returns the programs of runs, which share images, model and functions."""
    first = configs[0]
    try:
        effects.check(first, list(given.record()))
        chosen = choices.choose(
            first,
            gradient=given.gradient,
            method=given.method,
            optimizer=given.optimizer,
        )
        base = build.experiment(first, given, chosen)
    except ValueError as error:
        raise RunError(str(error)) from error
    if first.compact_every is not None:
        raise Apart(
            f"compact_every={first.compact_every} cuts each run to widths of its own."
        )
    dataset = _in_memory(first, base)
    if base.clean_labels is not None:
        dataset = dataclasses.replace(dataset, train_labels=base.clean_labels)
    with_radius = _by_radius(first, given, chosen, base)
    # A radius that all share stays a constant of the program.
    are_equal = len({config.rho for config in configs}) == 1

    def experiment(rho: Any, seed: Seed) -> Experiment:
        return (base if are_equal else with_radius(rho)).with_seed(seed)

    experiments = [
        dataclasses.replace(
            experiment(config.rho, config.seed),
            dataset=with_label_noise(config, dataset)[0],
        )
        for config in configs
    ]
    seeds = np.array([config.seed for config in configs], np.int32)
    radii = np.array([config.rho or 0.0 for config in configs], np.float32)
    return Lanes(experiments, lambda lane: experiment(*lane), (radii, seeds))


def _by_radius(
    config: TrainConfig, given: Objects, chosen: Choices, base: Experiment
) -> Callable[[Radius], Experiment]:
    """Returns `rho -> experiment`; rho may be traced."""
    _, model_state = jax.eval_shape(base.initialize, jax.random.key(0))
    aux_like = model_state, scores.no_sums(base.facts, jnp.float32)
    total = base.optimizer_steps

    def with_radius(rho: Radius) -> Experiment:
        assert chosen.gradient is not None
        own = chosen._replace(gradient=chosen.gradient._replace(rho=rho))
        parts = build.optimization(config, given, own, total, aux_like, base.facts.task)
        optimization = parts(base.seed)._asdict()
        return dataclasses.replace(base, optimization=parts, **optimization)

    return with_radius


def _in_memory(config: TrainConfig, experiment: Experiment) -> Dataset:
    """Returns the data set; raises `Apart` if nothing trains several runs on it."""
    dataset, devices = experiment.dataset, experiment.mesh.size
    if not isinstance(dataset, Dataset):
        raise Apart(f"the images of {config.dataset} are streamed, batch by batch.")
    if devices > 1:
        raise Apart(
            f"the {devices} devices of this process share each batch. Say --devices."
        )
    kind = jax.config.values["jax_default_prng_impl"]
    if kind != "threefry2x32":
        raise Apart(
            f"`jax.vmap` draws once for all keys of the kind {kind} "
            "(jax_default_prng_impl)."
        )
    return dataset


class _Group:
    """The training of several runs in one program.

    Attributes:
      failures: Why runs failed, by the name of their folder.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        lanes: Lanes,
        outputs: Sequence[Output],
        show: Display,
        stop: Stop,
    ):
        self._lanes, self._show, self._stop = lanes, show, stop
        show.message("compiling...")
        lanes.compile()
        self._parts = lanes.init()
        show.message(f"compiled in {sum(lanes.compile_seconds.values()):.1f} s")
        states = lanes.states(self._parts)
        self._recordings = [
            stack.enter_context(contextlib.closing(Recording(output, state, [])))
            for output, state in zip(outputs, states, strict=True)
        ]
        self.failures: dict[str, str] = {}

    @property
    def _alive(self) -> list[tuple[int, Recording]]:
        """The lanes that have not failed, and their records."""
        return [
            (lane, recording)
            for lane, recording in enumerate(self._recordings)
            if recording.output.folder.name not in self.failures
        ]

    def train(self) -> Ended:
        """Trains to the end, or until a signal."""
        base, signals = self._lanes.experiments[0], self._stop.signals
        for number in range(base.epochs):
            began = time.perf_counter()
            parts = self._lanes.epoch(self._parts, number, lambda: bool(signals))
            self._parts, end = parts, (number + 1) * base.steps_per_epoch
            if self._lanes.step(parts) < end:
                break
            images = base.steps_per_epoch * base.batch_size
            self._end_epoch(number, images, began)
            if not self._alive or (signals and number + 1 < base.epochs):
                break
        step, number = self._lanes.step(self._parts), (signals or [None])[0]
        if step < base.total_steps and self._alive:
            self._show.message(
                f"interrupted at step {step}. Runs in one program have no checkpoint "
                "before their end: the same command trains them again."
            )
            return Ended(False, self.failures, number)
        self._finish()
        return Ended(True, self.failures, number)

    @contextlib.contextmanager
    def _failing(self, recording: Recording) -> Iterator[None]:
        """Notes why a run fails; the others go on."""
        name = recording.output.folder.name
        try:
            with explained(recording.output.folder):
                yield
        except RunError as error:
            self.failures[name] = str(error)
            self._show.message(f"{name} failed: {error}")

    def _end_epoch(self, number: int, images: int, began: float) -> None:
        """Writes and shows the numbers of an epoch.

        Args:
          number: Number of the epoch, from 0.
          images: Images of one lane in it.
          began: When it began, in seconds.
        """
        lanes = self._lanes
        totals = lanes.totals(self._parts)
        speed = images / (time.perf_counter() - began)
        held_out = lanes.experiments[0].validation is not None
        splits = ("test", "validation") if held_out else ("test",)
        tested = {split: lanes.evaluate(self._parts, split) for split in splits}
        states = lanes.states(self._parts)
        for lane, here in self._alive:
            here.epoch, here.step = number, int(states[lane].step)
            with self._failing(here):
                here.check_finite(totals[lane])
                own = {split: found[lane] for split, found in tested.items()}
                here.end_epoch(states[lane], totals[lane], speed, own)
        displays = (here.output.display for _, here in self._alive)
        shown = [x.last for x in displays if isinstance(x, _Named) and x.last]
        if shown:
            self._show.epoch(_mean(shown))

    def _finish(self) -> None:
        """Writes the checkpoints and the summaries."""
        lanes, states = self._lanes, self._lanes.states(self._parts)
        memorized: list[tuple[float, float] | None] = [None] * len(states)
        if lanes.experiments[0].clean_labels is not None:
            splits = ("train", "train_clean")
            pairs = (lanes.evaluate(self._parts, split) for split in splits)
            memorized = [
                (given["accuracy"], clean["accuracy"])
                for given, clean in zip(*pairs, strict=True)
            ]
        for lane, here in self._alive:
            with self._failing(here):
                here.save(states[lane])
        for lane, here in self._alive:
            with self._failing(here):
                here.output.checkpoints.wait()
                here.summarize(
                    states[lane],
                    memorized[lane],
                    lanes.compile_seconds,
                    status="finished",
                )


def _mean(found: Sequence[Status]) -> Status:
    """Returns the mean figures of runs, and the images per second of all together."""

    def mean(name: str) -> float:
        return statistics.fmean(getattr(status, name) for status in found)

    return found[0]._replace(
        loss=mean("loss"),
        accuracy=mean("accuracy"),
        test_accuracy=mean("test_accuracy"),
        sparsity=mean("sparsity"),
        images_per_second=len(found) * mean("images_per_second"),
    )
