"""Learning-rate schedules by name, over optimizer steps."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from zosam_jax._types import Schedule
from zosam_jax.runs.config import TrainConfig


def schedule(config: TrainConfig, total_steps: int) -> Schedule:
    """Returns the learning-rate schedule over optimizer steps.

    Args:
      config: Gives `learning_rate`, `schedule`, `milestones`, `final_learning_rate` and
        `warmup_epochs`.
      total_steps: Optimizer steps of the whole run.
    """
    warmup = round(total_steps * config.warmup_epochs / config.epochs)
    main = SCHEDULES[config.schedule](config, total_steps, warmup)
    if warmup:
        rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
        main = optax.join_schedules([rise, main], [warmup])
    # Optax multiplies counts by floats, which strict promotion of dtypes forbids.
    return lambda step: main(jnp.asarray(step, float))


def _cosine(config: TrainConfig, total_steps: int, warmup: int) -> Schedule:
    # Optax takes the final rate as a fraction of the first.
    alpha = config.final_learning_rate / config.learning_rate
    steps = max(total_steps - warmup, 1)
    return optax.cosine_decay_schedule(config.learning_rate, steps, alpha)


def _step(config: TrainConfig, total_steps: int, warmup: int) -> Schedule:
    # 0.3 * 100 is 30.000000000000004.
    # `join_schedules` counts the main schedule from the end of the warm-up.
    ends = (int(share * total_steps + 1e-6) - warmup for share in config.milestones)
    drops = {end: 0.1 for end in ends}
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


SCHEDULES: dict[str, Callable[[TrainConfig, int, int], Schedule]] = {
    "cosine": _cosine,
    "step": _step,
    "constant": lambda c, *_: optax.constant_schedule(c.learning_rate),
}
