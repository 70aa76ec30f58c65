"""The results of an evaluation by image set: lines of `evaluation.jsonl`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from zosam_jax.evaluate import calibration
from zosam_jax.runs import files, schema
from zosam_jax.runs.errors import explained
from zosam_jax.runs.files import JSON


class Results:
    """The results found so far, in memory and in `evaluation.jsonl`.

    A result is identified by its "key": all that its image set, the network and the
    software depend on.
    """

    def __init__(self, results: Iterable[JSON], file: TextIO):
        self._by_key = {_text(result["key"]): result for result in results}
        self._file = file

    def get(self, key: Mapping[str, Any]) -> JSON | None:
        """Returns the result on an image set, or None if it was not evaluated yet."""
        return self._by_key.get(_text(key))

    def add(self, result: JSON) -> None:
        """Adds a result and writes it to the file."""
        self._by_key[_text(result["key"])] = result
        self._file.write(files.line(result))
        # At once, so that an interrupted evaluation keeps every set it finished.
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def open_results(path: Path, same: Mapping[str, Any], overwrite: bool) -> Results:
    """Opens an `evaluation.jsonl`; deletes the results of other weights or versions.

    Args:
      path: The file. It is created with its folder if it does not exist.
      same: The part of a key that all results to keep share.
      overwrite: Delete all results.

    Raises:
      RunError: The file is damaged or cannot be written.
    """
    results = [] if overwrite else files.read_lines(path, _fault, _ADVICE)
    kept = [result for result in results if same.items() <= result["key"].items()]
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_lines(path, kept)
        return Results(kept, path.open("a"))


_KEY = {
    "dataset": schema.TEXT,
    "images": schema.WHOLE,
    "corruption": schema.TEXT,
    "severity": schema.WHOLE,
    "weights_crc32": schema.WHOLE,
    "versions": schema.TEXTS,
}
_SUMS = schema.list_of(schema.POSITIVE, calibration.NUM_BINS)
_LINE = {
    "key": schema.OBJECT,
    "accuracy": schema.AT_MOST_ONE,
    "loss": schema.NUMBER,
}
# Of classes and of labels; values have no calibration, and an R² below 0 at worst.
_CALIBRATED = {"accuracy": schema.SHARE, "ece": schema.SHARE, "bins": schema.OBJECT}
_ADVICE = (
    "Delete that line, and its image set is evaluated again; --overwrite evaluates all."
)


def _fault(result: JSON) -> str | None:
    """Returns what is wrong with a line, or None."""
    wrong = schema.fault(result, _LINE) or schema.fault(result["key"], _KEY)
    if wrong is not None or not {"ece", "bins"} & set(result):
        return wrong
    sums = dict.fromkeys(calibration.Bins._fields, _SUMS)
    return schema.fault(result, _CALIBRATED) or schema.fault(result["bins"], sums)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
