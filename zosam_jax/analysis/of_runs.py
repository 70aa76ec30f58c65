"""The instruments on trained runs: one call analyses runs and writes what it found.

`analysis.json` has the figures, `analysis.npz` the arrays.
"""

import dataclasses
import datetime
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax import _check
from zosam_jax.analysis import run_examples, through_runs
from zosam_jax.analysis.masks import overlap_matrix
from zosam_jax.analysis.network_figures import (
    PARTS,
    Network,
    is_sparse,
    mean_loss,
)
from zosam_jax.runs import environment, files, paths
from zosam_jax.runs.errors import RunError, explained
from zosam_jax.runs.files import JSON
from zosam_jax.train import load_run
from zosam_jax.train.experiment import Loss, Model
from zosam_jax.train.load_run import LoadedRun
from zosam_jax.train.objects import (
    GivenData,
    GivenGradient,
    GivenMethod,
    GivenOptimizer,
)

PathLike = str | os.PathLike[str]

DIRECTIONS = {"random": 1.0, "eigenvectors": 1.0, "runs": 0.25}
"""Directions of a landscape, and their default extent."""


class Progress(NamedTuple):
    """The progress of an analysis.

    Attributes:
      run: Name of the run.
      part: The part in progress.
      share: Share of all parts of all runs that is done, from 0 to 1.
      finished: Whether the part is finished.
    """

    run: str
    part: str
    share: float
    finished: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is analysed, and on which examples.

    Attributes:
      parts: "curvature" (eigenvalues, trace, spectral density), "sharpness",
        "landscape", "noise" (of gradients), "masks", "errors" (classes that are taken
        for others, errors of labels or of pixels, or residuals of values, on all test
        examples) and "features" (of test images), or some of them.
      images: Number of examples, at random from the split.
      batch_size: Examples of a batch. None: that of the first run's training.
      split: "train" or "test". A streamed data set has "test" alone, its first images.
      rho: Radius of the sharpness; the adaptive radius is ten times that.
      directions: Of the landscape: "random", filter-normalised, the same draws for
        every run; "eigenvectors", of the two largest eigenvalues; or "runs", one
        landscape on the plane through three runs of one model.
      points: Number of landscape points along each of two directions; odd, so that the
        network is one of them.
      extent: The landscape goes from -extent to extent; through three runs, from that
        much of their width before the first to that much behind the last.
      examples: Numbers of the test images whose features, and whose label maps, are
        shown, from 0.
      layers: The layers whose features are shown, as paths in which `*` stands for any
        letters. None: four of the outermost modules.
      checkpoints: Whether every checkpoint of a run is analysed, as a run of its own
        with the name "RUN@STEP". A training keeps the last two, or as many as
        `TrainConfig.keep` says.
      seed: Seed of all draws.

    Raises:
      RunError: A setting is unknown or out of range.
    """

    parts: tuple[str, ...] = tuple(PARTS)
    images: int = 512
    batch_size: int | None = None
    split: str = "train"
    rho: float = 0.05
    directions: str = "random"
    points: int = 21
    extent: float | None = None
    examples: tuple[int, ...] = tuple(range(6))
    layers: tuple[str, ...] = ()
    checkpoints: bool = False
    seed: int = 0

    def __post_init__(self):
        """Checks the settings."""
        try:
            self._check()
        except ValueError as error:
            raise RunError(str(error)) from error

    def _check(self) -> None:
        if not self.parts:
            raise ValueError(f"parts is empty. Parts: {', '.join(PARTS)}.")
        for part in self.parts:
            _check.one_of("parts", part, PARTS)
        _check.one_of("split", self.split, ("train", "test"))
        _check.one_of("directions", self.directions, DIRECTIONS)
        _check.whole("images", self.images)
        _check.whole("points", self.points)
        _check.whole("seed", self.seed, least=0)
        if self.batch_size is not None:
            _check.whole("batch_size", self.batch_size)
        _check.number("rho", self.rho, above=0)
        if self.extent is not None:
            _check.number("extent", self.extent, above=0)
        for example in self.examples:
            _check.whole("examples", example, least=0)
        if self.points % 2 == 0:
            raise ValueError(
                f"points={self.points} must be odd, so that the network is one of them."
            )


def analyze(
    runs: PathLike | Sequence[PathLike],
    settings: Settings | None = None,
    *,
    out: PathLike | None = None,
    data_dir: str | None = None,
    dataset: GivenData | str | None = None,
    model: Model | None = None,
    method: GivenMethod | None = None,
    gradient: GivenGradient | None = None,
    optimizer: GivenOptimizer | None = None,
    loss: Loss | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    command: Sequence[str] | None = None,
) -> JSON:
    """Analyses trained runs, finished or not, and writes figures and arrays.

    The loss is the mean loss of the same examples for every run, without
    augmentation and label smoothing, with BatchNorm at its running statistics and the
    labels of the training, wrong ones too. Of a sparse run, everything is on its mask.

    Args:
      runs: Folders of runs, or one.
      settings: What to analyse, and on which examples. Default: `Settings()`.
      out: Folder to write. Default: `analysis` in the run; of several runs, `analysis`
        in the working directory.
      data_dir: TFDS directory. Default: the run's.
      dataset: A data set in place of the one that a run's configuration names.
      model: A Linen module in place of the one that it names.
      method: The sparse method that the runs were given, if they were.
      gradient: The gradient estimator that the runs were given, if they were.
      optimizer: The optimizer that the runs were given, if they were.
      loss: The loss that the runs were given, if they were.
      on_progress: Called as the work goes on.
      command: The command line, for the record.

    Returns:
      The contents of `analysis.json`.

    Raises:
      RunError: A run cannot be analysed this way; the message says what would work.
      zosam_jax.data.DatasetError: A data set is missing or damaged.
    """
    folders = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    if not folders:
        raise RunError("analyze needs at least one run folder.")
    objects = {"dataset": dataset, "model": model, "method": method}
    objects |= {"gradient": gradient, "optimizer": optimizer, "loss": loss}
    objects |= {"examples": True, "data_dir": data_dir}
    loaded = [load_run.load(folder, **objects) for folder in folders]
    names = _names(loaded)
    place = place_of(out, [run.folder for run in loaded])
    if settings and settings.checkpoints:
        every = [
            (f"{name}@{found.step}", found)
            for name, run in zip(names, loaded, strict=True)
            for found in run.history()
        ]
        names, loaded = map(list, zip(*every, strict=True))
    chosen = _settled(settings or Settings(), loaded)
    with explained(place):
        place.mkdir(parents=True, exist_ok=True)
    found, arrays = _found(loaded, names, chosen, on_progress)
    result = {
        "settings": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(chosen).items()
        },
        **found,
        **_record(command),
    }
    _write(place, result, arrays)
    return result


def _settled(settings: Settings, loaded: Sequence[LoadedRun]) -> Settings:
    """The settings with the defaults that depend on others, or on the runs."""
    if settings.directions == "runs" and "landscape" in settings.parts:
        through_runs.check([run.params for run in loaded])
    return dataclasses.replace(
        settings,
        batch_size=settings.batch_size or loaded[0].config.batch_size,
        extent=settings.extent or DIRECTIONS[settings.directions],
    )


def _found(
    loaded: Sequence[LoadedRun],
    names: Sequence[str],
    settings: Settings,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[JSON, dict[str, np.ndarray]]:
    """The figures and arrays of each run, and of all together."""
    figures, arrays, networks = [], {}, []
    has_plane = settings.directions == "runs" and "landscape" in settings.parts
    progress = _Progress(on_progress, len(loaded), settings.parts, has_plane)
    for name, run in zip(names, loaded, strict=True):
        networks.append(_network(run, settings))
        report = progress.of(name)
        found, found_arrays = _analysed(run, networks[-1], settings.parts, report)
        figures.append({"run": name, **found})
        arrays |= {f"{name}/{key}": value for key, value in found_arrays.items()}
    plane = None
    if has_plane:
        loss = loaded[0].experiment.loss
        share = functools.partial(progress.of("the runs"), "plane through them")
        share(0.0)
        plane, found_arrays = through_runs.landscape(networks, loss, share)
        share(1.0, finished=True)
        arrays |= found_arrays
    overlap = _overlap(names, loaded) if "masks" in settings.parts else None
    return {"runs": figures, "overlap": overlap, "plane": plane}, arrays


def _record(command: Sequence[str] | None) -> JSON:
    """What made the figures."""
    return {
        "versions": environment.versions(),
        "commit": environment.commit(),
        "command": list(command) if command else None,
        "written": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    }


def _write(place: Path, result: JSON, arrays: dict[str, np.ndarray]) -> None:
    with explained(place):
        files.write_json(place / "analysis.json", result)
        # Complete or unchanged, as every file.
        temporary = place / ".analysis.npz"
        np.savez_compressed(temporary, allow_pickle=False, **arrays)
        temporary.replace(place / "analysis.npz")


def place_of(out: PathLike | None, runs: Sequence[PathLike]) -> Path:
    """Returns the folder that `analyze` writes.

    Args:
      out: As in `analyze`.
      runs: As in `analyze`.
    """
    if out is not None:
        return paths.absolute(out, "out")
    if len(runs) == 1:
        return paths.absolute(runs[0], "RUN") / "analysis"
    return paths.absolute("analysis", "out")


def _names(loaded: Sequence[LoadedRun]) -> list[str]:
    """The names of the folders; whole paths where two have one name."""
    names = [run.folder.name for run in loaded]
    found = [
        name if names.count(name) == 1 else str(run.folder)
        for name, run in zip(names, loaded, strict=True)
    ]
    if len(set(found)) < len(found):
        raise RunError("a run is given twice. Name each run once.")
    return found


class _Progress:
    """Turns the share of a part into that of all parts of all runs."""

    def __init__(
        self,
        call: Callable[[Progress], None] | None,
        runs: int,
        parts: Sequence[str],
        has_plane: bool,
    ):
        self._call, self._done = call, 0
        self._total = runs * len(parts) + has_plane

    def of(self, run: str) -> Callable[..., None]:
        """Returns `(part, share, finished=False)`, which reports the parts of a run."""

        def report(part: str, share: float, finished: bool = False) -> None:
            if self._call is not None:
                whole = (self._done + share) / self._total
                self._call(Progress(run, part, whole, finished))
            self._done += finished

        return report


def _analysed(
    run: LoadedRun, network: Network, parts: Sequence[str], report: Callable[..., None]
) -> tuple[JSON, dict[str, np.ndarray]]:
    figures: JSON = {
        "step": run.step,
        "status": run.summary["status"] if run.summary else "unfinished",
        "loss": float(
            np.mean([network.value_fn(network.params, b) for b in network.batches])
        ),
        "weights": sum(x.size for x in jax.tree.leaves(run.params)),
        "notes": list(run.notes),
    }
    arrays = {}
    for part in parts:
        report(part, 0.0)
        try:
            figures[part], found = PARTS[part](network, functools.partial(report, part))
        except ValueError as error:
            raise RunError(f"{part} of {run.folder}: {error}") from error
        arrays |= found
        report(part, 1.0, finished=True)
    if "errors" in figures:
        figures["errors"]["classes"] = list(run.classes)
    return figures, arrays


def _network(run: LoadedRun, settings: Settings) -> Network:
    experiment = run.experiment
    assert settings.batch_size is not None
    assert settings.extent is not None
    size = min(settings.batch_size, settings.images)
    state = jax.device_put(run.model_state)
    chosen = run_examples.drawn(
        *(experiment, settings.split, settings.images, size, settings.seed)
    )
    is_map = run.facts.task == "segmentation"
    is_shown = "features" in settings.parts or (is_map and "errors" in settings.parts)
    gradient = experiment.gradient
    return Network(
        model=run.model,
        value_fn=mean_loss(run.model, experiment.loss),
        params=jax.device_put(run.params),
        model_state=state,
        masks=run.masks if is_sparse(run.masks) else None,
        batches=[(inputs, labels, state) for inputs, labels in chosen],
        task=run.facts.task,
        score=run.facts.score,
        tests=functools.partial(run_examples.tests, experiment, size, state),
        shown=run_examples.shown(experiment, settings.examples) if is_shown else None,
        layers=settings.layers,
        gradient=None
        if gradient.decoupled
        else gradient.with_options(has_aux=False, aux_like=None),
        step=run.step // experiment.accumulate_steps,
        key=jax.random.key(settings.seed),
        rho=settings.rho,
        points=settings.points,
        extent=settings.extent,
        directions=settings.directions,
    )


def _overlap(names: Sequence[str], loaded: Sequence[LoadedRun]) -> JSON | None:
    """The Jaccard indices of all pairs of sparse runs, if two or more are alike."""
    sparse = {
        name: run.masks
        for name, run in zip(names, loaded, strict=True)
        if is_sparse(run.masks)
    }
    if len(sparse) < 2:
        return None
    try:
        return {"runs": [*sparse], "jaccard": overlap_matrix(sparse).tolist()}
    except ValueError:
        # Runs of different models have no weights in common.
        return None
