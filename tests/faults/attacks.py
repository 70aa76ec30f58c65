"""How the programs of this folder count, print and write the endings of their cases."""

# ruff: noqa: T201
import collections
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ENDINGS = ("clean error", "survival", "silent acceptance", "traceback")
FAULTS = ENDINGS[2:]


def count(endings: Iterable[str], names: Iterable[str] = ENDINGS) -> dict[str, int]:
    """Returns how often each ending occurs, in the order of the names."""
    found = collections.Counter(endings)
    return {name: found[name] for name in names}


def show(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Prints a line of counts for each group of cases."""
    width = max(map(len, counts))
    for name, row in counts.items():
        print(
            f"{name:{width}}", *(f"{n} {ending}" for ending, n in row.items()), sep="  "
        )


def write(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Writes the figures of an attack to the file that was asked for, if one was."""
    if path is None:
        return
    from benchmarks import record

    record.write(path, dict(figures))
