"""Checks of arguments: each failure names the argument and says what would work."""

import difflib
import inspect
import math
import operator
import reprlib
import struct
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.tree_util import KeyPath


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the compiled program runs."""
    return isinstance(value, core.Tracer)


def paths(tree: object) -> list[str]:
    """Returns the key paths of the leaves, joined by `/`, in flattening order.

    Example:
      >>> import zosam_jax as zs
      >>> zs.tree.paths({"head": {"bias": 0, "kernel": 1}, "layers": [2]})
      ['head/bias', 'head/kernel', 'layers/0']
    """
    return [
        jax.tree_util.keystr(_own(path), simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _own(path: KeyPath) -> KeyPath:
    """Returns the path without the `.value` that NNX variables add."""
    is_variable = path and path[-1] == jax.tree_util.GetAttrKey("value")
    return path[:-1] if is_variable else path


def trainable(params: object) -> None:
    """Raises `TypeError` if a leaf is no array of real floats, and names the leaf."""
    for path, x in zip(paths(params), jax.tree.leaves(params), strict=True):
        # `params` may hold anything here, also what has no dtype.
        dtype = jnp.float32 if isinstance(x, float) else getattr(x, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            continue
        kind = type(x).__name__ if dtype is None else f"an array of {dtype}"
        if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            advice = "Train its real and imaginary parts as two leaves."
        else:
            advice = (
                "Keep it out of params. Equinox: params, rest = eqx.partition(model, "
                "eqx.is_inexact_array). Flax NNX: graph, params, rest = "
                "nnx.split(model, nnx.Param, ...)."
            )
        raise TypeError(
            f"params: {path or 'the leaf'} is {kind}; only real floating point arrays "
            f"can be trained. {advice}"
        )


def key(value: object) -> None:
    """Raises `TypeError` unless `value` is one PRNG key, typed or raw."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    # A raw key is a vector of words, as `jax.random.PRNGKey` gives it.
    if (typed and shape == ()) or (dtype == jnp.uint32 and len(shape or ()) == 1):
        return
    given = f"key={value!r}" if not shape else f"key, an array {dtype}{list(shape)},"
    batch = " Of several keys, pass one, or use jax.vmap." if shape else ""
    raise TypeError(f"{given} must be a PRNG key, such as jax.random.key(0).{batch}")


def one_of(
    argument: str, value: Any, choices: Iterable[Any], *, fault: str = "is unknown"
) -> None:
    """Raises `ValueError` unless `value` is one of `choices`, naming the nearest.

    Args:
      argument: The argument's name, as its user wrote it.
      value: Its value.
      choices: The valid values.
      fault: What the error says of another value.
    """
    known = list(choices)
    if value in known:
        return
    raise ValueError(f"{argument}={value!r} {fault}.{_nearest(value, known)}")


def options(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises `TypeError`, naming the nearest, if an option of a function is unknown.

    Args:
      function: The function's name, for the error.
      given: Names of the options in the call.
      known: Names of the options that it takes.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}."
                f"{_nearest(name, known)}"
            )


def option(
    owner: str, name: str, known: Iterable[str], elsewhere: Mapping[str, str] = {}
) -> None:
    """Raises `ValueError` unless a method or model has an option, naming the nearest.

    Args:
      owner: Its name.
      name: The option.
      known: Its options.
      elsewhere: Names that are no options, and what the error says of each: where it is
        given instead.
    """
    listed = list(known)
    if name in listed:
        return
    near = _close(name, [*listed, *elsewhere])
    hint = f" Did you mean {near!r}?" if near else ""
    hint += f" {near} {elsewhere[near]}." if near and near in elsewhere else ""
    has = f"Its options: {', '.join(listed)}." if listed else "It has none."
    raise ValueError(f"{owner} has no option {name!r}.{hint} {has}")


def _close(value: Any, known: list[Any]) -> str | None:
    """The nearest of the known names, if one is near."""
    near = difflib.get_close_matches(str(value), [str(c) for c in known], 1, 0.5)
    return near[0] if near else None


def _nearest(value: Any, known: list[Any]) -> str:
    near = _close(value, known)
    hint = f" Did you mean {near!r}?" if near else ""
    names = ", ".join(repr(c) for c in known[:12])
    rest = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"{hint} Known: {names}{rest}."


def patterns(argument: str, value: Any, function: str | None = None) -> list[Any]:
    """Returns the patterns, and functions, of an option that names leaves by path.

    Args:
      argument: The argument's name, as its user wrote it.
      value: A glob pattern, a function, or a sequence of both.
      function: The signature of the functions; None if the option takes none.

    Raises:
      TypeError: It is something else.
    """
    takes_functions = function is not None
    is_one = isinstance(value, str) or (takes_functions and callable(value))
    parts = [value] if is_one else value
    if isinstance(parts, Collection) and not isinstance(parts, Mapping | bytes):
        known = [isinstance(p, str) or (takes_functions and callable(p)) for p in parts]
        if all(known):
            for part in parts:
                if function is not None and not isinstance(part, str):
                    callable_as(argument, part, function)
            return list(parts)
    other = f", a function {function}" if takes_functions else ""
    raise TypeError(
        f"{argument}={reprlib.repr(value)} must be a glob pattern on the paths of "
        f"the leaves, such as 'head/*'{other}, or a sequence of these."
    )


