"""The sparse method that a configuration names: a constructor of the library.

Options are written as the constructor's signature has them, so that a new method needs
one row in `ROWS`.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp

import zosam_jax as zs
from zosam_jax import _check
from zosam_jax.train import option_strings

if TYPE_CHECKING:
    from zosam_jax.runs.config import TrainConfig


class Row(NamedTuple):
    """A sparse method of the trainer.

    Attributes:
      make: The constructor.
      fixed: Arguments that the name stands for.
      scores_by: What its `value_fn` is, a name of `criteria.value_fn`, or "".
    """

    make: Callable[..., zs.sparsity.SparseMethod]
    fixed: Mapping[str, Any] = {}
    scores_by: str = ""


ROWS = {
    "random": Row(zs.sparsity.static, {"criterion": "random"}),
    "magnitude": Row(zs.sparsity.static, {"criterion": "magnitude"}),
    "snip": Row(zs.sparsity.static, {"criterion": "snip"}, "loss"),
    "grasp": Row(zs.sparsity.static, {"criterion": "grasp"}, "cooled loss"),
    "synflow": Row(zs.sparsity.static, {"criterion": "synflow"}, "flow"),
    "set": Row(zs.sparsity.set_),
    "rigl": Row(zs.sparsity.rigl),
    "itop": Row(zs.sparsity.itop),
    "svite": Row(zs.sparsity.svite),
    "mest": Row(zs.sparsity.mest),
    "dsr": Row(zs.sparsity.dsr),
    "srigl": Row(zs.sparsity.srigl, {"last": ("head/kernel",)}),
    "nm": Row(zs.sparsity.nm),
    "units": Row(zs.sparsity.units),
    "gmp": Row(zs.sparsity.gmp),
    "ste": Row(zs.sparsity.ste),
    # All live: what a round of `lottery` starts from is put in.
    "ticket": Row(
        zs.sparsity.static,
        {"criterion": "magnitude", "sparsity": 0.0, "budget": "uniform"},
    ),
}
NAMES = ("dense", *ROWS)

# Steps of a training that is long enough for every method.
_LONG = 10**6

# Arguments that are fields of the configuration, by their names there.
_FIELDS = {
    "sparsity": "sparsity",
    "budget": "budget",
    "dense": "dense",
    "interval": "update_interval",
    "drop_fraction": "drop_fraction",
    "stop_fraction": "stop_fraction",
    "seed": "seed",
}
# What those of them that a method may lack are where nobody said anything.
_UNSAID = {
    "budget": ("auto",),
    "dense": ((), []),
    "update_interval": (None,),
    "drop_fraction": (None,),
    "stop_fraction": (None,),
}
_ELSEWHERE = {
    **{
        name: f"is a field of its own: {field} (--{field.replace('_', '-')})"
        for name, field in _FIELDS.items()
    },
    "total_steps": "follows from epochs (--epochs)",
    "value_fn": "is set: the first batch",
    "groups": "follow from the model (--model)",
    "criterion": "is set by the method's name",
    "masks": "cannot be given on a command line; call zs.sparsity.static(masks=...)",
}

# Options that are scores, and what they may be, by the names in `sparsity.scores`.
_SCORED = ("score", "grow")
_SCORES = ("magnitude", "gradient", "saliency", "random")


def make(
    config: "TrainConfig",
    total_steps: int,
    *,
    dense: tuple[str, ...] = (),
    value_fn: Callable[[Any], Any] | None = None,
) -> zs.sparsity.SparseMethod | None:
    """Returns the sparse method; None where the method is "dense".

    Args:
      config: The configuration.
      total_steps: Steps of the whole run.
      dense: Patterns of the parameters that stay dense.
      value_fn: `params -> scalar` that criteria at initialisation score by.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    if config.method == "dense":
        return None
    row = ROWS[config.method]
    takes = _parameters(row.make)
    values = {
        argument: getattr(config, field)
        for argument, field in _FIELDS.items()
        if argument in takes and getattr(config, field) not in (None, "auto")
    }
    if "dense" in takes:
        values["dense"] = dense
    values |= row.fixed
    given = options(config)
    if row.make is zs.sparsity.nm:
        for name in ("n", "m"):
            if name not in given:
                raise ValueError("method='nm' needs method_options: n=2 m=4, say.")
        values["dense"] = (
            *dense,
            lambda _, shape: len(shape) > 1 and bool(shape[-2] % given["m"]),
        )
    if "total_steps" in takes:
        values["total_steps"] = total_steps
    if "groups" in takes:
        from zosam_jax import models

        values["groups"] = models.unit_groups(
            config.model,
            width=config.width,
            **option_strings.parse("model_options", config.model_options),
        )
    if row.scores_by:
        values["value_fn"] = value_fn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return row.make(**{**values, **given})


