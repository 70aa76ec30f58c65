"""Options of a method as strings NAME=VALUE, as a command line has them."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from zosam_jax import _check


def parse(field: str, options: Sequence[str]) -> dict[str, Any]:
    """Returns NAME=VALUE strings as a dictionary; a value that is no literal is text.

    >>> parse("gradient_options", ("directions=guided", "m=2", "delta=None"))
    {'directions': 'guided', 'm': 2, 'delta': None}

    Args:
      field: The field of the configuration that they come from, for messages.
      options: The strings.

    Raises:
      ValueError: One is of another form, or a name comes twice.
    """
    values: dict[str, Any] = {}
    for option in [options] if isinstance(options, str) else options:
        name, equals, text = option.partition("=")
        if not (name and equals and text) or isinstance(options, str):
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


def check(
    field: str,
    owner: tuple[str, str],
    values: Mapping[str, Any],
    takes: Mapping[str, Any],
    elsewhere: Mapping[str, str],
) -> None:
    """Raises `ValueError` for options that a method has not, or that are set elsewhere.

    Args:
      field: The field of the configuration that they come from.
      owner: The field that names the method, and its name.
      values: The options, as from `parse`.
      takes: The defaults of the method's arguments, by name.
      elsewhere: Arguments that are no options, and what is to be said of each.
    """
    kind, name = owner
    known = [option for option in takes if option not in elsewhere]
    for option, value in values.items():
        if option in elsewhere:
            raise ValueError(f"{field}: {option} {elsewhere[option]}.")
        if not known:
            raise ValueError(
                f"{field}: {kind}={name!r} has no options; got {option!r}."
            )
        _check.one_of(f"{field}: option of {name}", option, known)
        if isinstance(takes[option], bool) and not isinstance(value, bool):
            raise ValueError(f"{field}: {option}={value!r} must be True or False.")
