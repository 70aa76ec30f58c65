"""JSON files that are always complete, even if the process dies while writing.

`JSON` is the type of every record of a run: of `config.json`, `summary.json`, a line of
`metrics.jsonl`, and so on.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zosam_jax.runs.errors import RunError

JSON = dict[str, Any]
"""A JSON object."""


def read_json(path: Path, advice: str = "") -> Any:
    """Returns the contents of a JSON file.

    Args:
      path: The file.
      advice: A sentence for the error message that says how to repair the file.

    Raises:
      OSError: The file does not exist or cannot be read.
      RunError: The file is not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        message = f"{path} is not valid JSON: {error}. {advice}"
        raise RunError(message.rstrip()) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that is either complete or unchanged.

    Args:
      path: The file. Its folder must exist.
      content: A JSON object.

    Raises:
      ValueError: A value is NaN or infinite.
    """
    _replace(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[JSON]:
    """Returns the objects of a JSON Lines file, or [] if there is no such file.

    An incomplete last line, left by a process that died, is skipped.

    Raises:
      RunError: A complete line is not a JSON object.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise RunError(f"line {number} of {path} is not an object of JSON.")
        records.append(record)
    return records


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON Lines file that is either complete or unchanged.

    Raises:
      ValueError: A value is NaN or infinite.
    """
    _replace(path, "".join(line(record) for record in records))


def line(record: Mapping[str, Any]) -> str:
    r"""Returns an object as one line of a JSON Lines file.

    >>> line({"step": 4, "loss": 0.5})
    '{"step": 4, "loss": 0.5}\n'

    Raises:
      ValueError: A value is NaN or infinite.
    """
    return json.dumps(record, allow_nan=False) + "\n"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        # Otherwise the new name may reach the disk before the contents do.
        os.fsync(file.fileno())
    os.replace(temporary, path)
