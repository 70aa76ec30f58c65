"""Marks of single parameters."""

from collections.abc import Hashable, Iterable

import pytest


def quick(values: Iterable[Hashable], *chosen: Hashable) -> list:
    """Returns the parameters of a test, the chosen ones with the mark `quick`.

    Args:
      values: All parameters; a tuple is one for each argument of the test.
      chosen: Some of them.
    """
    known = list(values)
    if unknown := set(chosen) - set(known):
        raise ValueError(f"{unknown} are not among {known}.")
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=[pytest.mark.quick] if value in chosen else [],
        )
        for value in known
    ]
