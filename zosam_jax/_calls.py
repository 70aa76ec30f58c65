"""The call of a constructor, as the text that `print` shows of what it made."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, runtime_checkable

import jax
import numpy as np

_ENTRIES = 6
"""The most entries of a container that are shown."""
_LENGTH = 80
"""The most characters of a value that are shown."""


@runtime_checkable
class Described(Protocol):
    """What shows the call that made it."""

    def called_as(self, call: str) -> Self:
        """Returns it with another call, such as "zs.sam(rho=0.05)"."""
        ...


def text(
    name: str,
    arguments: Mapping[str, object],
    parameters: Mapping[str, inspect.Parameter],
) -> str:
    """Returns a call without the arguments that equal their defaults.

    A first argument that needs no keyword is always shown: the radius, the sparsity.

    Args:
      name: The function's public name.
      arguments: What it is called with, by name.
      parameters: All its parameters.

    Example:
      >>> import zosam_jax as zs
      >>> zs.late(zs.sam(rho=0.1, steps=1, layerwise=True), start=100)
      zs.late(zs.sam(rho=0.1, layerwise=True), start=100)
    """
    shown = []
    for place, (key, parameter) in enumerate(parameters.items()):
        value = arguments.get(key, parameter.default)
        is_default = value is parameter.default or _same(value, parameter.default)
        named = place or parameter.kind is parameter.KEYWORD_ONLY or value is None
        if value is parameter.empty or (is_default and named):
            continue
        inner = not place and isinstance(value, Described)
        shown.append(of_value(value) if inner else f"{key}={of_value(value)}")
    return f"{name}({', '.join(shown)})"


def _same(value: object, default: object) -> bool:
    """Whether two values are equal numbers, texts, or containers of such."""
    return type(value) is type(default) and of_value(value) == of_value(default)


def of_value(value: Any) -> str:
    """Returns a value in short: arrays by dtype and shape, functions by name.

    The entries of arrays are not read: to show them would wait for the device.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from zosam_jax._calls import of_value
      >>> of_value((jnp.ones((2, 3)), optax.constant_schedule(0.1), 0.5))
      '(float32[2,3], constant_schedule.<lambda>, 0.5)'
    """
    if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, np.generic):
        return f"{value.item()!r}"
    if isinstance(value, Mapping):
        items = [f"{key!r}: {of_value(x)}" for key, x in value.items()]
        return f"{{{_listed(items)}}}"
    if isinstance(value, list):
        return f"[{_listed(list(map(of_value, value)))}]"
    if isinstance(value, tuple) and type(value).__repr__ is tuple.__repr__:
        inside = _listed(list(map(of_value, value)))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, functools.partial):
        return of_value(value.func)
    if isinstance(value, Callable) and hasattr(value, "__qualname__"):
        return value.__qualname__.replace(".<locals>", "")
    shown = repr(value)
    long = len(shown) > _LENGTH and not isinstance(value, Described)
    return f"{shown[: _LENGTH - 3]}..." if long else shown


def _listed(shown: list[str]) -> str:
    rest = len(shown) - _ENTRIES
    return ", ".join(shown[:_ENTRIES] + ([f"{rest} more"] if rest > 0 else []))
