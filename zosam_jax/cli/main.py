"""The command line `zosam`, also `python -m zosam_jax`: parses and runs a command.

Each command is a dataclass in the module of its name: the fields are its flags, and
`execute` runs it.
"""

import argparse
import difflib
import functools
import operator
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import tyro
from tyro.conf import OmitArgPrefixes, subcommand

from zosam_jax.cli.data import Data
from zosam_jax.cli.evaluate import Evaluate
from zosam_jax.cli.lottery import Lottery
from zosam_jax.cli.presets import Presets
from zosam_jax.cli.report import Report
from zosam_jax.cli.train import Train
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.presets import Preset, preset


class Command(Protocol):
    """A parsed command with its flags."""

    def execute(self, line: Sequence[str]) -> int:
        """Runs the command and returns the exit status.

        Args:
          line: The whole command line, for the records that the command writes.
        """
        ...


COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "presets": Presets,
    "data": Data,
    "lottery": Lottery,
}
_FORMER_NAMES = {"recipes": "presets"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    The status is 0 on success, 2 after an error that the message explains, and 130 or
    143 after an interruption by SIGINT or SIGTERM; the same command then resumes.

    Args:
      arguments: The command line without the program's name. Default: `sys.argv`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _parse(given).execute(["python", "-m", "zosam_jax", *given])
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as error:
        from zosam_jax.data import DatasetError

        if not isinstance(error, RunError | DatasetError):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parse(arguments: list[str]) -> Command:
    if arguments and not arguments[0].startswith("-"):
        _check_command(arguments[0])
    name, chosen = _preset(arguments)
    defaults: dict[str, dict[str, Any]] = {
        "train": {"default": Train.of(name, chosen)},
        "lottery": {"default": Lottery.of(name, chosen)},
    }
    kinds: list[Any] = [
        Annotated[kind, subcommand(command, **defaults.get(command, {}))]
        for command, kind in COMMANDS.items()
    ]
    return tyro.cli(
        OmitArgPrefixes[functools.reduce(operator.or_, kinds)],
        prog="zosam",
        description="Train sparse networks with flat minima, at the cost of one "
        "backward pass per step. `zosam COMMAND --help` explains every flag.",
        args=arguments,
    )


def _check_command(name: str) -> None:
    """Raises `RunError` if there is no such command, naming the nearest."""
    if name in COMMANDS:
        return
    near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
    nearest = _FORMER_NAMES.get(name, near[0] if near else "")
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise RunError(
        f"there is no command {name!r}.{hint} Commands: {', '.join(COMMANDS)}."
    )


def _preset(arguments: Sequence[str]) -> tuple[str, Preset]:
    """Returns the name and the contents of the preset that a command line names."""
    # The preset sets the defaults of the flags, so it must be known before them.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="digits")
    name = parser.parse_known_args(arguments)[0].preset
    try:
        return name, preset(name)
    except ValueError as error:
        raise RunError(str(error)) from error
