"""The names of a configuration looked up: constructors with checked options.

It needs neither the data set nor the model and imports nothing heavy, so that the
command line refuses an unknown name at once. `build` makes the objects.
"""

from typing import NamedTuple

import optax

from zosam_jax import _check
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.config import TrainConfig
from zosam_jax.sparsity import SparseMethod
from zosam_jax.train import named_gradient, named_method, option_strings
from zosam_jax.train.named_gradient import ChosenGradient
from zosam_jax.train.named_method import ChosenMethod, Needs
from zosam_jax.train.optimizers import OPTIMIZERS

# A training that is long enough for every method.
_LONG = 10**6


class Choices(NamedTuple):
    """What the names of a configuration stand for.

    Attributes:
      gradient: The gradient; None if an object is given in its place.
      method: The sparse method; None if an object is given, or for "dense".
      model_options: The options of the model, by name.
    """

    gradient: ChosenGradient | None
    method: ChosenMethod | None
    model_options: dict[str, object]


def choose(
    config: TrainConfig,
    *,
    gradient: GradientEstimator | None = None,
    method: SparseMethod | None = None,
) -> Choices:
    """Returns what the names of a configuration stand for.

    Args:
      config: The configuration.
      gradient: An object in place of `config.gradient`.
      method: An object in place of `config.method`.

    Raises:
      ValueError: A name or an option is unknown, or fields do not go together.
    """
    _check.one_of("optimizer", config.optimizer, OPTIMIZERS)
    model_options = option_strings.parse("model_options", config.model_options)
    if gradient is not None:
        named_gradient.check_unset(config)
    if method is not None:
        named_method.check_unset(config)
    return Choices(
        named_gradient.choose(config) if gradient is None else None,
        named_method.choose(config) if method is None else None,
        model_options,
    )


def check(config: TrainConfig) -> None:
    """Raises `ValueError` unless the gradient and the method can be made.

    Everything is made once for a long training, without data set and model.
    """
    choices = choose(config)
    assert choices.gradient is not None
    gradient = choices.gradient.build(config, 1, optax.constant_schedule(0.1))
    method = None
    if choices.method is not None:
        needs = Needs(_LONG, (), lambda: unit_groups(config, choices))
        method = choices.method.build(config, needs)
    check_together(config, gradient, method)


def unit_groups(config: TrainConfig, choices: Choices) -> dict:
    """Returns the prunable units of the model that a configuration names."""
    from zosam_jax import models

    return models.unit_groups(config.model, width=config.width, **choices.model_options)


def check_together(
    config: TrainConfig, gradient: GradientEstimator, method: SparseMethod | None
) -> None:
    """Raises `ValueError` if gradient, method and configuration do not fit together."""
    named_gradient.check_fits(config, gradient)
    if method is None or gradient.dense or method.dense_gradient_every is None:
        return
    raise ValueError(
        f"method={config.method!r} uses the gradient of pruned weights, which a "
        "zeroth-order gradient does not estimate. Use method='set'."
    )
