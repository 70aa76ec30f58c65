"""The names of a configuration looked up: constructors with checked options.

It needs neither the data set nor the model, so that the command line refuses an unknown
name at once. `build` makes the objects.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from zosam_jax import _check
from zosam_jax._calls import of_value
from zosam_jax._types import Units
from zosam_jax.gradients import registry as gradients
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.models import table as models
from zosam_jax.runs.code_names import check_code
from zosam_jax.runs.config import TrainConfig
from zosam_jax.sparsity import registry as sparse_methods
from zosam_jax.sparsity.budgets import BUDGETS
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.train import (
    constructors,
    learning_rates,
    named_gradient,
    named_method,
    option_strings,
)
from zosam_jax.train.named_gradient import ChosenGradient
from zosam_jax.train.named_method import ChosenMethod, Needs
from zosam_jax.train.objects import Objects
from zosam_jax.train.optimizers import OPTIMIZERS

METHODS = ("dense", *(name for name in sparse_methods.METHODS if name != "ticket"))

# Arguments of the models' constructors that the trainer sets.
_MODEL_FIELDS = {
    "name": "is a field of its own: model (--model)",
    "width": "is a field of its own: width (--width)",
    "dtype": "is a field of its own: dtype (--dtype)",
    "num_classes": "follows from the data set (--dataset)",
    "image_size": "follows from the data set (--dataset)",
    "segmentation": "follows from the data set (--dataset)",
}

# A training that is long enough for every method.
_LONG = 10**6


class Choices(NamedTuple):
    """What the names of a configuration stand for.

    Attributes:
      gradient: The gradient, named or of a given constructor; None if an object is
        given in its place.
      method: The sparse method, likewise; None also for "dense".
      model_options: The options of the model, by name.
    """

    gradient: ChosenGradient | None
    method: ChosenMethod | None
    model_options: dict[str, object]

    def unit_groups(self, config: TrainConfig) -> dict[str, Units]:
        """Returns the prunable units of the model that a configuration names."""
        return models.unit_groups(
            config.model, width=config.width, **self.model_options
        )

    def method_name(self, method: SparseMethod) -> str:
        """Returns the name of the sparse method as its user wrote it.

        Args:
          method: The method; one that was given as an object has its own name.
        """
        return method.name if self.method is None else self.method.name

    def check_together(
        self,
        config: TrainConfig,
        gradient: GradientEstimator,
        method: SparseMethod | None,
    ) -> None:
        """Raises `ValueError` if gradient, method and configuration do not fit."""
        named_gradient.check_fits(config, gradient, _direction_only)
        if method is None or gradient.dense or method.dense_gradient_every is None:
            return
        raise ValueError(
            f"method={self.method_name(method)!r} uses the gradient of pruned weights, "
            "which a zeroth-order gradient does not estimate. Use method='set'."
        )


def choose(
    config: TrainConfig,
    *,
    gradient: GradientEstimator | Callable[..., GradientEstimator] | None = None,
    method: SparseMethod | Callable[..., SparseMethod] | None = None,
    optimizer: object = None,
) -> Choices:
    """Returns what the names of a configuration stand for.

    Args:
      config: The configuration.
      gradient: An object in place of `config.gradient`, or its constructor.
      method: An object in place of `config.method`, or its constructor.
      optimizer: What is given in place of `config.optimizer`.

    Raises:
      ValueError: A name or an option is unknown, or fields do not go together.
    """
    if optimizer is None:
        check_code("optimizer", config.optimizer)
        _check.one_of("optimizer", config.optimizer, OPTIMIZERS)
    model_options = option_strings.parse("model_options", config.model_options)
    for name in model_options:
        if name in _MODEL_FIELDS:
            raise ValueError(f"model_options: {name} {_MODEL_FIELDS[name]}.")
    # A model of the user's own may have any name.
    if config.model in models.names():
        owner = f"model_options: {config.model}"
        models.check_options(config.model, model_options, owner)
    return Choices(_gradient(config, gradient), _method(config, method), model_options)


def _gradient(
    config: TrainConfig,
    given: GradientEstimator | Callable[..., GradientEstimator] | None,
) -> ChosenGradient | None:
    if isinstance(given, GradientEstimator):
        named_gradient.check_unset(config)
        return None
    if given is None:
        return _named_gradient(config)
    make = constructors.explained(given, GradientEstimator)
    found = named_gradient.choose(config, make, of_value(given))
    if config.rho is not None:
        constructors.refuse_idle("gradient", found.takes, {"rho": config.rho})
    return found


def _named_gradient(config: TrainConfig) -> ChosenGradient:
    check_code("gradient", config.gradient)
    _check.one_of("gradient", config.gradient, gradients.METHODS)
    make = gradients.METHODS[config.gradient].make
    return named_gradient.choose(config, make, config.gradient)


def _method(
    config: TrainConfig, given: SparseMethod | Callable[..., SparseMethod] | None
) -> ChosenMethod | None:
    if isinstance(given, SparseMethod):
        named_method.check_unset(config)
        return None
    if given is not None:
        name = of_value(given)
        make = constructors.explained(given, SparseMethod)
        row = sparse_methods.NamedMethod(make, name, "", "")
        return named_method.choose(config, row, name)
    if config.method == "ticket":
        raise ValueError(
            "method='ticket' is a round of lottery tickets, the outcome of earlier "
            "rounds. Use `zosam lottery` (or run_lottery)."
        )
    check_code("method", config.method)
    _check.one_of("method", config.method, METHODS)
    _check.one_of("budget", config.budget, ("auto", *BUDGETS, "global"))
    row = sparse_methods.METHODS.get(config.method)
    return named_method.choose(config, row, config.method)


def check(
    config: TrainConfig,
    *,
    gradient: GradientEstimator | Callable[..., GradientEstimator] | None = None,
    method: SparseMethod | Callable[..., SparseMethod] | None = None,
    optimizer: object = None,
) -> None:
    """Raises `ValueError` unless the gradient and the method can be made.

    Everything is made once for a long training, without data set and model.

    Args:
      config: The configuration.
      gradient: As in `choose`.
      method: As in `choose`.
      optimizer: As in `choose`.
    """
    choices = choose(config, gradient=gradient, method=method, optimizer=optimizer)
    rate = None
    if not isinstance(optimizer, optax.GradientTransformation):
        rate = learning_rates.schedule(config, _LONG)
    if choices.gradient is not None:
        gradient = choices.gradient.build(config, _LONG, rate)
    if choices.method is not None:
        needs = Needs(_LONG, (), lambda: choices.unit_groups(config), config.seed)
        method = choices.method.build(config, needs)
    assert isinstance(gradient, GradientEstimator)
    assert method is None or isinstance(method, SparseMethod)
    choices.check_together(config, gradient, method)


def of_stored(config: TrainConfig, given: Objects) -> tuple[Objects, Choices]:
    """Returns the objects of a run that is read back, and what its names stand for.

    A lottery round has the method of tickets, which no name stands for.

    Args:
      config: The configuration of the run.
      given: The objects that it was given.

    Raises:
      ValueError: A name or an option is unknown, or fields do not go together.
    """
    if config.method == "ticket":
        given = given._replace(method=ticket_method(config))
    chosen = choose(
        config,
        gradient=given.gradient,
        method=given.method,
        optimizer=given.optimizer,
    )
    return given, chosen


def ticket_method(config: TrainConfig) -> SparseMethod:
    """Returns the sparse method of a lottery round: static masks, all live at first.

    The state that a round starts from has its own masks.

    Args:
      config: Gives the parameters that stay dense, and those that do not move.
    """
    own = models.dense_paths(config.model) if config.model in models.names() else ()
    ticket = sparse_methods.METHODS["ticket"]
    return ticket.make(**ticket.fixed, dense=(*own, *config.dense, *config.freeze))


def _direction_only() -> list[str]:
    """Returns the gradients whose ascent step gives a direction alone."""
    found = []
    for name in gradients.METHODS:
        config = TrainConfig(gradient=name)
        rate = learning_rates.schedule(config, _LONG)
        if _named_gradient(config).build(config, _LONG, rate).direction_only:
            found.append(name)
    return found
