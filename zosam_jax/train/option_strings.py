"""Options written as strings NAME=VALUE, as on a command line."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zosam_jax import _check


def parse(field: str, options: Sequence[str]) -> dict[str, Any]:
    """Returns NAME=VALUE strings as a dictionary. A value that is no literal is text.

    >>> parse("gradient_options", ("directions=guided", "m=2", "delta=None"))
    {'directions': 'guided', 'm': 2, 'delta': None}

    Args:
      field: Name of the configuration field, for error messages.
      options: The strings.

    Raises:
      ValueError: A string has another form, or a name occurs twice.
    """
    values: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not (name and equals and text):
            raise ValueError(
                f"{field}={options!r} must be strings NAME=VALUE, as "
                "'directions=guided' 'num_directions=2'."
            )
        if name in values:
            raise ValueError(f"{field}: {name} is given twice.")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def defaults(make: Callable[..., Any], shared: type | None = None) -> dict[str, Any]:
    """Returns the arguments of a constructor with their defaults.

    >>> defaults(lambda a, b=2: None)["b"]
    2

    Args:
      make: The constructor.
      shared: A `TypedDict` of the options that it accepts as `**options`.
    """
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            found[name] = parameter.default
        elif shared is not None:
            found |= dict.fromkeys(shared.__annotations__)
    return found


def check(
    field: str,
    owner: tuple[str, str],
    values: Mapping[str, Any],
    takes: Mapping[str, Any],
    reserved: Mapping[str, str],
) -> None:
    """Raises `ValueError` for unknown options and for those that the trainer sets.

    Args:
      field: Name of the configuration field of the options.
      owner: The field that names the constructor, and its value.
      values: The options, as `parse` returns them.
      takes: Arguments of the constructor with their defaults.
      reserved: For each argument that the trainer sets, what the error says of it.
    """
    kind, name = owner
    known = [option for option in takes if option not in reserved]
    for option, value in values.items():
        if option in reserved:
            raise ValueError(f"{field}: {option} {reserved[option]}.")
        if not known:
            raise ValueError(
                f"{field}: {kind}={name!r} has no options; got {option!r}."
            )
        _check.one_of(f"{field}: option of {name}", option, known)
        if isinstance(takes[option], bool) and not isinstance(value, bool):
            raise ValueError(f"{field}: {option}={value!r} must be True or False.")
