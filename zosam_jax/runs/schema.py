"""What the records of a run must look like: kinds of values, and what breaks them.

    LINE = {"step": WHOLE, "split": one_of("train", "test")}
    fault({"step": -1}, LINE)     # "'step' is -1, not an integer from 0 on"

Each kind of record has its table of kinds beside its reader.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of values.

    Attributes:
      name: What a value of it is, for messages.
      fits: Whether a value, as JSON gives it, is one.
    """

    name: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    # In JSON, true is no number; in Python, True is 1.
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) < 1e300 and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


NUMBER = Kind("a finite number", _is_number)
POSITIVE = Kind("a number from 0 on", lambda x: _is_number(x) and x >= 0)
SHARE = Kind("a number from 0 to 1", lambda x: _is_number(x) and 0 <= x <= 1)
AT_MOST_ONE = Kind("a number up to 1", lambda x: _is_number(x) and x <= 1)
WHOLE = Kind("an integer from 0 on", _is_whole)
TEXT = Kind("text", lambda x: isinstance(x, str))
TRUTH = Kind("true or false", lambda x: isinstance(x, bool))
OBJECT = Kind("an object", lambda x: isinstance(x, dict))
NUMBERS = Kind(
    "an object of numbers from 0 on",
    lambda x: isinstance(x, dict) and all(POSITIVE.fits(v) for v in x.values()),
)
TEXTS = Kind(
    "an object of texts",
    lambda x: isinstance(x, dict) and all(isinstance(v, str) for v in x.values()),
)


def one_of(*values: str) -> Kind:
    """Returns the kind of a few texts.

    Example:
      >>> one_of("train", "test").name
      "'train' or 'test'"
    """
    return Kind(" or ".join(map(repr, values)), lambda x: x in values)


def or_null(kind: Kind) -> Kind:
    """Returns a kind that allows null too."""
    return Kind(f"{kind.name} or null", lambda x: x is None or kind.fits(x))


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """Returns the kind of lists of values of a kind.

    Args:
      kind: The kind of each value.
      length: Length of the list; None: any.

    Example:
      >>> list_of(NUMBER, 2).fits([0.5, 1])
      True
    """
    size = "" if length is None else f"{length} "
    return Kind(
        f"a list of {size}values, each {kind.name}",
        lambda x: (
            isinstance(x, list)
            and (length is None or len(x) == length)
            and all(kind.fits(v) for v in x)
        ),
    )


def fault(
    record: Any,
    needed: Mapping[str, Kind],
    optional: Mapping[str, Kind] | None = None,
) -> str | None:
    """Returns what is wrong with a record, or None. Further entries are allowed.

    Args:
      record: The record.
      needed: The kinds of the entries that it must have.
      optional: The kinds of entries that it may have.

    >>> fault({"loss": "low"}, {"loss": NUMBER})
    "'loss' is 'low', not a finite number"
    >>> fault({}, {"loss": NUMBER})
    "it has no 'loss'"
    """
    if not isinstance(record, dict):
        return f"it is {_shown(record)}, not an object"
    for name in needed:
        if name not in record:
            return f"it has no {name!r}"
    for name, kind in {**needed, **(optional or {})}.items():
        if name in record and not kind.fits(record[name]):
            return f"{name!r} is {_shown(record[name])}, not {kind.name}"
    return None


def _shown(value: Any) -> str:
    """Returns a value as text of at most 40 characters."""
    if isinstance(value, dict | list) and value:
        return "an object" if isinstance(value, dict) else "a list of other values"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
