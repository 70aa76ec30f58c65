"""Runs a command line of zosam that sends itself a signal at a moment of its own.

    python tests/faults/killed.py SIGNAL MOMENT REACHED COMMAND...

MOMENT is `file EVENT PART N` or `call MODULE:NAME N`, as one word: before the N-th
event of that name (see Python's table of audit events) in whose arguments PART
occurs, or before the N-th call of a function or method. The file REACHED is written
just before the signal is sent.
"""

import functools
import importlib
import os
import sys
from pathlib import Path
from typing import Any


class Trigger:
    """Sends the signal when it was asked often enough."""

    def __init__(self, number: int, count: int, reached: Path):
        """Waits.

        Args:
          number: The signal.
          count: How often it must be asked.
          reached: The file that tells of it.
        """
        self.number, self.left, self.reached = number, count, reached

    def __call__(self) -> None:
        """Counts, and sends the signal once."""
        self.left -= 1
        if not self.left:
            self.reached.touch()
            os.kill(os.getpid(), self.number)


def at_event(name: str, part: str, trigger: Trigger) -> None:
    """Asks the trigger before every event with these words in its arguments."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == name and part in " ".join(map(str, arguments)):
            trigger()

    sys.addaudithook(hook)


def at_call(place: str, trigger: Trigger) -> None:
    """Asks the trigger before every call of a function or method."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *inside, name = name.split(".")
    for part in inside:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    @functools.wraps(original)
    def replaced(*arguments: Any, **options: Any) -> Any:
        trigger()
        return original(*arguments, **options)

    setattr(owner, name, replaced)


def main() -> int:
    """Arranges the signal and runs the command."""
    number, moment, reached, *command = sys.argv[1:]
    kind, *place, count = moment.split()
    trigger = Trigger(int(number), int(count), Path(reached))
    if kind == "file":
        event, part = place
        at_event(event, part, trigger)
    else:
        at_call(place[0], trigger)
    from zosam_jax.cli.main import main as run

    return run(command)


if __name__ == "__main__":
    sys.exit(main())
