"""`zosam data`: `list` and `prepare`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from zosam_jax.cli import terminal
from zosam_jax.data.table import DATASETS, describe, prepare
from zosam_jax.runs.errors import RunError

_NAMES = [name for name, row in DATASETS.items() if row.archives or row.prepare]
_PREPARE = (
    f"Data set: {', '.join(_NAMES)}. imagenet2012 needs archives that you download, "
    "folder:PATH the --archive to unpack. For another TFDS set, the command that "
    "prepares it is shown."
)


def _print(text: str) -> None:
    """Prints a line."""
    terminal.write(f"{text}\n")


@dataclasses.dataclass(frozen=True, slots=True)
class Prepare:
    """Download a data set, or unpack its archive, into the form that training reads."""

    name: Positional[Annotated[str, arg(metavar="NAME", help=_PREPARE)]]
    data_dir: str | None = None
    """TFDS directory. None: TFDS_DATA_DIR or ~/tensorflow_datasets."""
    archive: Path | None = None
    """Local copy of the data set's archive, or the folder of its archives, to use \
instead of a download."""

    def execute(self) -> int:
        """Prepares the data set and returns the exit status."""
        try:
            prepare(
                self.name,
                data_dir=self.data_dir,
                archive=self.archive,
                on_progress=_print,
            )
        except ValueError as error:
            raise RunError(str(error)) from error
        return 0


@dataclasses.dataclass(frozen=True, slots=True)
class List:
    """List the data sets with their sizes and sources."""

    def execute(self) -> int:
        """Prints the data sets and returns the exit status."""
        _print(describe())
        _print("any other name: an image classification set of TFDS")
        return 0


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """List the data sets, or prepare one for training."""

    action: OmitSubcommandPrefixes[
        Annotated[List, subcommand("list")] | Annotated[Prepare, subcommand("prepare")]
    ]

    def execute(self, line: Sequence[str]) -> int:
        """Runs the action and returns the exit status."""
        del line
        return self.action.execute()
