"""Options written as strings NAME=VALUE, as on a command line."""

import ast
import collections.abc
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any

import jax

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
    owner: str,
    values: Mapping[str, Any],
    takes: Mapping[str, Any],
    reserved: Mapping[str, str],
    types: Mapping[str, object],
) -> None:
    """Raises `ValueError` for unknown options and for those that the trainer sets.

    Args:
      field: Name of the configuration field of the options.
      owner: The name of the constructor's row, as a user writes it.
      values: The options, as `parse` returns them.
      takes: Arguments of the constructor with their defaults.
      reserved: For each argument that the trainer sets, what the error says of it.
      types: The types of the arguments, where known.
    """
    known = [option for option in takes if option not in reserved]
    elsewhere = {option: said for option, said in reserved.items() if option in takes}
    for option, value in values.items():
        if option in reserved:
            raise ValueError(f"{field}: {option} {reserved[option]}.")
        _check.option(f"{field}: {owner}", option, known, elsewhere)
        if isinstance(value, int) and abs(value) >= 2**31:
            raise ValueError(
                f"{field}: {option}={value} must have 32 bits. Write it as a decimal "
                "number, as 1e10, if that is meant."
            )
        hint = types.get(option, Any)
        if not _fits(value, hint):
            raise ValueError(f"{field}: {option}={value!r} must be {_name(hint)}.")


def types(make: Callable[..., Any]) -> dict[str, object]:
    """Returns the types of the arguments of a constructor, by name.

    >>> types(lambda a, b=2: None)["b"]
    typing.Any
    """
    return {
        name: Any if p.annotation is p.empty else p.annotation
        for name, p in inspect.signature(make).parameters.items()
    }


def _fits(value: object, hint: object) -> bool:
    """Returns whether the value of an option has the type of an argument.

    What cannot be written as text, such as a function, never fits.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is collections.abc.Callable:
        return False
    if origin is collections.abc.Mapping:
        return isinstance(value, dict) and all(
            _fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items()
        )
    if origin is tuple and Ellipsis not in parts:
        return (
            isinstance(value, tuple)
            and len(value) == len(parts)
            and all(map(_fits, value, parts))
        )
    if origin in (tuple, collections.abc.Sequence):
        return isinstance(value, list | tuple) and all(
            _fits(each, parts[0]) for each in value
        )
    if hint in (float, jax.Array):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, NoneType):
        return isinstance(value, typing.cast(type, hint))
    return True


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    NoneType: "None",
}


def _name(hint: object) -> str:
    """Returns what an option of a type can be, as "a number or None"."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        names = [_name(part) for part in parts]
        return " or ".join(dict.fromkeys(name for name in names if name))
    if origin is collections.abc.Mapping:
        return f"a dictionary of {_name(parts[0])} to {_name(parts[1])}"
    if origin is tuple and Ellipsis not in parts:
        return f"({', '.join(map(_name, parts))})"
    if origin in (tuple, collections.abc.Sequence):
        return f"a tuple, each {_name(parts[0])}"
    return _NAMES.get(typing.cast(type, hint), "")
