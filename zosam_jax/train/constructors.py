"""Constructors that a user gives in place of objects: the trainer calls them.

They get the values of the run that they have parameters for, and options of the
configuration. What a user's own code raises becomes a sentence that names the line.
"""

import functools
import inspect
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from zosam_jax import _check
from zosam_jax._calls import of_value

_PACKAGE = str(Path(__file__).parents[1])


def is_one(value: object) -> TypeGuard[Callable[..., Any]]:
    """Whether a value is a class or a function, and no object that was made.

    >>> is_one(dict), is_one(len), is_one({})
    (True, True, False)
    """
    return isinstance(value, type | functools.partial) or inspect.isroutine(value)


def takes(make: Callable[..., Any]) -> dict[str, Any]:
    """Returns the parameters of a constructor with their defaults, by name.

    >>> takes(lambda rho=0.1, **options: None)
    {'rho': 0.1}
    """
    signature = _check.signature_of(make)
    found = {} if signature is None else signature.parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p.default for n, p in found.items() if p.kind not in variable}


def call(
    kind: str,
    make: Callable[..., Any],
    values: Mapping[str, Any] = {},
    options: Mapping[str, Any] = {},
    passes: tuple[type[Exception], ...] = (),
) -> Any:
    """Returns what a constructor makes.

    Args:
      kind: The part of the run, as "model".
      make: The constructor.
      values: Values of the run; it gets those that it has parameters for.
      options: Options of the configuration; it gets all of them.
      passes: Errors that are sentences already.

    Raises:
      ValueError: It has no such option, or raises an error.
    """
    name, known = of_value(make), takes(make)
    for option in options:
        _check.option(f"{kind}_options: {name}", option, known)
    values = {k: v for k, v in values.items() if k in known}
    try:
        return make(**{**values, **options})
    except passes:
        raise
    except Exception as error:
        raise ValueError(f"{kind}={name} raised {told(error)}.") from error


def explained(make: Callable[..., Any], wanted: type) -> Callable[..., Any]:
    """Returns a constructor, of the same signature, whose failures are `ValueError`.

    Args:
      make: The constructor.
      wanted: The type of what it must return.
    """

    @functools.wraps(make)
    def made(**options: Any) -> Any:
        try:
            found = make(**options)
        except Exception as error:
            raise ValueError(f"it raised {told(error)}.") from error
        if not isinstance(found, wanted):
            raise ValueError(
                f"it returned {type(found).__name__}, and must return a "
                f"{wanted.__name__}."
            )
        return found

    return made


def refuse_idle(kind: str, known: Collection[str], fields: Mapping[str, Any]) -> None:
    """Raises `ValueError` for fields that a constructor has no parameter for.

    Args:
      kind: The part of the run, as "model".
      known: The parameters of its constructor.
      fields: Fields of the configuration that are not at their defaults.
    """
    for name, value in fields.items():
        if name not in known:
            raise ValueError(
                f"{name}={value!r} has no effect: the constructor of the {kind} has "
                f"no parameter {name}."
            )


def told(error: BaseException) -> str:
    """Returns an error of a user's code in one line, with the place that raised it.

    Example:
      >>> try:
      ...     {}["rho"]
      ... except KeyError as error:
      ...     told(error)
      "KeyError: 'rho'"
    """
    lines = str(error).strip().splitlines()
    said = f": {lines[0].rstrip('.')}" if lines else ""
    own = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_PACKAGE, "<"))
        and "site-packages" not in Path(frame.filename).parts
    ]
    if isinstance(error, SyntaxError) and error.filename:
        own, said = [(error.filename, error.lineno)], f": {error.msg}"
    where = f" in {Path(own[-1][0]).name}, line {own[-1][1]}" if own else ""
    return f"{type(error).__name__}{where}{said}"
