"""The sparse method that a configuration names."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from zosam_jax import _check, _options
from zosam_jax._types import Seed, Units, ValueFn
from zosam_jax.runs.config import METHOD_FIELDS, TrainConfig, default
from zosam_jax.sparsity.blocks import blocks
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import Options
from zosam_jax.sparsity.methods.nm import nm
from zosam_jax.train import option_strings

if TYPE_CHECKING:
    from zosam_jax.sparsity.registry import NamedMethod

# Arguments of the constructors that are fields of the configuration.
_FIELDS = {
    "sparsity": "sparsity",
    "budget": "budget",
    "dense": "dense",
    "interval": "update_interval",
    "drop_fraction": "drop_fraction",
    "stop_fraction": "stop_fraction",
}
_RESERVED = {
    **{
        argument: f"is a field of its own: {field} (--{field.replace('_', '-')})"
        for argument, field in _FIELDS.items()
    },
    "seed": "is a field of its own: seed (--seed)",
    "total_steps": "follows from epochs (--epochs)",
    "value_fn": "is set: the first batch, or score_images (--score-images)",
    "groups": "follow from the model (--model)",
    "criterion": "is set by the method's name",
    "masks": "cannot be given on a command line; call zs.sparsity.static(masks=...)",
}


class Needs(NamedTuple):
    """The inputs of a sparse method that are not taken from the configuration.

    Attributes:
      total_steps: Optimizer steps of the whole run.
      dense: Patterns of the parameters that stay dense.
      groups: The prunable units of the model, called for method `units` alone.
      seed: The seed of its draws, which may be traced.
      value_fn: `params -> scalar` that criteria at initialisation score by.
    """

    total_steps: int
    dense: tuple[str, ...]
    groups: Callable[[], dict[str, Units]]
    seed: Seed
    value_fn: ValueFn = float


class ChosenMethod(NamedTuple):
    """A sparse method whose name and options are known to exist.

    Attributes:
      name: Its name, as its user wrote it.
      row: Its row of the table of sparse methods.
      takes: The constructor's arguments with their defaults.
      options: The options of the configuration, by name.
    """

    name: str
    row: "NamedMethod"
    takes: Mapping[str, Any]
    options: Mapping[str, Any]

    def build(self, config: TrainConfig, needs: Needs) -> SparseMethod:
        """Returns the sparse method.

        Raises:
          ValueError: An option is out of range.
        """
        values = {
            argument: getattr(config, field)
            for argument, field in _FIELDS.items()
            if getattr(config, field) not in (None, "auto")
        }
        values |= {"dense": needs.dense, "total_steps": needs.total_steps}
        values["seed"] = needs.seed
        if self.row.make is nm:
            values["dense"] = (*needs.dense, _undivided(self.options["m"]))
        if "groups" in self.takes:
            values["groups"] = needs.groups()
        if self.row.scores_by:
            values["value_fn"] = needs.value_fn
        values = {k: v for k, v in values.items() if k in self.takes}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                made = self.row.make(**{**values, **self.row.fixed, **self.options})
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"method={self.name!r} with "
                    f"method_options={list(config.method_options)}: {error}"
                ) from error
        if self.row.make is nm:
            _check_pattern(config, self.options["n"], self.options["m"])
        if config.block == 1:
            return made
        try:
            return blocks(made, config.block, undivided="dense")
        except ValueError as error:
            raise ValueError(
                f"block={config.block}: method={self.name!r} has a structure or a "
                "criterion of its own. Take a method of single weights, as rigl, set, "
                "gmp, random or magnitude."
            ) from error

    def check(self, config: TrainConfig) -> None:
        """Raises `ValueError` for fields that do not go with this method."""
        for argument, field in _FIELDS.items():
            given = getattr(config, field)
            if field == "sparsity" or argument in self.takes:
                continue
            if given not in (default(field), []):
                raise ValueError(
                    f"{field}={given!r} has no effect with method={self.name!r}. "
                    f"Where a preset set it, say --{field.replace('_', '-')} None."
                )
        missing = [
            name
            for name, value in self.takes.items()
            if value is inspect.Parameter.empty
            and name not in {*_RESERVED, *self.options}
        ]
        if missing:
            said = _options.entries(self.row.make.__doc__)
            raise ValueError(
                f"method={self.name!r} needs method_options: "
                f"{' '.join(f'{name}=VALUE' for name in missing)}. "
                f"{' '.join(said[name] for name in missing if name in said)}"
            )


def takes(row: "NamedMethod", field: str) -> bool:
    """Returns whether a sparse method uses a field of the configuration.

    Args:
      row: The method's row of the table.
      field: One of the fields that become arguments of constructors, as "budget".
    """
    arguments = {name: argument for argument, name in _FIELDS.items()}
    return arguments[field] in option_strings.defaults(row.make, Options)


def _undivided(m: int) -> Callable[[str, tuple[int, ...]], bool]:
    """Returns the rule that keeps layers dense whose inputs `m` does not divide."""
    return lambda _, shape: len(shape) > 1 and bool(shape[-2] % m)


def _check_pattern(config: TrainConfig, n: int, m: int) -> None:
    pattern = 1 - n / m
    if abs(config.sparsity - pattern) > 1e-6:
        raise ValueError(
            f"method='nm' with n={n} of m={m} has sparsity {pattern:g}, and "
            f"sparsity={config.sparsity:g}. Say --sparsity {pattern:g}."
        )


def choose(
    config: TrainConfig, row: "NamedMethod | None", name: str
) -> ChosenMethod | None:
    """Returns a method, its options parsed and checked; None for "dense".

    Args:
      config: The configuration.
      row: The row of the method; None for "dense".
      name: Its name, as its user wrote it.

    Raises:
      ValueError: An option is unknown, or the trainer sets it.
    """
    options = option_strings.parse("method_options", config.method_options)
    if row is None:
        for option in options:
            _check.option("method_options: dense", option, ())
        return None
    takes = option_strings.defaults(row.make, Options)
    types = option_strings.types(row.make)
    option_strings.check("method_options", name, options, takes, _RESERVED, types)
    named = ChosenMethod(name, row, takes, options)
    named.check(config)
    return named


def check_unset(config: TrainConfig) -> None:
    """Raises `ValueError` if fields of a named method are set beside a given one."""
    for field in METHOD_FIELDS:
        value = getattr(config, field)
        if field != "method" and value != default(field):
            raise ValueError(
                f"{field}={value!r} is for a method that the configuration names, and "
                "method= is given. Leave one of them out."
            )
