"""The record of a run as lines of JSON, and as TensorBoard scalars on request."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zosam_jax.runs.errors import RunError


def write_json(path: Path, content: Any) -> None:
    """Writes a file of JSON so that it is complete or absent, whenever it is cut off.

    Args:
      path: The file; its folder exists.
      content: What `json` can write; NaN and infinities are refused.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    _replace(path, text)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics file; [] where there is none.

    A last line that was cut off is left out.

    Raises:
      RunError: Another line is not an object of JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise RunError(f"line {number} of {path} is not an object of JSON.")
        records.append(record)
    return records


def cut(path: Path, step: int) -> list[dict[str, Any]]:
    """Removes the records after a step from a metrics file, and returns the others.

    Args:
      path: The file; it need not exist.
      step: The last step to keep.
    """
    kept = [record for record in read(path) if record["step"] <= step]
    _replace(path, "".join(_line(record) for record in kept))
    return kept


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class MetricsLog:
    """Appends records to `metrics.jsonl`, each as one complete line."""

    def __init__(self, folder: Path, *, tensorboard: bool = False, step: int = 0):
        """Opens the record of a run.

        Args:
          folder: The run's folder.
          tensorboard: Whether to write scalars to `folder/tensorboard` as well.
          step: Step at which the run starts or goes on; TensorBoard forgets later ones.

        Raises:
          RunError: `tensorboard` without tensorboardX.
        """
        self._file = (folder / "metrics.jsonl").open("a")
        self._board = _board(folder / "tensorboard", step) if tensorboard else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record: `step`, `split` and any numbers."""
        self._file.write(_line(record))
        self._file.flush()
        if self._board is not None:
            for name, value in record.items():
                if name not in ("step", "split") and isinstance(value, int | float):
                    tag = f"{record['split']}/{name}"
                    self._board.add_scalar(tag, value, record["step"])

    def close(self) -> None:
        """Writes what is left and closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def check_tensorboard() -> None:
    """Raises `RunError` unless tensorboardX can be imported."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise RunError(
            "tensorboard=True needs tensorboardX, which is not installed. Run: "
            "pip install tensorboardX"
        ) from error


def _board(folder: Path, step: int) -> Any:
    check_tensorboard()
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step or None)
