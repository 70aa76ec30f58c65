"""The summary of a finished run, `summary.json`: its final figures."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zosam_jax.runs import files, schema
from zosam_jax.runs.files import JSON

_ADVICE = "Delete it; the same command writes it again from the last checkpoint."
_NEEDED = {
    "status": schema.one_of("finished", "stopped"),
    "epochs": schema.WHOLE,
    "steps": schema.WHOLE,
    "train_loss": schema.NUMBER,
    "train_accuracy": schema.NUMBER,
    "test_loss": schema.NUMBER,
    "test_accuracy": schema.AT_MOST_ONE,
    "parameters": schema.WHOLE,
    "parameters_sparsified": schema.WHOLE,
    "parameters_live": schema.WHOLE,
    "sparsity": schema.SHARE,
    "sparsity_all": schema.SHARE,
    "images_per_second": schema.POSITIVE,
    "seconds": schema.POSITIVE,
    "compile_seconds": schema.POSITIVE,
    "compile_seconds_by_program": schema.NUMBERS,
}
_OPTIONAL = {
    "layers": schema.NUMBERS,
    "flops_share": schema.SHARE,
    "parameters_removable": schema.WHOLE,
    "train_accuracy_given_labels": schema.SHARE,
    "train_accuracy_clean_labels": schema.SHARE,
    "validation_accuracy": schema.AT_MOST_ONE,
    "selected_epoch": schema.WHOLE,
    "selected_test_accuracy": schema.AT_MOST_ONE,
}


def read(folder: Path) -> JSON | None:
    """Returns the contents of a run's `summary.json`; None if the run is unfinished.

    Raises:
      RunError: The file is damaged.
    """
    path = folder / "summary.json"
    return files.read_object(path, _NEEDED, _OPTIONAL, advice=_ADVICE)


def summarize(
    records: Sequence[JSON],
    *,
    step: int,
    steps_per_epoch: int,
    status: str,
    counts: Mapping[str, Any],
    memorized: tuple[float, float] | None,
    compile_seconds: Mapping[str, float],
) -> JSON:
    """Returns the contents of `summary.json`.

    The test accuracy is the one after the last step. If the run held out validation
    images, the summary also has the first epoch of the best validation accuracy and the
    test accuracy of that epoch. Test images have no influence on this choice.

    Args:
      records: The lines of `metrics.jsonl`.
      step: Number of training steps done.
      steps_per_epoch: Steps of one epoch.
      status: "finished" or "stopped".
      counts: Numbers of parameters, sparsities and costs, to copy into the summary.
      memorized: With label noise, the accuracy after the last step on the training
        images, without augmentation: by the given labels and by the clean ones.
      compile_seconds: Compilation time in seconds, by program.
    """
    last = {r["split"]: r for r in records if r["step"] == step}
    speeds = [r["images_per_second"] for r in records if r["split"] == "train"]
    return {
        "status": status,
        "epochs": step // steps_per_epoch,
        "steps": step,
        "train_loss": last["train"]["loss"],
        "train_accuracy": last["train"]["accuracy"],
        "test_loss": last["test"]["loss"],
        "test_accuracy": last["test"]["accuracy"],
        **_by_labels(memorized),
        **_selected(records),
        **counts,
        "images_per_second": statistics.median(speeds),
        "seconds": last["test"]["seconds"],
        "compile_seconds": sum(compile_seconds.values()),
        "compile_seconds_by_program": dict(compile_seconds),
    }


def _by_labels(memorized: tuple[float, float] | None) -> JSON:
    if memorized is None:
        return {}
    given, clean = memorized
    return {"train_accuracy_given_labels": given, "train_accuracy_clean_labels": clean}


def _selected(records: Sequence[JSON]) -> JSON:
    """Returns the figures of the epoch that the validation images select, if any."""
    held = [r for r in records if r["split"] == "validation"]
    if not held:
        return {}
    best = max(held, key=lambda r: r["accuracy"])
    tests = {r["epoch"]: r["accuracy"] for r in records if r["split"] == "test"}
    return {
        "validation_accuracy": held[-1]["accuracy"],
        "selected_epoch": best["epoch"],
        "selected_test_accuracy": tests[best["epoch"]],
    }
