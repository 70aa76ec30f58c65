"""Which fields of a configuration have an effect beside its other choices.

To add a field that only some choices use, add a row to `NEEDS`.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

from zosam_jax.gradients import registry as gradients
from zosam_jax.runs.config import PERTURB_FIELDS, TrainConfig, default
from zosam_jax.sparsity import registry as sparse_methods
from zosam_jax.train import named_method, option_strings


class Need(NamedTuple):
    """What a field needs.

    Attributes:
      is_met: Whether a configuration uses the field.
      text: What uses the field, to complete "it is for ...".
      of: The part of the run that the field describes, as in `objects.KINDS`.
    """

    is_met: Callable[[TrainConfig], bool]
    text: str
    of: str


def _gradient_takes(argument: str) -> Callable[[TrainConfig], bool]:
    def takes(config: TrainConfig) -> bool:
        row = gradients.METHODS.get(config.gradient)
        return row is None or argument in option_strings.defaults(row.make)

    return takes


def _method_takes(field: str) -> Callable[[TrainConfig], bool]:
    def takes(config: TrainConfig) -> bool:
        if config.method == "dense":
            return False
        row = sparse_methods.METHODS.get(config.method)
        # n and m of N:M sparsity say the sparsity, which must agree with the field.
        is_pattern = config.method == "nm" and field == "sparsity"
        return row is None or is_pattern or named_method.takes(row, field)

    return takes


def _scores_by_loss(config: TrainConfig) -> bool:
    row = sparse_methods.METHODS.get(config.method)
    return row is not None and "loss" in row.scores_by


def _has_momentum(config: TrainConfig) -> bool:
    return config.optimizer not in ("adamw", "lion", "adafactor")


def _is_of_tfds(config: TrainConfig) -> bool:
    from zosam_jax.data import table

    return table.is_of_tfds(config.dataset)


_METHOD = "sparse methods that have it"

NEEDS: dict[str, Need] = {
    "data_dir": Need(_is_of_tfds, "data sets of TFDS", "dataset"),
    **{
        field: Need(_method_takes(field), _METHOD, "method")
        for field in (
            "sparsity",
            "budget",
            "dense",
            "update_interval",
            "drop_fraction",
            "stop_fraction",
        )
    },
    "block": Need(lambda c: c.method != "dense", _METHOD, "method"),
    "compact_every": Need(lambda c: c.method != "dense", _METHOD, "method"),
    "score_images": Need(_scores_by_loss, "methods snip and grasp", "method"),
    "from_masks": Need(lambda c: c.from_ is not None, "--from", "weights"),
    "rho": Need(_gradient_takes("rho"), "sharpness-aware gradients", "gradient"),
    "aux_from": Need(
        _gradient_takes("aux_from"), "gradients of several passes", "gradient"
    ),
    **{
        field: Need(_gradient_takes("rho"), "sharpness-aware gradients", "gradient")
        for field in PERTURB_FIELDS
    },
    "probe_norm": Need(
        lambda c: c.probe_fraction < 1, "a probe fraction below 1", "gradient"
    ),
    "momentum": Need(
        lambda c: _has_momentum(c) or _gradient_takes("momentum")(c),
        "optimizer sgd or rmsprop, and gradient msam",
        "optimizer",
    ),
    "nesterov": Need(
        lambda c: _has_momentum(c) and c.momentum > 0,
        "optimizer sgd or rmsprop, with a momentum above 0",
        "optimizer",
    ),
    "decay": Need(lambda c: c.weight_decay > 0, "a weight decay above 0", "optimizer"),
    "milestones": Need(lambda c: c.schedule == "step", "schedule step", "optimizer"),
    "final_learning_rate": Need(
        lambda c: c.schedule == "cosine", "schedule cosine", "optimizer"
    ),
}
"""By field. Fields that are not here are used by every training."""


def without_effect(config: TrainConfig, typed: Collection[str] = ()) -> list[str]:
    """Returns the fields that are set and have no effect.

    >>> without_effect(TrainConfig(optimizer="lion", momentum=0.5))
    ['momentum']

    Args:
      config: The configuration.
      typed: Fields that count as set even if they have their default values.
    """
    return [
        name
        for name, need in NEEDS.items()
        if getattr(config, name) != default(name)
        or (name in typed and default(name) not in (None, ()))
        if not need.is_met(config)
    ]


def is_used(config: TrainConfig, name: str) -> bool:
    """Whether a training of a configuration uses a field.

    >>> is_used(TrainConfig(method="dense"), "sparsity")
    False

    Args:
      config: The configuration.
      name: The field.
    """
    return name not in NEEDS or NEEDS[name].is_met(config)


def explain(config: TrainConfig, name: str) -> str:
    """Returns why a field of `without_effect` has none.

    Args:
      config: The configuration.
      name: The field.
    """
    need, value = NEEDS[name], getattr(config, name)
    if need.text == _METHOD:
        return f"{name}={value!r} has no effect with method={config.method!r}."
    return no_effect(name, value, need.text)


def no_effect(name: str, value: object, use: str) -> str:
    """Returns the sentence about a value without effect.

    Args:
      name: Its name.
      value: The value.
      use: What it is for.
    """
    return f"{name}={value!r} has no effect here: it is for {use}. Leave it out."


def check(config: TrainConfig, given: Collection[str] = ()) -> None:
    """Raises `ValueError` if a field is set and has no effect.

    >>> check(TrainConfig(optimizer="lion", momentum=0.5))
    Traceback (most recent call last):
    ...
    ValueError: momentum=0.5 has no effect here: it is for optimizer sgd or rmsprop, \
and gradient msam. Leave it out.

    Args:
      config: The configuration.
      given: The parts that objects take the place of, as "optimizer". Their fields are
        not looked at.
    """
    for name in without_effect(config):
        if NEEDS[name].of not in given:
            raise ValueError(explain(config, name))
