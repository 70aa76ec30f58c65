"""Accuracy of a trained network on clean and corrupted images, and its calibration.

    from zosam_jax.evaluate import evaluate

    figures = evaluate("runs/mine", corruptions=("common",), images=1000)
    figures["mean_corrupted_accuracy"]

The names are imported on first use, because they need Flax and Orbax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zosam_jax.evaluate.evaluation import Progress as Progress
    from zosam_jax.evaluate.evaluation import evaluate as evaluate


def __getattr__(name: str) -> Any:
    if name not in ("Progress", "evaluate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("zosam_jax.evaluate.evaluation"), name)
