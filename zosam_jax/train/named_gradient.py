"""The gradient estimator that a configuration names."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._types import Aux, Radius, Schedule, SharedOptions
from zosam_jax.gradients import timing
from zosam_jax.gradients.methods.gsam import tied_radius
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.config import GRADIENT_FIELDS, TrainConfig, default
from zosam_jax.train import option_strings

_SHARED_BATCH = (
    "has no meaning: the devices share a batch (--batch-size) and one perturbation. "
    "microbatches=k gives each part of a batch its own"
)
_AUX = "is set: aux carries the batch statistics and the training accuracy"
_RESERVED = {
    "rho": "is a field of its own: rho (--rho)",
    "seed": "is a field of its own: seed (--seed)",
    "aux_from": "is a field of its own: aux_from (--aux-from)",
    "total_steps": "follows from epochs (--epochs)",
    "learning_rate": "is a field of its own: learning_rate (--learning-rate)",
    "ascent_value_fn": "is made by probe_dtype (--probe-dtype)",
    "ascent_fraction": "is a field of its own: probe_fraction (--probe-fraction)",
    "when": "is a function; --perturb-from, --perturb-every and --perturb-probability "
    "choose the steps",
    "has_aux": _AUX,
    "aux_like": _AUX,
    "axis_name": _SHARED_BATCH,
    "sync_ascent": _SHARED_BATCH,
}


class ChosenGradient(NamedTuple):
    """A gradient estimator whose name and options are known to exist.

    Attributes:
      name: Its name, as its user wrote it.
      make: The constructor.
      takes: Its arguments with their defaults.
      options: The options of the configuration, by name.
      rho: A radius in place of that of the configuration, as one that is traced.
    """

    name: str
    make: Callable[..., GradientEstimator]
    takes: Mapping[str, Any]
    options: Mapping[str, Any]
    rho: Radius | None = None

    def build(
        self,
        config: TrainConfig,
        total_steps: int,
        learning_rate: Schedule | None,
        aux_like: Aux = None,
    ) -> GradientEstimator:
        """Returns the gradient estimator.

        Args:
          config: The configuration.
          total_steps: Optimizer steps of the whole run.
          learning_rate: The learning-rate schedule, by which sampa looks ahead and to
            which `rho_min` of gsam ties the radius; None if unknown.
          aux_like: Shapes of aux.

        Raises:
          ValueError: An option is out of range.
        """
        if "learning_rate" in self.takes and learning_rate is None:
            raise ValueError(
                f"gradient={self.name!r} takes steps of the learning rate, which is "
                "unknown with your own optimizer=. Call run(gradient="
                f"zs.{self.name}(learning_rate=...)) with it."
            )
        options = dict(self.options)
        rho = config.rho if self.rho is None else self.rho
        if "rho_min" in options:
            rho_min = options.pop("rho_min")
            rho = self._tied_radius(config, total_steps, learning_rate, rho_min)
        values = {
            "rho": rho,
            "momentum": config.momentum,
            "total_steps": total_steps,
            "learning_rate": learning_rate,
            "aux_from": "descent" if config.probes else config.aux_from,
            "has_aux": True,
            "aux_like": aux_like,
            "max_norm": self._max_norm(config),
        }
        values = {k: v for k, v in values.items() if k in self.takes and v is not None}
        if config.freeze and "exclude" in self.takes:
            left_out = _check.patterns("exclude", options.get("exclude", ()))
            options["exclude"] = (*left_out, *config.freeze)
        try:
            made = self.make(**{**values, **options})
            return _timed(made, config, total_steps)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"gradient={self.name!r} with "
                f"gradient_options={list(config.gradient_options)}: {error}"
            ) from error

    def _max_norm(self, config: TrainConfig) -> float | None:
        """Returns `clip_norm` for a gradient in two parts, which clips both itself.

        Clipping in the optimizer would reach the gradient at w alone.
        """
        if not self.options.get("decouple") or not config.clip_norm:
            return None
        if "max_norm" in self.options:
            raise ValueError(
                f"clip_norm={config.clip_norm:g} is the max_norm of gradient="
                f"{self.name!r} with decouple=True. Leave max_norm out of "
                "gradient_options."
            )
        return config.clip_norm

    def _tied_radius(
        self,
        config: TrainConfig,
        total_steps: int,
        learning_rate: Schedule | None,
        rho_min: float,
    ) -> Schedule:
        """Returns the radius that follows the learning rate, from rho to `rho_min`.

        It is `rho_min` at the end of the schedule and throughout the part of the
        warm-up in which the learning rate is below that of the end.
        """
        if learning_rate is None:
            raise ValueError(
                "gradient_options: rho_min ties the radius to the learning rate, which "
                "is unknown with your own optimizer=. Leave rho_min out."
            )
        least = float(jnp.asarray(learning_rate(total_steps)))
        if not least < config.learning_rate * (1 - 1e-6):
            raise ValueError(
                "gradient_options: rho_min ties the radius to the fall of the learning "
                f"rate, which ends at {least:g} and does not fall from "
                f"{config.learning_rate:g}. Leave rho_min out, or say --schedule "
                "cosine with a smaller --final-learning-rate."
            )
        return tied_radius(
            learning_rate,
            rho_max=self.takes["rho"] if config.rho is None else config.rho,
            rho_min=rho_min,
            lr_max=config.learning_rate,
            lr_min=least,
        )


def _timed(
    gradient: GradientEstimator, config: TrainConfig, total_steps: int
) -> GradientEstimator:
    """Returns the gradient, perturbed in the steps that the configuration says."""
    if config.perturb_from > 0:
        start = math.ceil(config.perturb_from * total_steps)
        gradient = timing.late(gradient, start)
    if config.perturb_every > 1:
        gradient = timing.every(gradient, config.perturb_every)
    if config.perturb_probability < 1:
        # The same steps for every seed, which is data of the program.
        gradient = timing.randomly(gradient, config.perturb_probability)
    return gradient


def choose(
    config: TrainConfig, make: Callable[..., GradientEstimator], name: str
) -> ChosenGradient:
    """Returns a gradient, its options parsed and checked against its signature.

    Args:
      config: The configuration.
      make: The constructor.
      name: Its name, as its user wrote it.

    Raises:
      ValueError: An option is unknown, or the trainer sets it.
    """
    takes = option_strings.defaults(make, SharedOptions)
    options = option_strings.parse("gradient_options", config.gradient_options)
    known = takes | ({"rho_min": None} if name == "gsam" else {})
    types = option_strings.types(make)
    option_strings.check("gradient_options", name, options, known, _RESERVED, types)
    if "rho_min" in options:
        _check.number("gradient_options: rho_min", options["rho_min"], least=0)
    return ChosenGradient(name, make, takes, options)


def check_unset(config: TrainConfig) -> None:
    """Raises `ValueError` if fields of a named gradient are set beside a given one."""
    for field in GRADIENT_FIELDS:
        value = getattr(config, field)
        if value != default(field):
            raise ValueError(
                f"{field}={value!r} is for a gradient that the configuration names, "
                "and gradient= is given. Leave one of them out."
            )


def check_fits(
    config: TrainConfig,
    gradient: GradientEstimator,
    direction_only: Callable[[], Sequence[str]],
) -> None:
    """Raises `ValueError` for fields that do not go with the gradient.

    Args:
      config: The configuration.
      gradient: The gradient estimator.
      direction_only: Returns the names of the gradients whose ascent step gives a
        direction alone, for the message.
    """
    if gradient.decoupled and config.accumulate_steps > 1:
        raise ValueError(
            f"accumulate_steps={config.accumulate_steps} averages one gradient, but "
            f"gradient={gradient.name!r} with decouple=True has two parts. Say "
            "decouple=False."
        )
    own_rates = [f"freeze={list(config.freeze)}"] if config.freeze else []
    if config.layer_decay < 1:
        own_rates.append(f"layer_decay={config.layer_decay:g}")
    if own_rates and gradient.name == "sampa":
        raise ValueError(
            f"{own_rates[0]}: sampa looks one step ahead, at one learning rate for all "
            "parameters. Take another gradient, as sam."
        )
    if not config.probes:
        return
    asked = f"probe_fraction={config.probe_fraction:g}"
    if config.probe_fraction == 1:
        asked = f"probe_dtype={config.probe_dtype!r}"
    if not gradient.direction_only:
        if gradient.name == "esam":
            raise ValueError(
                f"{asked}: esam compares the losses of its two passes, example by "
                "example. Say gamma=1 in gradient_options."
            )
        raise ValueError(
            f"{asked} needs a gradient whose ascent step only finds a direction: "
            f"{', '.join(direction_only())}; not gradient={gradient.name!r}."
        )
    if config.aux_from == "ascent":
        raise ValueError(
            f"{asked}: the batch statistics of a cheaper pass differ from those of "
            "the batch. Use aux_from='descent'."
        )
