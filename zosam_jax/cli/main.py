"""The command line `zosam`, also `python -m zosam_jax`: parses and runs a command.

Each command is a dataclass in the module of its name: the fields are its flags, and
`execute` runs it.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from zosam_jax._version import __version__
from zosam_jax.cli import distributed, parsing, terminal
from zosam_jax.cli.analyze import Analyze
from zosam_jax.cli.data import Data
from zosam_jax.cli.evaluate import Evaluate
from zosam_jax.cli.export import Export
from zosam_jax.cli.lottery import Lottery
from zosam_jax.cli.parsing import Command
from zosam_jax.cli.predict import Predict
from zosam_jax.cli.presets import Presets
from zosam_jax.cli.report import Report
from zosam_jax.cli.sweep import Sweep
from zosam_jax.cli.train import Train
from zosam_jax.runs.errors import LostProcess, RunError, sentence

COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "sweep": Sweep,
    "predict": Predict,
    "evaluate": Evaluate,
    "export": Export,
    "analyze": Analyze,
    "report": Report,
    "presets": Presets,
    "data": Data,
    "lottery": Lottery,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    The status is 0 on success, 2 after an error that the message explains, and 141 if
    the reader of standard output has gone. The same command goes on after 75, the time
    limit or a lost process, and after 128 plus the number of a signal, as 130 for
    SIGINT.

    Args:
      arguments: The command line without the program's name. Default: `sys.argv`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    terminal.escape_unprintable()
    try:
        return _run(given)
    except terminal.OutputClosed:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except OSError as error:
        # What the system refuses on the way to any file.
        sys.stderr.write(f"error: {sentence(error, 'a file', 'used')}\n")
        return 2
    except Exception as error:
        from zosam_jax.data import DatasetError

        if not isinstance(error, RunError | DatasetError):
            raise
        message = terminal.as_typed(str(error), _fields(given))
        sys.stderr.write(f"error: {message}\n")
        if isinstance(error, LostProcess):
            # JAX would wait for the lost process at the exit of Python.
            distributed.leave(75)
        return 2


def _run(given: list[str]) -> int:
    _check_working_directory()
    if given == ["--version"]:
        terminal.write(f"zosam {__version__}\n")
        return 0
    try:
        command = parsing.parse(given, COMMANDS)
    except SystemExit:
        # Help is printed without a flush, so its reader may have gone unnoticed.
        terminal.write("")
        raise
    return command.execute(["python", "-m", "zosam_jax", *given])


def _check_working_directory() -> None:
    """Raises `RunError` if the working directory has been deleted."""
    try:
        Path.cwd()
    except OSError as error:
        raise RunError(
            "the working directory does not exist any more. Change to another."
        ) from error


def _fields(given: Sequence[str]) -> set[str]:
    """Returns the fields that are flags of the command."""
    kind = COMMANDS.get(given[0]) if given else None
    return set() if kind is None else set(parsing.flags(kind).values())
