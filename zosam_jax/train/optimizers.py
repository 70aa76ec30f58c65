"""Update rules by name."""

import fnmatch
from collections.abc import Callable

import jax
import optax

from zosam_jax import tree
from zosam_jax._types import Params, PyTree, Schedule
from zosam_jax.runs.config import TrainConfig

DecayMask = Callable[[Params], PyTree] | None
"""`params -> tree of bool`, the parameters with weight decay; None for all."""


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
