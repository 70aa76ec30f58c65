"""From a configuration to one Optax transformation: tables, one row a choice."""

import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import optax

import zosam_jax as zs
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import gradients, methods

Schedule = Callable[[Any], Any]


def learning_rate(config: TrainConfig, total_steps: int) -> Schedule:
    """Returns the learning rate as a function of the optimizer step.

    Args:
      config: Its `learning_rate`, `schedule` and `warmup_epochs` count.
      total_steps: Steps of the whole run.
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

_Mask = Callable[[Any], Any] | None


def _coupled(config: TrainConfig, tx: Any, mask: _Mask) -> Any:
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask), tx)


OPTIMIZERS: dict[str, Callable[[TrainConfig, Schedule, _Mask], Any]] = {
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


def _decayed(config: TrainConfig, dense: tuple[str, ...]) -> _Mask:
    """Returns what the weight decay is for: `params -> tree of bool`; None: all."""
    if config.decay == "all":
        return None

    def mask(params: Any) -> Any:
        paths = zs.tree.paths(params)
        leaves, treedef = jax.tree.flatten(params)
        return treedef.unflatten(
            x.ndim > 1 and not any(fnmatch.fnmatchcase(path, p) for p in dense)
            for path, x in zip(paths, leaves, strict=True)
        )

    return mask


def make(
    config: TrainConfig,
    total_steps: int,
    *,
    dense: tuple[str, ...],
    embeddings: tuple[str, ...] = (),
    aux_like: Any,
    value_fn: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
    """Returns the whole optimizer: gradient, clipping, decay, update rule, masks.

    Its `update` takes `value_fn(params) -> (loss, aux)` and needs no gradient (where
    `gradients.by_example`, `value_fn(params, examples=...)`, and a loss for each);
    `zosam_jax.estimate` reads loss and aux from its state.

    Args:
      config: The configuration.
      total_steps: Steps of the optimizer in the whole run.
      dense: Patterns of the parameters that stay dense.
      embeddings: Patterns of those that are no kernels, though they have two axes.
      aux_like: Shapes of aux.
      value_fn: `params -> scalar` that a criterion at initialisation scores by;
        `init` calls it.

    Raises:
      ValueError: The sparsity cannot be met, or an argument is out of range.
    """
    rate = learning_rate(config, total_steps)
    rule = OPTIMIZERS[config.optimizer](config, rate, _decayed(config, embeddings))
    if config.clip_norm:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if gradients.decouples(config):
        rule = zs.decoupled(rule, rate)
    gradient = gradients.make(config, total_steps, rate, aux_like)
    method = methods.make(config, total_steps, dense=dense, value_fn=value_fn)
    batches = config.accumulate_steps
    if method is not None:
        return zs.sparsify(rule, method, gradient=gradient, accumulate_steps=batches)
    if batches > 1:
        rule = optax.MultiSteps(rule, batches).gradient_transformation()
    return optax.chain(gradient, rule)
