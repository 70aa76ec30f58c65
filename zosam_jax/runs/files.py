"""JSON files that are always complete, even if the process dies while writing.

`JSON` is the type of every record of a run: of `config.json`, `summary.json`, a line of
`metrics.jsonl`, and so on.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zosam_jax.runs import schema
from zosam_jax.runs.errors import RunError, sentence

JSON = dict[str, Any]
"""A JSON object."""


def at(record: JSON, path: Sequence[str | int]) -> Any:
    """Returns what stands at a path of a JSON object; None where nothing does.

    Args:
      record: The object.
      path: Names of entries, and places in lists.

    >>> at({"largest": [3.0]}, ("largest", 0)), at({"largest": None}, ("largest", 0))
    (3.0, None)
    """
    found: Any = record
    for key in path:
        if isinstance(found, dict):
            found = found.get(key)
        elif isinstance(found, list) and isinstance(key, int):
            found = found[key] if key < len(found) else None
        else:
            return None
    return found


def read_text(path: Path) -> str | None:
    """Returns the text of a file, or None if there is none.

    Raises:
      RunError: It is no file, cannot be read, or is not UTF-8.
    """
    try:
        # A link to nothing is damage; nothing at all may be what a young run has.
        if not path.exists() and not path.is_symlink():
            return None
        if not path.is_file():
            # To open a FIFO would wait for ever.
            raise RunError(
                f"{path} is {_other(path)}, where a file of a run belongs. Move it "
                "away."
            )
        return path.read_bytes().decode()
    except OSError as error:
        raise RunError(sentence(error, path, "read")) from error
    except UnicodeDecodeError as error:
        raise RunError(
            f"{path} is damaged: it is not UTF-8 from byte {error.start} on. Restore "
            "it from a copy."
        ) from error


def _other(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which is not there"
    return "a folder" if path.is_dir() else "a device or a pipe"


def parse(text: str) -> Any:
    """Returns the value of JSON text. NaN and infinite numbers are no JSON.

    >>> parse('{"loss": 0.5}')
    {'loss': 0.5}

    Raises:
      ValueError: It is not valid, or too deep.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("its lists or objects are too deep") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    """Returns a number; one that is too large would become infinite, unseen."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def read_object(
    path: Path,
    needed: Mapping[str, schema.Kind],
    optional: Mapping[str, schema.Kind] | None = None,
    *,
    advice: str,
) -> JSON | None:
    """Returns the object of a JSON file, or None if there is no such file.

    Args:
      path: The file.
      needed: The entries that it must have, as for `schema.fault`.
      optional: Entries that it may have.
      advice: A sentence for the error message that says how to repair the file.

    Raises:
      RunError: The file cannot be read, is not valid JSON, or lacks an entry.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        found = parse(text)
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}. {advice}") from error
    wrong = schema.fault(found, needed, optional)
    if wrong is not None:
        raise RunError(f"{path} is damaged: {wrong}. {advice}")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that is either complete or unchanged.

    Args:
      path: The file. Its folder must exist.
      content: A JSON object.

    Raises:
      ValueError: A value is NaN or infinite.
    """
    _replace(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_lines(
    path: Path, fault: Callable[[JSON], str | None], advice: str
) -> list[JSON]:
    """Returns the objects of a JSON Lines file, or [] if there is no such file.

    An incomplete last line, left by a process that died, is skipped.

    Args:
      path: The file.
      fault: Returns what is wrong with the object of a line, as `schema.fault` does.
      advice: A sentence for the error message that says how to repair the file.

    Raises:
      RunError: The file cannot be read, or a complete line is damaged.
    """
    text = read_text(path)
    records: list[JSON] = []
    for number, line in enumerate((text or "").split("\n")[:-1], start=1):
        record: JSON = {}
        wrong: str | None = "it is not valid JSON"
        with contextlib.suppress(ValueError):
            record = parse(line)
            wrong = schema.fault(record, {}) or fault(record)
        if wrong is not None:
            raise RunError(
                f"line {number} of {path} is damaged: {wrong}. Lines before it that "
                f"are good: {number - 1}. {advice}"
            )
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


def write_bytes(path: Path, parts: Iterable[bytes]) -> None:
    """Writes a file that is either complete or unchanged.

    Args:
      path: The file. Its folder must exist.
      parts: Its contents, one after another.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            # Otherwise the new name may reach the disk before the contents do.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _replace(path: Path, text: str) -> None:
    write_bytes(path, [text.encode()])
