"""Update rules by name."""

import fnmatch
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zosam_jax import models, tree
from zosam_jax._calls import of_value
from zosam_jax._types import Params, PyTree, Schedule
from zosam_jax.runs.config import TrainConfig, default
from zosam_jax.train import constructors

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


Rule = Callable[..., optax.GradientTransformation]
"""A constructor of optimizers, as `optax.adam`."""


def update_rule(
    config: TrainConfig,
    rate: Schedule,
    embeddings: tuple[str, ...],
    own: Rule | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer that a configuration names, behind gradient clipping.

    Args:
      config: Gives `optimizer`, `momentum`, `weight_decay`, `clip_norm` and so on.
      rate: The learning-rate schedule.
      embeddings: Patterns of parameters that are no kernels, though they have two axes.
      own: A constructor in place of the named one. It gets the learning rate, and
        momentum, weight decay and its mask if it has parameters for them. Without one
        for the weight decay, the decay is added to the gradient.

    Raises:
      ValueError: The constructor does not fit, or raises an error.
    """
    make = OPTIMIZERS[config.optimizer] if own is None else functools.partial(_own, own)
    rule = make(config, rate, _decay_mask(config, embeddings))
    if config.clip_norm:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    return rule


def of_trained(
    rule: optax.GradientTransformation, freeze: tuple[str, ...]
) -> optax.GradientTransformation:
    """Returns the optimizer of the leaves that are not frozen.

    Frozen leaves have no moments, and do not count for clipping. `by_leaf` makes their
    updates zero.

    Args:
      rule: The optimizer.
      freeze: Patterns of the frozen leaves.
    """
    if not freeze:
        return rule

    def trained(params: Params) -> PyTree:
        paths = tree.paths(params)
        frozen = tree.matching("freeze", freeze, paths)
        return jax.tree.unflatten(
            jax.tree.structure(params), [path not in frozen for path in paths]
        )

    return optax.masked(rule, trained)


def by_leaf(
    rule: optax.GradientTransformation, freeze: tuple[str, ...], layer_decay: float
) -> optax.GradientTransformation:
    r"""Returns the optimizer with a learning rate for each leaf.

    With L blocks, decay d and the rate :math:`\eta`, the leaves of layer l (see
    `models.depths`) learn at

    .. math:: \eta_l = \eta \, d^{L + 1 - l}

    (BEiT, arXiv:2106.08254). Frozen leaves do not move, nor decay.

    Args:
      rule: The optimizer. Its updates must be linear in the learning rate, and its
        state must not depend on it. The weight decay of Adafactor, which is not
        multiplied by the learning rate, falls with the layers too.
      freeze: Patterns of the frozen leaves.
      layer_decay: d, in (0, 1].

    Raises:
      ValueError: At init, a pattern matches no leaf, the model has no blocks, or the
        optimizer is schedule-free and `layer_decay` < 1.
    """
    if not freeze and layer_decay == 1:
        return rule

    def factors(paths: list[str]) -> list[float]:
        found = [1.0] * len(paths)
        if layer_decay < 1:
            layers = models.depths(paths)
            found = [layer_decay ** (max(layers) - layer) for layer in layers]
        frozen = tree.matching("freeze", freeze, paths)
        pairs = zip(paths, found, strict=True)
        return [0.0 if path in frozen else x for path, x in pairs]

    def init(params: Params) -> PyTree:
        state = rule.init(params)
        if layer_decay < 1 and any(map(_is_schedule_free, _nodes(state))):
            raise ValueError(
                f"layer_decay={layer_decay:g}: a schedule-free optimizer keeps weights "
                "of its own, which would learn at the whole rate. Choose another "
                "optimizer, or leave layer_decay out."
            )
        return state

    def scale(updates: PyTree, params: Params | None) -> PyTree:
        del params
        leaves, structure = jax.tree.flatten(updates)
        scaled = [
            u * jnp.asarray(x, u.dtype) if x else jnp.zeros_like(u)
            for u, x in zip(leaves, factors(tree.paths(updates)), strict=True)
        ]
        return jax.tree.unflatten(structure, scaled)

    return optax.chain(rule._replace(init=init), optax.stateless(scale))


def _nodes(state: PyTree) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=_is_schedule_free)


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)


def _own(
    make: Rule, config: TrainConfig, rate: Schedule, mask: DecayMask
) -> optax.GradientTransformation:
    """Returns what a user's constructor makes."""
    name, takes = of_value(make), constructors.takes(make)
    if "learning_rate" not in takes:
        raise ValueError(
            f"optimizer={name} has no parameter learning_rate, which the trainer sets "
            "to its schedule. Give it one, or give the object that it makes."
        )
    fields = {"momentum": config.momentum, "nesterov": config.nesterov}
    set_ = {k: v for k, v in fields.items() if v != default(k)}
    constructors.refuse_idle("optimizer", takes, set_)
    values = {
        "learning_rate": rate,
        **fields,
        "weight_decay": config.weight_decay,
        "mask": mask,
        "weight_decay_mask": mask,
    }
    rule = constructors.call("optimizer", make, values)
    if not isinstance(rule, optax.GradientTransformation):
        raise ValueError(
            f"optimizer={name} returned {type(rule).__name__}, and must return an "
            "optax.GradientTransformation."
        )
    return rule if "weight_decay" in takes else _coupled(config, rule, mask)


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
