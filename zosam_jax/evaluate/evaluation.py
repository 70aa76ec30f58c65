"""Evaluation of a run on clean and corrupted test images.

`evaluation.json` in the run's folder holds the figures of the last call.
`evaluation.jsonl` keeps a line for every image set ever evaluated; later calls reuse
them.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Sequence

from zosam_jax import _check
from zosam_jax.data import corruptions as corruptions_
from zosam_jax.data import table
from zosam_jax.evaluate import figures as figures_
from zosam_jax.evaluate.image_sets import CLEAN, SOURCES, ImageSets
from zosam_jax.evaluate.results import open_results
from zosam_jax.evaluate.scoring import Progress, score
from zosam_jax.runs import environment, files, paths
from zosam_jax.runs.errors import RunError, explained
from zosam_jax.runs.files import JSON
from zosam_jax.train import checkpoint as checkpoints
from zosam_jax.train import effects, load_run
from zosam_jax.train.experiment import Loss, Model
from zosam_jax.train.objects import (
    GivenData,
    GivenGradient,
    GivenMethod,
    GivenOptimizer,
)


def evaluate(
    run: str | os.PathLike[str],
    *,
    checkpoint: int | None = None,
    corruptions: Sequence[str] = ("all",),
    severities: Sequence[int] = corruptions_.SEVERITIES,
    source: str = "generated",
    images: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    published_dir: str | os.PathLike[str] | None = None,
    frost_dir: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    dataset: GivenData | str | None = None,
    model: Model | None = None,
    method: GivenMethod | None = None,
    gradient: GivenGradient | None = None,
    optimizer: GivenOptimizer | None = None,
    loss: Loss | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    command: Sequence[str] | None = None,
) -> JSON:
    """Evaluates a run on clean and corrupted test images.

    The figures are the loss, the score of the task (see `zosam_jax.data.Dataset`) and
    the calibration: of classes, the ECE of the predicted class; of several labels, ECE
    and Brier score of each, and their means; of values, none. Of a segmentation they
    are those of the pixels that count, with the IoU of each class, and corruptions that
    move what is on an image are left out: label maps do not follow.

    An unfinished run is evaluated at its last checkpoint. Results of earlier calls with
    the same weights, images and versions are reused.

    Args:
      run: The run's folder, or a file that `zosam export` wrote.
      checkpoint: The step of one of its checkpoints. Default: the last.
      corruptions: Names of corruptions. "common" stands for the 15 of the published
        benchmark, "all" for those and 4 more. Both leave out `saturate` if the images
        have one channel, and replace generated `frost` by `frost_standin` without
        `frost_dir`.
      severities: Severities from 1 to 5.
      source: "generated": corrupt the test images here, by the definitions of
        CIFAR-10-C or ImageNet-C. "published": read the published sets.
      images: Number of images of each set to use, from its start. Default: all.
      seed: Seed of the generated corruptions.
      data_dir: TFDS directory. Default: the run's.
      published_dir: Folder of released .npy files, to read instead of the TFDS sets.
      frost_dir: Folder of photographs for generated `frost`.
      out: Folder for `evaluation.json` and `evaluation.jsonl`. Default: the run's, or
        that of the file.
      overwrite: Evaluate all sets again.
      dataset: A data set to use instead of the one that the run's configuration names,
        or its name: `folder:PATH` if the images have moved. It must have the classes
        of the run, in the same order.
      model: A Linen module to use instead of the one that the configuration names.
      method: The sparse method that the run was given, if it was.
      gradient: The gradient estimator that the run was given, if it was.
      optimizer: The optimizer that the run was given, if it was.
      loss: The loss that the run was given, if it was.
      on_progress: Called after every batch, and once for a finished set.
      command: The command line, for the record.

    Returns:
      The contents of `evaluation.json`. "accuracy" is the score that "score" names,
      from 0 to 1, or up to 1 for R². ECEs and Brier scores are from 0 to 1. Losses are
      negative log-likelihoods in nats, squared errors, or those of the run's own loss.

    Raises:
      RunError: The run cannot be evaluated this way; the message says what would work.
      zosam_jax.data.DatasetError: A data set is missing or damaged.
    """
    _check_options(corruptions, severities, source, images, seed)
    _check_unused(
        corruptions,
        source,
        seed=seed or None,
        published_dir=published_dir,
        frost_dir=frost_dir,
    )
    found = load_run.load(
        run,
        checkpoint=checkpoint,
        examples=True,
        data_dir=data_dir,
        dataset=dataset,
        model=model,
        method=method,
        gradient=gradient,
        optimizer=optimizer,
        loss=loss,
    )
    is_read = dataset is None or isinstance(dataset, str)
    is_of_tfds = is_read and table.is_of_tfds(found.config.dataset)
    if data_dir is not None and source == "generated" and not is_of_tfds:
        raise RunError(effects.no_effect("data_dir", data_dir, "data sets of TFDS"))
    experiment, network = found.experiment, (found.params, found.model_state)
    assert experiment.dataset is not None
    sets = ImageSets(
        experiment.dataset,
        source=source,
        images=images,
        seed=seed,
        data_dir=found.config.data_dir,
        published_dir=published_dir,
        frost_dir=frost_dir,
    )
    names, left_out = sets.choose(corruptions)
    same = {
        "weights_crc32": checkpoints.digest(checkpoints.snapshot(network)),
        "versions": environment.versions(),
        # A loss of the user's own, if there is one.
        **{k: v for k, v in experiment.labels.items() if k == "loss"},
    }
    chosen = [(CLEAN, 0)] + [(n, s) for n in names for s in sorted(set(severities))]
    keys = [sets.key(name, severity) | same for name, severity in chosen]
    # Beside a file that was exported.
    own = found.folder if found.folder.is_dir() else found.folder.parent
    folder = paths.absolute(out, "out") if out else own
    path = folder / "evaluation.jsonl"
    with (
        contextlib.closing(open_results(path, same, overwrite)) as results,
        explained(path),
    ):
        score(experiment, network, sets, keys, results, on_progress or (lambda _: None))
        on_sets = [results.get(key) for key in keys]
    figures = {
        "run": found.folder.name,
        "step": found.step,
        "status": found.summary["status"] if found.summary else "unfinished",
        "score": found.facts.score,
        **figures_.figures(sets, [result for result in on_sets if result is not None]),
        "left_out": left_out,
        "test_images": experiment.dataset.num_test,
        "training_test_accuracy": (found.summary or {}).get("test_accuracy"),
        "notes": list(found.notes),
        **same,
        "commit": environment.commit(),
        "command": list(command) if command else None,
        "written": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    }
    with explained(folder):
        files.write_json(folder / "evaluation.json", figures)
    return figures


def _check_options(
    corruptions: Sequence[str],
    severities: Sequence[int],
    source: str,
    images: int | None,
    seed: int,
) -> None:
    """Raises `RunError` if an option is unknown or out of range."""
    try:
        for name, values in (("corruptions", corruptions), ("severities", severities)):
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ValueError(f"{name}={values!r} must be a list.")
        _check.one_of("source", source, SOURCES)
        for severity in severities:
            _check.one_of("severity", severity, corruptions_.SEVERITIES)
        for name in corruptions:
            choices = ("all", "common", *corruptions_.NAMES)
            _check.one_of("corruption", name, choices)
        _check.whole("seed", seed, least=0)
        if images is not None:
            _check.whole("images", images)
    except ValueError as error:
        raise RunError(str(error)) from error
    if not corruptions or not severities:
        raise RunError("evaluate needs at least one corruption and one severity.")


def _check_unused(
    corruptions: Sequence[str],
    source: str,
    **options: str | os.PathLike[str] | int | None,
) -> None:
    """Raises `RunError` if an option is set that has no effect.

    Args:
      corruptions: The corruptions.
      source: "generated" or "published".
      **options: Other options by name; None where they are not set.
    """
    is_frosty = bool({"all", "common", "frost"} & set(corruptions))
    uses = {
        "seed": (source == "generated", "source generated"),
        "published_dir": (source == "published", "source published"),
        "frost_dir": (
            source == "generated" and is_frosty,
            "source generated and corruption frost",
        ),
    }
    for name, value in options.items():
        is_used, use = uses[name]
        if value is not None and not is_used:
            shown = value if isinstance(value, int) else os.fspath(value)
            raise RunError(effects.no_effect(name, shown, use))
