"""The command lines of the benchmarks: their help, and the command that merges."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help shows a module's docstring and all defaults.

    Args:
      doc: The docstring; None under `python -OO`.
    """
    return argparse.ArgumentParser(description=doc, formatter_class=_Help)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help with the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in (None, False, argparse.SUPPRESS) or "default" in text:
            return text
        values = list(default) if isinstance(default, list | tuple) else [default]
        shown = " ".join(map(_typed, values))
        if action.choices and values == list(action.choices) and len(values) > 1:
            shown = "all"
        return f"{text}; default: {shown}".replace("%", "%%")


def _typed(value: object) -> str:
    """A value as it is typed, from the folder of the project."""
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        value = value.relative_to(ROOT)
    return shlex.quote(str(value))


def listed(first: str, names: Sequence[str]) -> str:
    """Returns the help of an option whose values are names.

    >>> listed("problems", ["a", "b, c"])
    "problems: a, 'b, c'"
    """
    return f"{first}: {', '.join(map(shlex.quote, names))}"


def merging(module: str, words: Sequence[str]) -> str:
    """Returns the command that merges what the parts of a benchmark have done.

    >>> merging("benchmarks.study", ["--part", "1/2", "--methods", "SGD", "RST, 1/2"])
    "python -m benchmarks.study --methods SGD 'RST, 1/2' --merge"

    Args:
      module: The benchmark.
      words: The command line of a part, without the program.
    """
    kept, words = [], list(words)
    while words:
        word = words.pop(0)
        if word == "--part":
            words = words[1:]
        elif not word.startswith("--part="):
            kept.append(word)
    return f"python -m {module} {shlex.join([*kept, '--merge'])}"
