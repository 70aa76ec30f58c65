"""More epochs for a run: only if its first epochs would have been the same.

A run of 30 epochs that goes on to 60 must have the numbers of a run of 60. Cosine and
step schedules of the learning rate, and the schedules of masks, span the whole
training, so that the first 30 epochs of 60 are others than those of 30. A constant
learning rate (after a warm-up, which counts epochs) and masks that never change do not
depend on the end. Orders, augmentation, dropout and averages never do.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.train import learning_rates
from zosam_jax.train.experiment import Experiment

if TYPE_CHECKING:
    from zosam_jax.train.choices import Choices


def check(
    config: TrainConfig, epochs: int, chosen: "Choices", experiment: Experiment
) -> None:
    """Raises `RunError` unless a run can go on to more epochs.

    Objects that the user gave do not depend on the epochs: they are the same as before.

    Args:
      config: The configuration, with the new number of epochs.
      epochs: The number that the run began with.
      chosen: What the names of the configuration stand for.
      experiment: The experiment of the configuration.
    """
    reasons = []
    share = "the share of the training that is done"
    if experiment.learning_rate is not None:
        steps = experiment.steps_per_epoch * epochs // experiment.accumulate_steps
        old = learning_rates.schedule(dataclasses.replace(config, epochs=epochs), steps)
        done = np.arange(steps)
        # A constant is one value for all steps.
        before, after = (
            np.broadcast_to(np.asarray(rate(done)), done.shape)
            for rate in (old, experiment.learning_rate)
        )
        if not np.array_equal(before, after):
            reasons.append(
                f"the learning rate (--schedule {config.schedule}) follows {share}"
            )
    method, gradient = chosen.method, chosen.gradient
    changes = experiment.method is not None and experiment.method.fires is not None
    if method is not None and changes:
        reasons.append(f"the masks (--method {method.name}) follow {share}")
    if gradient is not None and "total_steps" in gradient.takes:
        reasons.append(f"--gradient {gradient.name} depends on the number of steps")
    if reasons:
        raise RunError(
            f"the run in {config.folder} has {epochs} epochs and cannot go on to "
            f"{config.epochs}: {', and '.join(reasons)}, so its first {epochs} epochs "
            f"would have been others. Begin a run of {config.epochs} epochs in another "
            "--out. (With --schedule constant and masks that do not change, a run can "
            "go on.)"
        )
