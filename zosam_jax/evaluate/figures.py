"""The figures of an evaluation, computed from the results on each image set."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from zosam_jax.data import corruptions
from zosam_jax.data.corruptions import published
from zosam_jax.evaluate import calibration
from zosam_jax.evaluate.image_sets import ImageSets
from zosam_jax.runs.files import JSON

FIGURES = ("accuracy", "pixel_accuracy", "loss", "ece", "brier")
"""The figures on an image set. Which of them there are depends on the task."""


def figures(sets: ImageSets, results: Sequence[JSON]) -> JSON:
    """Returns the figures of an evaluation.

    Args:
      sets: The image sets.
      results: The result on each set: first on the clean images, then by corruption
        and, for each corruption, by severity.

    Returns:
      The part of `evaluation.json` that follows from the results. Accuracies, ECEs and
      Brier scores are from 0 to 1, R² up to 1; losses are in nats.
    """
    clean, *corrupted = results
    names = [name for name in FIGURES if name in clean]
    by_name: dict[str, list[JSON]] = {}
    for result in corrupted:
        by_name.setdefault(result["key"]["corruption"], []).append(result)
    rows = {
        name: {figure: [result[figure] for result in group] for figure in names}
        for name, group in by_name.items()
    }
    severities = [r["key"]["severity"] for r in next(iter(by_name.values()))]
    means = {name: _mean([result[name] for result in corrupted]) for name in names}
    return {
        "dataset": sets.data.name,
        "image_shape": list(sets.shape),
        "images": sets.count,
        "corrupted_images": sets.description(list(rows)),
        "source": sets.source,
        "seed": sets.seed,
        "severities": severities,
        "clean": {name: clean[name] for name in names},
        **{f"mean_corrupted_{name}": mean for name, mean in means.items()},
        "difference": clean["accuracy"] - means["accuracy"],
        **_common(rows),
        **_relative(sets, rows, severities),
        "corruptions": rows,
        **_calibration(sets, clean, corrupted),
    }


def _calibration(sets: ImageSets, clean: JSON, corrupted: Sequence[JSON]) -> JSON:
    """Returns the reliability diagrams, and the figures of labels or of classes."""
    found: JSON = {}
    if "bins" in clean:
        found["reliability"] = {
            "clean": _reliability([clean]),
            "corrupted": _reliability(corrupted),
        }
    for kind, names in (("by_label", "labels"), ("by_class", "classes")):
        if kind in clean:
            found[kind] = {
                names: list(sets.data.class_names),
                "clean": clean[kind],
                "mean_corrupted": {
                    name: _means([r[kind][name] for r in corrupted])
                    for name in clean[kind]
                },
            }
    return found


def _means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Returns the mean of each column over the rows that have a figure there."""
    columns = (
        [x for x in column if x is not None] for column in zip(*rows, strict=True)
    )
    return [_mean(known) if known else None for known in columns]


def _common(rows: Mapping[str, JSON]) -> JSON:
    """Returns the mean accuracy over the 15 common corruptions, if others were used."""
    common = [row for name, row in rows.items() if name not in corruptions.EXTRA]
    if not len(rows) > len(common) == len(corruptions.COMMON):
        return {}
    return {"mean_common_accuracy": _mean([_mean(row["accuracy"]) for row in common])}


def _relative(
    sets: ImageSets, rows: Mapping[str, JSON], severities: Sequence[int]
) -> JSON:
    """Returns the corruption errors relative to AlexNet and their mean, if known."""
    errors = _corruption_errors(sets, rows, severities)
    if errors is None:
        return {}
    return {"corruption_errors": errors, "mce": _mean(list(errors.values()))}


def _corruption_errors(
    sets: ImageSets, rows: Mapping[str, JSON], severities: Sequence[int]
) -> dict[str, float] | None:
    """Returns the corruption errors relative to AlexNet's, on the whole of ImageNet-C.

    A corruption error is the sum of the errors over the five severities, divided by
    AlexNet's sum (arXiv:1903.12261). The mean over the 15 corruptions is the mCE.
    AlexNet's errors are known for ImageNet-C only; for other sets, this returns None.
    """
    reference = published.ALEXNET_ERRORS
    is_imagenet = sets.data.name == "imagenet2012" and sets.source == "published"
    is_whole = set(reference) <= set(rows) and len(severities) == 5
    if not (is_imagenet and is_whole):
        return None
    return {n: (1 - _mean(rows[n]["accuracy"])) / e for n, e in reference.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _reliability(results: Sequence[JSON]) -> JSON:
    """Returns one reliability diagram of the predictions on several image sets.

    Of labels, it is of the predictions of all of them.
    """
    bins = calibration.Bins(
        *(
            np.sum([result["bins"][name] for result in results], 0)
            for name in calibration.Bins._fields
        )
    )
    share, confidence, accuracy = calibration.reliability(bins)

    def plain(values: np.ndarray) -> list[float | None]:
        return [None if math.isnan(value) else float(value) for value in values]

    return {
        "ece": calibration.error(bins),
        "share": plain(share),
        "confidence": plain(confidence),
        "accuracy": plain(accuracy),
    }
