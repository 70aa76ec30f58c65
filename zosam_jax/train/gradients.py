"""The gradient that a configuration names: a constructor of the library, by a rule.

Options are written as the constructor's signature has them, so that a new method needs
one entry in `NAMES`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import zosam_jax as zs
from zosam_jax import _check
from zosam_jax.train import option_strings

if TYPE_CHECKING:
    from zosam_jax.runs.config import TrainConfig

NAMES = (
    *("backprop", "zeroth_order"),
    *("sam", "asam", "gsam", "fsam", "vasso", "wsam"),
    *("esam", "looksam", "aesam", "ssam"),
    *("s2sam", "msam", "rwp", "mrwp", "arwp"),
    *("zosam", "rst"),
)

# Their look uphill gives a direction and no part of the gradient: it may be cheaper.
PROBING = ("sam", "asam", "fsam", "vasso", "esam", "ssam", "zosam")

_ELSEWHERE = {
    "rho": "is a field of its own: rho (--rho)",
    "seed": "is a field of its own: seed (--seed)",
    "aux_from": "is a field of its own: aux_from (--aux-from)",
    "total_steps": "follows from epochs (--epochs)",
    "ascent_value_fn": "is made by probe_fraction (--probe-fraction) and probe_dtype "
    "(--probe-dtype)",
    "has_aux": "is set: aux carries the batch statistics and the training accuracy",
    "aux_like": "is set: aux carries the batch statistics and the training accuracy",
    "axis_name": "has no meaning: the devices share a batch (--batch-size) and one "
    "perturbation. microbatches=k gives each part of a batch its own",
    "sync_ascent": "has no meaning: the devices share a batch (--batch-size) and one "
    "perturbation. microbatches=k gives each part of a batch its own",
}


def options(config: "TrainConfig") -> dict[str, Any]:
    """Returns the options of `config.gradient`, checked against its signature.

    Raises:
      ValueError: The method has no such option, or the trainer sets it itself.
    """
    values = option_strings.parse("gradient_options", config.gradient_options)
    takes = {name: p.default for name, p in _parameters(config.gradient).items()}
    if config.gradient == "gsam":
        takes["rho_min"] = None
    owner = "gradient", config.gradient
    option_strings.check("gradient_options", owner, values, takes, _ELSEWHERE)
    if "rho_min" in values:
        _check.number("gradient_options: rho_min", values["rho_min"], least=0)
    return values


def radius(config: "TrainConfig") -> float | None:
    """Returns rho, or the method's own; None for a method without one."""
    takes = _parameters(config.gradient)
    if "rho" not in takes:
        return None
    return takes["rho"].default if config.rho is None else config.rho


def make(
    config: "TrainConfig",
    total_steps: int,
    learning_rate: Callable[[Any], Any],
    aux_like: Any = None,
) -> zs.GradientEstimator:
    """Returns the gradient estimator: the options, and what the trainer knows.

    Args:
      config: The configuration.
      total_steps: Steps of the whole run.
      learning_rate: Its schedule, which `rho_min` of gsam ties the radius to.
      aux_like: Shapes of aux.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    values = options(config)
    rho: Any = config.rho
    if "rho_min" in values:
        rho = zs.tied_radius(
            learning_rate,
            rho_max=radius(config) or 0.0,
            rho_min=values.pop("rho_min"),
            lr_max=config.learning_rate,
        )
    ours = {
        "rho": rho,
        "momentum": config.momentum,
        "total_steps": total_steps,
        "aux_from": "descent" if config.probes else config.aux_from,
        "has_aux": True,
        "aux_like": aux_like,
        "seed": config.seed,
    }
    takes = _parameters(config.gradient)
    ours = {k: v for k, v in ours.items() if k in takes and v is not None}
    return getattr(zs, config.gradient)(**{**ours, **values})


def by_example(config: "TrainConfig") -> bool:
    """Returns whether the gradient wants the losses of single examples."""
    return make(config, 1, float).by_example


def decouples(config: "TrainConfig") -> bool:
    """Returns whether the gradient comes in two parts, for `zs.decoupled`."""
    return bool(options(config).get("decouple", False))


def is_dense(config: "TrainConfig") -> bool:
    """Returns whether the gradient has the entries of pruned weights."""
    return make(config, 1, float).dense


def check(config: "TrainConfig") -> None:
    """Raises `ValueError` unless the gradient can be made as the configuration says."""
    _check.one_of("gradient", config.gradient, NAMES)
    values = options(config)
    try:
        make(config, 1, float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"gradient={config.gradient!r} with "
            f"gradient_options={list(config.gradient_options)}: {error}"
        ) from error
    if values.get("decouple") and config.accumulate_steps > 1:
        raise ValueError(
            f"accumulate_steps={config.accumulate_steps} averages one gradient, and "
            f"that of gradient={config.gradient!r} with decouple=True has two parts. "
            "Say decouple=False."
        )
    if config.probes:
        _check_probes(config, values)


def _check_probes(config: "TrainConfig", values: Mapping[str, Any]) -> None:
    asked = f"probe_fraction={config.probe_fraction:g}"
    if config.probe_fraction == 1:
        asked = f"probe_dtype={config.probe_dtype!r}"
    if config.gradient not in PROBING:
        raise ValueError(
            f"{asked} needs a gradient that looks uphill for a direction alone: "
            f"{', '.join(PROBING)}; not gradient={config.gradient!r}."
        )
    gamma = values.get("gamma", _parameters("esam")["gamma"].default.value)
    if config.gradient == "esam" and gamma < 1:
        raise ValueError(
            f"{asked}: esam compares the losses of its two passes, example by example. "
            "Say gamma=1 in gradient_options."
        )
    if config.aux_from == "ascent":
        raise ValueError(
            f"{asked}: the batch statistics of a cheaper pass are not those of the "
            "batch. Use aux_from='descent'."
        )


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(zs, name)).parameters