def callable_as(argument: str, value: Any, signature: str) -> None:
    """Raises `TypeError` unless `value` is a function of so many arguments.

    Args:
      argument: The argument's name, as its user wrote it.
      value: The function. One whose signature Python cannot tell is let through.
      signature: What it takes and returns, such as "(path, shape) -> bool".
    """
    wanted = f"must be a function {signature}"
    if not callable(value):
        raise TypeError(f"{argument}={reprlib.repr(value)} {wanted}.")
    taken = signature_of(value)
    count = len(signature.partition(")")[0].split(","))
    try:
        if taken is not None:
            taken.bind(*[None] * count)
    except TypeError:
        name = getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{argument}={name} {wanted}; it takes {taken}.") from None


def signature_of(value: Any) -> inspect.Signature | None:
    """Returns what a function takes, without annotations; None if nothing says so."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return inspect.Signature(plain)


def flags(**values: Any) -> None:
    """Raises `TypeError` unless all values are True or False, also if one is an array.

    The program that is built depends on them, so no traced value will do.

    Args:
      **values: The flags by their names, as their user wrote them.
    """
    for argument, value in values.items():
        if not isinstance(value, bool | np.bool_):
            is_array = isinstance(value, jax.Array | np.ndarray)
            given = ", an array," if is_array else f"={reprlib.repr(value)}"
            raise TypeError(f"{argument}{given} must be True or False.")


def number(
    argument: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    traced: bool = True,
) -> None:
    """Raises `ValueError` unless `value` is a finite number within the bounds.

    Programs compute in float32, so that the value must be finite there too and keep its
    distance from an exclusive bound: 1e300 is infinite, 1e-300 is 0, and 1 - 1e-9 is 1.
    A traced value is let through: its range is not known before the program runs.

    Args:
      argument: The argument's name, as its user wrote it.
      value: The number.
      above: Exclusive lower bound.
      least: Inclusive lower bound.
      below: Exclusive upper bound.
      most: Inclusive upper bound.
      traced: Whether programs compute with it, in float32. Python has more digits.
    """
    if is_traced(value):
        return
    rules = (
        ("> ", above, lambda x, b: x > b),
        (">= ", least, lambda x, b: x >= b),
        ("< ", below, lambda x, b: x < b),
        ("<= ", most, lambda x, b: x <= b),
    )
    wanted = " and ".join(f"{sign}{b:g}" for sign, b, _ in rules if b is not None)
    wanted = f"a finite number {wanted}".rstrip()
    try:
        x = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        x = math.nan
    rounded = _float32(x) if traced else x
    is_finite = math.isfinite(x) and math.isfinite(rounded)
    is_within = all(ok(x, b) for _, b, ok in rules if b is not None)
    is_apart = all(ok(rounded, b) for _, b, ok in (rules[0], rules[2]) if b is not None)
    if not (is_finite and is_within and is_apart):
        # Within [0, 1] it is a fraction, and 90 was meant in per cent.
        is_fraction = 0 in (above, least) and 1 in (below, most)
        hint = f" (a fraction: {x:g} % is {x / 100:g})" if 2 < x <= 100 else ""
        hint = hint if is_fraction else ""
        if math.isfinite(x) and is_within:
            hint = f" (it is {rounded:g} in float32)"
        raise ValueError(f"{argument}={value!r} must be {wanted}{hint}.")


def _float32(x: float) -> float:
    """Returns the nearest float32, without NumPy's warning at an overflow."""
    try:
        return struct.unpack("f", struct.pack("f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def optax_caller(*wrappers: str) -> str | None:
    """Returns which of these Optax wrappers is among the callers; None if none is.

    No argument of `init` or `update` reveals it.

    Args:
      *wrappers: Names of functions that Optax exports, such as "lookahead".
    """
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_qualname.partition(".<locals>.")[0]
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package == "optax" and name in wrappers:
            return name
        frame = frame.f_back
    return None


JUDGES = ("apply_if_finite", "conditionally_transform", "conditionally_mask")
"""Optax wrappers that may return the incoming updates, or zeros like them."""


def outside() -> int:
    """The `stacklevel` of a warning that is to show the line outside this package."""
    level, frame = 1, sys._getframe(1)
    package = str(Path(__file__).parent)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    return level


LARGEST_COUNT = 2**31 - 1
"""The largest int32, in which programs count."""


def countable(what: str, number: int, advice: str) -> None:
    """Raises `ValueError` if programs cannot count so many weights.

    Args:
      what: What has the weights, such as "params: embedding".
      number: Their number.
      advice: What to do instead.
    """
    if number > LARGEST_COUNT:
        raise ValueError(
            f"{what} has {number:,} weights, and programs count in int32, up to "
            f"{LARGEST_COUNT:,}. {advice}"
        )


def whole(
    argument: str, value: Any, *, least: int = 1, most: int = LARGEST_COUNT
) -> None:
    """Raises `ValueError` unless `value` is an integer within the bounds.

    A traced value is let through: it is not known before the program runs.

    Args:
      argument: The argument's name, as its user wrote it.
      value: The integer.
      least: Inclusive lower bound.
      most: Inclusive upper bound.
    """
    if is_traced(value):
        return
    try:
        x = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        x = least - 1
    if not least <= x <= most:
        above = f" and <= {most}" if x > most else ""
        raise ValueError(f"{argument}={value!r} must be an integer >= {least}{above}.")
