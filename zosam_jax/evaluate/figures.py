"""The figures of an evaluation, from what was found on each test set."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zosam_jax.data import corruptions
from zosam_jax.data.corruptions import published
from zosam_jax.evaluate import calibration
from zosam_jax.evaluate.test_sets import CorruptedTests

FIGURES = ("accuracy", "loss", "ece")


def figures(tests: CorruptedTests, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of an evaluation.

    Args:
      tests: Its test sets.
      lines: What was found on each: on the clean images first, then by corruption and,
        within one, by severity.
    """
    clean, *corrupted = lines
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in corrupted:
        by_name.setdefault(line["key"]["corruption"], []).append(line)
    rows = {
        name: {figure: [line[figure] for line in group] for figure in FIGURES}
        for name, group in by_name.items()
    }
    accuracy = _mean([line["accuracy"] for line in corrupted])
    result: dict[str, Any] = {
        "dataset": tests.data.name,
        "image_shape": list(tests.shape),
        "images": tests.count,
        "corrupted_images": tests.description(list(rows)),
        "source": tests.source,
        "seed": tests.seed,
        "severities": [
            line["key"]["severity"] for line in next(iter(by_name.values()))
        ],
        "clean": {name: clean[name] for name in FIGURES},
        "mean_corrupted_accuracy": accuracy,
        "mean_corrupted_loss": _mean([line["loss"] for line in corrupted]),
        "mean_corrupted_ece": _mean([line["ece"] for line in corrupted]),
        "difference": clean["accuracy"] - accuracy,
    }
    extra = corruptions.EXTRA
    common = {name: row for name, row in rows.items() if name not in extra}
    if len(rows) > len(common) == len(corruptions.COMMON):
        mean = _mean([_mean(row["accuracy"]) for row in common.values()])
        result["mean_common_accuracy"] = mean
    errors = _corruption_errors(tests, rows, result["severities"])
    if errors:
        result["corruption_errors"] = errors
        result["mce"] = _mean(list(errors.values()))
    result["corruptions"] = rows
    result["reliability"] = {
        "clean": _reliability([clean]),
        "corrupted": _reliability(corrupted),
    }
    return result


def _corruption_errors(
    tests: CorruptedTests, rows: Mapping[str, Any], severities: Sequence[int]
) -> dict[str, float] | None:
    """Returns the errors relative to AlexNet's, where those are known: on ImageNet-C.

    The sum over the severities of the error, over that of AlexNet's
    (arXiv:1903.12261); their mean over the 15 corruptions is the mCE.
    """
    reference = published.ALEXNET_ERRORS
    is_imagenet = tests.data.name == "imagenet2012" and tests.source == "published"
    is_whole = set(reference) <= set(rows) and len(severities) == 5
    if not (is_imagenet and is_whole):
        return None
    return {n: (1 - _mean(rows[n]["accuracy"])) / e for n, e in reference.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _reliability(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the reliability diagram of all predictions of some lines together."""
    bins = calibration.Bins(
        *(
            np.sum([line["bins"][name] for line in lines], 0)
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
