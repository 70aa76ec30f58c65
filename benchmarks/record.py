"""The header of every result file, and the log of a benchmark that resumes."""

import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax

from zosam_jax.runs import environment as software

T = TypeVar("T")


def environment() -> dict[str, Any]:
    """Returns machine, versions, commit and command of this process."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *map(_portable, [*_program(), *sys.argv[1:]])]),
        "commit": software.commit(),
        "versions": software.versions(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
    }


class Log:
    """A file with one JSON line per measurement, which several processes may append to.

    Attributes:
      path: The file.
      settings: Settings that all lines must share.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings

    def rows(self) -> list[dict[str, Any]]:
        """Returns the complete lines; a stopped process may leave half a line.

        Raises:
          SystemExit: A line has other settings.
        """
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["settings"] != self.settings:
                raise SystemExit(
                    f"{self.path} holds measurements of other settings: "
                    f"{row['settings']}, not {self.settings}. Name another file or "
                    "folder."
                )
            rows.append(row)
        return rows

    def append(self, row: dict[str, Any]) -> None:
        """Appends a line, in one write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({**row, "settings": self.settings}) + "\n"
        before = self.path.read_bytes() if self.path.exists() else b""
        torn = before and not before.endswith(b"\n")
        with self.path.open("ab", buffering=0) as file:
            file.write((("\n" if torn else "") + line).encode())
            os.fsync(file.fileno())


def own_part(items: Iterable[T], part: str) -> list[T]:
    """Returns every n-th item, from the i-th on, for a part "i/n" of a benchmark.

    >>> own_part("abcde", "2/3")
    ['b', 'e']
    """
    index, slash, parts = part.partition("/")
    if not (slash and index.isdigit() and parts.isdigit()) or not (
        1 <= int(index) <= int(parts)
    ):
        raise SystemExit(f"--part {part}: say i/n, as 1/2, with i from 1 to n.")
    return list(items)[int(index) - 1 :: int(parts)]


def write(path: Path, results: dict[str, Any]) -> None:
    """Writes the results below the header."""
    replace(path, {"environment": environment(), **results})
    print(f"written: {path}")


def replace(path: Path, content: dict[str, Any]) -> None:
    """Writes a file as JSON, at once: a stopped process leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def _program() -> list[str]:
    """Returns the words that run this program: a module, or a file."""
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name] if spec else [sys.argv[0]]


def _portable(word: str) -> str:
    """Returns a word of a command line as it could be typed on any machine.

    >>> [_portable(word) for word in ("--rounds=5", "--runs=/a/b/runs", "runs/mine")]
    ['--rounds=5', '--runs=runs', 'runs/mine']
    >>> _portable(str(Path.cwd() / "runs" / "mine"))
    'runs/mine'
    """
    flag, equals, value = word.rpartition("=")
    path, here = Path(value), Path.cwd()
    if not path.is_absolute():
        return word
    near = path.relative_to(here) if path.is_relative_to(here) else Path(path.name)
    return f"{flag}{equals}{near}"
