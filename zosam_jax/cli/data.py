"""`zosam data`: `list` and `prepare`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

from zosam_jax.runs.errors import RunError


def _print(text: str) -> None:
    """Prints a line."""
    sys.stdout.write(f"{text}\n")


@dataclasses.dataclass(frozen=True, slots=True)
class Prepare:
    """Download a data set, or unpack its archive, into the form that training reads."""

    name: Positional[str]
    """Data set: cifar10, cifar100, imagenette, oxford_iiit_pet, imagenet2012 (from \
archives that you download) or folder:PATH (from --archive). For another TFDS set, the \
command that prepares it is shown."""
    data_dir: str | None = None
    """TFDS directory. None: TFDS_DATA_DIR or ~/tensorflow_datasets."""
    archive: Path | None = None
    """Local copy of the data set's archive, or the folder of its archives, to use \
instead of a download."""

    def execute(self) -> int:
        """Prepares the data set and returns the exit status."""
        from zosam_jax import data

        try:
            data.prepare(
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
    """List the data sets."""

    def execute(self) -> int:
        """Prints the names and returns the exit status."""
        from zosam_jax import data

        for name in data.names():
            _print(name)
        _print(
            "and any other image classification set of TFDS, folder:PATH and text:PATH"
        )
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
