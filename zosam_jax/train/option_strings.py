"""Options of a method as strings NAME=VALUE, as a command line has them."""

import ast
from collections.abc import Sequence
from typing import Any


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