def options(config: "TrainConfig") -> dict[str, Any]:
    """Returns the options of `config.method`, checked against its signature.

    Raises:
      ValueError: The method has no such option, or the trainer sets it itself.
    """
    values = option_strings.parse("method_options", config.method_options)
    if config.method == "dense":
        if values:
            raise ValueError(
                "method_options: method='dense' has no options; got "
                f"{', '.join(values)}."
            )
        return values
    takes = _parameters(ROWS[config.method].make)
    owner = "method", config.method
    option_strings.check("method_options", owner, values, takes, _ELSEWHERE)
    for name, value in values.items():
        if name in _SCORED:
            _check.one_of(f"method_options: {name}", value, _SCORES)
            values[name] = getattr(zs.sparsity.scores, str(value))
    return values


def scores_by(config: "TrainConfig") -> str:
    """Returns what a criterion at initialisation scores by; "" where there is none."""
    return "" if config.method == "dense" else ROWS[config.method].scores_by


def trains_pruned(config: "TrainConfig") -> bool:
    """Returns whether pruned weights are trained too (straight-through)."""
    method = make(config, _LONG, value_fn=float)
    return method is not None and method.straight_through is not None


def advice(config: "TrainConfig", total_steps: int) -> str | None:
    """Returns what to tell of a training whose topology never changes, else None."""
    method = make(config, total_steps, value_fn=float)
    if method is None or method.fires is None:
        return None
    fires = jax.jit(jax.vmap(method.fires))
    for start in range(0, total_steps, 4096):
        if fires(jnp.arange(start, min(start + 4096, total_steps))).any():
            return None
    return (
        f"the masks of method={config.method!r} never change in {total_steps} steps: "
        "take a smaller --update-interval"
    )


def live_params(config: "TrainConfig", params: Any, opt_state: Any) -> Any:
    """Returns the parameters of the network itself: zero where they are pruned.

    Args:
      config: The configuration.
      params: Those of a state, of which a straight-through method trains all.
      opt_state: Of the same state.
    """
    if config.method == "dense":
        return params
    return zs.sparsity.apply_masks(params, zs.sparsity.masks(opt_state))


def check(config: "TrainConfig", *, dense_gradient: bool) -> None:
    """Raises `ValueError` unless the method can be made as the configuration says.

    Args:
      config: The configuration.
      dense_gradient: Whether the gradient has the entries of pruned weights.
    """
    _check.one_of("method", config.method, NAMES)
    options(config)
    if config.method == "dense":
        return
    takes = _parameters(ROWS[config.method].make)
    for argument, field in _FIELDS.items():
        given = getattr(config, field)
        if argument not in takes and given not in _UNSAID.get(field, (given,)):
            raise ValueError(
                f"{field}={given!r}: method={config.method!r} has none. Where a preset "
                f"set it, say --{field.replace('_', '-')} None."
            )
    try:
        method = make(config, _LONG, value_fn=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"method={config.method!r} with "
            f"method_options={list(config.method_options)}: {error}"
        ) from error
    assert method is not None
    if config.method == "nm":
        given = options(config)
        pattern = 1 - given["n"] / given["m"]
        if abs(config.sparsity - pattern) > 1e-6:
            raise ValueError(
                f"method='nm' with n={given['n']} of m={given['m']} has sparsity "
                f"{pattern:g}, and sparsity={config.sparsity:g}. Say --sparsity "
                f"{pattern:g}."
            )
    if not dense_gradient and method.dense_gradient_every is not None:
        raise ValueError(
            f"method={config.method!r} uses the gradient of pruned weights, which a "
            "zeroth-order gradient does not estimate. Use method='set'."
        )


def _parameters(make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a constructor and their defaults, the shared options too."""
    found = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= dict.fromkeys(get_type_hints(zs.sparsity.Options))
        else:
            found[name] = parameter.default
    return found
