"""The final figures of a run, from the lines of its metrics."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def of(
    records: Sequence[dict[str, Any]],
    *,
    step: int,
    steps_per_epoch: int,
    status: str,
    counts: Mapping[str, Any],
    compile_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Returns the contents of `summary.json`.

    Its test accuracy is that after the last step. Where images were held out, there is
    also the first epoch at which they were classified best, and the test accuracy then:
    no test image has a part in that choice.

    Args:
      records: The lines of `metrics.jsonl`.
      step: Steps done.
      steps_per_epoch: Steps of an epoch.
      status: "finished" or "stopped".
      counts: Of weights; see `zosam_jax.train.step.count_weights`.
      compile_seconds: By program.
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
        **_selected(records),
        **counts,
        "images_per_second": statistics.median(speeds),
        "seconds": last["test"]["seconds"],
        "compile_seconds": sum(compile_seconds.values()),
        "compile_seconds_by_program": dict(compile_seconds),
    }


def _selected(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
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
