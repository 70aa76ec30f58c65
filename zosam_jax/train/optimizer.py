"""From a configuration to one Optax transformation: tables, one row a choice."""

from collections.abc import Callable
from typing import Any

import optax

import zosam_jax as zs
from zosam_jax.train import gradients, methods
from zosam_jax.train.config import TrainConfig

Schedule = Callable[[Any], Any]


def learning_rate(config: TrainConfig, total_steps: int) -> Schedule:
    """Returns the learning rate as a function of the optimizer step.

    Args:
      config: Its `learning_rate`, `schedule` and `warmup_epochs` count.
      total_steps: Steps of the whole run.
    """
    warmup = round(total_steps * config.warmup_epochs / config.epochs)
    main = SCHEDULES[config.schedule](
        config.learning_rate, max(total_steps - warmup, 1)
    )
    if not warmup:
        return main
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, main], [warmup])


def _step(peak: float, steps: int) -> Schedule:
    return optax.piecewise_constant_schedule(
        peak, {steps // 2: 0.1, steps * 3 // 4: 0.1}
    )


SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    "cosine": optax.cosine_decay_schedule,
    "step": _step,
    "constant": lambda peak, _: optax.constant_schedule(peak),
}


def _coupled(config: TrainConfig, tx: Any) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(config.weight_decay), tx)


OPTIMIZERS: dict[str, Callable[[TrainConfig, Schedule], Any]] = {
    "sgd": lambda c, lr: _coupled(c, optax.sgd(lr, momentum=c.momentum)),
    "adamw": lambda c, lr: optax.adamw(lr, weight_decay=c.weight_decay),
    "lion": lambda c, lr: optax.lion(lr, weight_decay=c.weight_decay),
    "rmsprop": lambda c, lr: _coupled(c, optax.rmsprop(lr, momentum=c.momentum)),
    "adafactor": lambda c, lr: optax.adafactor(
        lr, weight_decay_rate=c.weight_decay or None
    ),
}


def make(
    config: TrainConfig,
    total_steps: int,
    *,
    dense: tuple[str, ...],
    aux_like: Any,
    value_fn: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
    """Returns the whole optimizer: gradient, clipping, decay, update rule, masks.

    Its `update` takes `value_fn(params) -> (loss, aux)` and needs no gradient (where
    `gradients.by_example`, `value_fn(params, examples=...)`, and a loss for each);
    `zosam_jax.estimate` reads loss and aux from its state.

    Args:
      config: The configuration.
      total_steps: Steps of the whole run.
      dense: Patterns of the parameters that stay dense.
      aux_like: Shapes of aux.
      value_fn: `params -> scalar` that a criterion at initialisation scores by;
        `init` calls it.

    Raises:
      ValueError: The sparsity cannot be met, or an argument is out of range.
    """
    rate = learning_rate(config, total_steps)
    rule = OPTIMIZERS[config.optimizer](config, rate)
    if config.clip_norm:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if gradients.decouples(config):
        rule = zs.decoupled(rule, rate)
    gradient = gradients.make(config, total_steps, rate, aux_like)
    method = methods.make(config, total_steps, dense=dense, value_fn=value_fn)
    if method is None:
        return optax.chain(gradient, rule)
    return zs.sparsify(rule, method, gradient=gradient)
