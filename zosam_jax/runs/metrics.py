"""The metrics of a run: lines of `metrics.jsonl`, which trackers get too."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zosam_jax.runs import files, schema
from zosam_jax.runs.files import JSON
from zosam_jax.runs.trackers import Trackers

_SPLITS = ("train", "validation", "test")
_LINE = {
    "step": schema.WHOLE,
    "epoch": schema.WHOLE,
    "split": schema.one_of(*_SPLITS),
    "loss": schema.NUMBER,
    "accuracy": schema.NUMBER,
    "sparsity": schema.SHARE,
    "seconds": schema.POSITIVE,
}
_SPEED = {"images_per_second": schema.POSITIVE}
_ADVICE = (
    "Delete it with all lines after it: the good ones are a record up to there, and "
    "the training, if it goes on, writes the others again."
)


def read(path: Path) -> list[JSON]:
    """Returns the records of a `metrics.jsonl`, or [] if there is no such file.

    Whether all lines are there, `gap` tells.

    Raises:
      RunError: A line is damaged. An incomplete last line is skipped instead.
    """
    return files.read_lines(path, _fault, _ADVICE)


def _fault(line: JSON) -> str | None:
    """Returns what is wrong with a line, or None."""
    wrong = schema.fault(line, _LINE)
    if wrong is None and line["split"] == "train":
        wrong = schema.fault(line, _SPEED)
    return wrong


def gap(records: Sequence[JSON]) -> str | None:
    """Returns where the records of a run do not follow each other, or None.

    Args:
      records: Records, as `read` returns them. The first epoch may be any, the same for
        all splits.

    >>> gap([{"epoch": e, "split": "test", "step": 4 * e} for e in (1, 2, 4)])
    "line 3 is of epoch 4, and the line of split 'test' before it of epoch 2"
    """
    last: dict[str, int] = {}
    before = records[0]["epoch"] - 1 if records else 0
    for number, record in enumerate(records, start=1):
        split, epoch = record["split"], record["epoch"]
        if last.get(split, before) != epoch - 1:
            return (
                f"line {number} is of epoch {epoch}, and the line of split {split!r} "
                f"before it of epoch {last.get(split, 'none')}"
            )
        last[split] = epoch
    steps = [record["step"] for record in records]
    if steps != sorted(steps):
        return "the steps do not rise from line to line"
    return None


def missing(
    records: Sequence[JSON], splits: Collection[str], epochs: Iterable[int]
) -> int | None:
    """Returns the first of the epochs without a record of every split, or None.

    >>> lines = [{"epoch": e, "split": s} for e in (1, 2, 4) for s in ("train", "test")]
    >>> missing(lines, ("train", "test"), [1, 2, 3, 4])
    3

    Args:
      records: Records, as `read` returns them.
      splits: "train", "test" and, if the run holds out images, "validation".
      epochs: Numbers of epochs, from 1.
    """
    found = {(record["epoch"], record["split"]) for record in records}
    for epoch in epochs:
        if any((epoch, split) not in found for split in splits):
            return epoch
    return None


def cut(path: Path, step: int) -> list[JSON]:
    """Deletes the records of later steps from a `metrics.jsonl`; returns the others.

    Args:
      path: The file. It is created if it does not exist.
      step: The last step to keep.
    """
    kept = [record for record in read(path) if record["step"] <= step]
    files.write_lines(path, kept)
    return kept


class MetricsLog:
    """Appends records to `metrics.jsonl`, each as one complete line."""

    def __init__(self, folder: Path, trackers: Trackers | None = None):
        """Opens the file.

        Args:
          folder: The run's folder.
          trackers: Where the records go too; they are closed with the file.
        """
        self._file = (folder / "metrics.jsonl").open("a")
        self._trackers = trackers

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes a record.

        Args:
          record: `step`, `split` ("train", "validation" or "test") and any numbers.
        """
        self._file.write(files.line(record))
        self._file.flush()
        if self._trackers is not None:
            self._trackers.log(record)

    def sync(self) -> None:
        """Returns once the disk has all records, which survive a power cut then."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the file, and the trackers."""
        self._file.close()
        if self._trackers is not None:
            self._trackers.close()
