"""Learning-rate schedules and update rules by name."""

import fnmatch
from collections.abc import Callable

import jax
import optax

from zosam_jax import tree
from zosam_jax._types import Params, PyTree, Schedule
from zosam_jax.runs.config import TrainConfig

DecayMask = Callable[[Params], PyTree] | None
"""`params -> tree of bool`, the parameters with weight decay; None for all."""


def learning_rate(config: TrainConfig, total_steps: int) -> Schedule:
    """Returns the learning-rate schedule over optimizer steps.

    Args:
      config: Gives `learning_rate`, `schedule`, `milestones`, `final_learning_rate` and
        `warmup_epochs`.
      total_steps: Optimizer steps of the whole run.
    """
    warmup = round(total_steps * config.warmup_epochs / config.epochs)
    main = SCHEDULES[config.schedule](config, total_steps, warmup)
    if not warmup:
        return main
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, main], [warmup])


def _cosine(config: TrainConfig, total_steps: int, warmup: int) -> Schedule:
    alpha = config.final_learning_rate / config.learning_rate
    steps = max(total_steps - warmup, 1)
    return optax.cosine_decay_schedule(config.learning_rate, steps, alpha)


def _step(config: TrainConfig, total_steps: int, warmup: int) -> Schedule:
    # 0.3 * 100 is 30.000000000000004.
    ends = (int(share * total_steps + 1e-6) - warmup for share in config.milestones)
    drops = {end: 0.1 for end in ends}
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


SCHEDULES: dict[str, Callable[[TrainConfig, int, int], Schedule]] = {
    "cosine": _cosine,
    "step": _step,
    "constant": lambda c, *_: optax.constant_schedule(c.learning_rate),
}


def _coupled(
    config: TrainConfig, rule: optax.GradientTransformation, mask: DecayMask
) -> optax.GradientTransformation:
    """Returns the rule with weight decay that is added to the gradient."""
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask), rule)


OPTIMIZERS: dict[
    str, Callable[[TrainConfig, Schedule, DecayMask], optax.GradientTransformation]
] = {
    "sgd": lambda c, lr, mask: _coupled(
        c, optax.sgd(lr, momentum=c.momentum, nesterov=c.nesterov), mask
    ),
    "adamw": lambda c, lr, mask: optax.adamw(
        lr, weight_decay=c.weight_decay, mask=mask
    ),
    "lion": lambda c, lr, mask: optax.lion(lr, weight_decay=c.weight_decay, mask=mask),
    "rmsprop": lambda c, lr, mask: _coupled(
        c, optax.rmsprop(lr, momentum=c.momentum, nesterov=c.nesterov), mask
    ),
    "adafactor": lambda c, lr, mask: optax.adafactor(
        lr, weight_decay_rate=c.weight_decay or None, weight_decay_mask=mask
    ),
}


def update_rule(
    config: TrainConfig, rate: Schedule, embeddings: tuple[str, ...]
) -> optax.GradientTransformation:
    """Returns the optimizer that a configuration names, behind gradient clipping.

    Args:
      config: Gives `optimizer`, `momentum`, `weight_decay`, `clip_norm` and so on.
      rate: The learning-rate schedule.
      embeddings: Patterns of parameters that are no kernels, though they have two axes.
    """
    rule = OPTIMIZERS[config.optimizer](config, rate, _decay_mask(config, embeddings))
    if config.clip_norm:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    return rule


def _decay_mask(config: TrainConfig, embeddings: tuple[str, ...]) -> DecayMask:
    if config.decay == "all":
        return None

    def mask(params: Params) -> PyTree:
        paths = tree.paths(params)
        leaves, treedef = jax.tree.flatten(params)
        return treedef.unflatten(
            x.ndim > 1 and not any(fnmatch.fnmatchcase(path, p) for p in embeddings)
            for path, x in zip(paths, leaves, strict=True)
        )

    return mask
