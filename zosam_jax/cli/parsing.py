"""From the words of a command line to a command."""

import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import operator
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol

import tyro
from tyro.conf import OmitArgPrefixes, Positional, Suppress, subcommand

from zosam_jax.cli import terminal
from zosam_jax.cli.defaults import SOURCES
from zosam_jax.runs.errors import RunError

DESCRIPTION = """Train neural networks with sharpness-aware gradients and
sparse training.

`zosam COMMAND --help` explains every flag; `zosam --version`
names the version. Completion in the shell, once:
`zosam --tyro-write-completion bash FILE` (or zsh, fish), and
source FILE."""

_FORMER_NAMES = {"recipes": "presets"}
_USUAL_NAMES = {
    "--lr": "--learning-rate",
    "--wd": "--weight-decay",
    "--bs": "--batch-size",
    "--batch": "--batch-size",
}
_HELP = ("-h", "--help")


class Command(Protocol):
    """A parsed command with its flags."""

    def execute(self, line: Sequence[str]) -> int:
        """Runs the command and returns the exit status.

        Args:
          line: The whole command line, for the records that the command writes.
        """
        ...


class _FromDefaults(Protocol):
    """A command whose defaults come from a preset, a file or a run."""

    @classmethod
    def of(cls, given: Mapping[str, str | None]) -> Command:
        """Returns the command with the defaults that flags of `SOURCES` choose."""
        ...


def parse(words: Sequence[str], commands: Mapping[str, type[Command]]) -> Command:
    """Returns the command that the words of a command line stand for.

    Args:
      words: The words, without the program's name.
      commands: The commands by name.

    Raises:
      RunError: A command, a flag or a preset is unknown, or a value has the wrong type.
      SystemExit: The help was asked for, and is printed.
    """
    if not words or words[0] in _HELP or words[0].startswith("--tyro"):
        return _parsed(_any(commands), "zosam", words or ["--help"])
    name, *rest = words
    _check_command(name, commands)
    kind = commands[name]
    _check_action(name, kind, rest)
    if not set(_HELP) & set(rest):
        _check_flags(name, rest, flags(kind))
    default: dict[str, Any] = {}
    if hasattr(kind, "of"):
        given = {source: _value(rest, source) for source in SOURCES}
        default["default"] = typing.cast(type[_FromDefaults], kind).of(given)
    return _parsed(kind, f"zosam {name}", rest, **default)


def _any(commands: Mapping[str, type[Command]]) -> Any:
    """Returns the union of all commands, whose help lists them."""
    kinds: list[Any] = [
        Annotated[kind, subcommand(name)] for name, kind in commands.items()
    ]
    return functools.reduce(operator.or_, kinds)


def _parsed(kind: Any, prog: str, words: Sequence[str], **options: Any) -> Command:
    """Returns what Tyro makes of the words; its boxed errors become one sentence."""
    if prog == "zosam":
        options["description"] = DESCRIPTION
    said = io.StringIO()
    with terminal.guarded():
        try:
            with contextlib.redirect_stderr(said):
                return tyro.cli(
                    OmitArgPrefixes[kind], prog=prog, args=list(words), **options
                )
        except SystemExit as exit_:
            if not exit_.code:
                raise
    raise RunError(f"{_sentence(said.getvalue())} `{prog} --help` explains the flags.")


def _sentence(boxed: str) -> str:
    """Returns the first paragraph of an error in a box, as a sentence."""
    # The frame is drawn in ASCII where the terminal has no other characters.
    lines = [line.strip("│╭╮╰╯|+ ") for line in boxed.splitlines()[1:]]
    rules = itertools.groupby(lines, lambda line: set(line) <= set("─-"))
    text = " ".join(next((list(part) for is_rule, part in rules if not is_rule), []))
    text = re.sub(r"^Error parsing ", "", text)
    text = re.sub(r"invalid literal for int\(\) with base 10: (.*)", _whole, text)
    text = re.sub(r"could not convert string to float: (.*)", r"\1 is no number", text)
    text = text.replace("Could not find valid parse for arguments: ", "cannot read ")
    text = re.sub(r"^Missing from (.*?): (.*) \(required\)$", r"\1 needs \2", text)
    text = re.sub(r" needs ([A-Z]+) (?=[A-Z][a-z])", r" needs \1: ", text)
    text = text.replace("Expected 1 values.", "")
    return text.strip().rstrip(".") + "."


def _whole(match: re.Match[str]) -> str:
    return f"{match[1]} is no whole number"


def _check_command(name: str, commands: Collection[str]) -> None:
    """Raises `RunError` if there is no such command, naming the nearest."""
    if name in commands:
        return
    if name.startswith("-"):
        raise RunError(
            f"the command comes first, before {name}. Commands: {', '.join(commands)}."
        )
    nearest = _FORMER_NAMES.get(name) or _nearest(name, commands)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise RunError(
        f"there is no command {name!r}.{hint} Commands: {', '.join(commands)}."
    )


def _check_action(command: str, kind: type, words: Sequence[str]) -> None:
    """Raises `RunError` if a command has actions and the first word is none of them."""
    fields = dataclasses.fields(typing.cast(Any, kind))
    actions = {name: a for field in fields for name, a in _actions(field.type).items()}
    if not actions or (words and (words[0] in actions or words[0].startswith("-"))):
        return
    said = f"has no action {words[0]!r}" if words else "needs an action"
    nearest = _nearest(words[0], actions) if words else ""
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise RunError(f"zosam {command} {said}.{hint} Actions: {', '.join(actions)}.")


def _check_flags(command: str, words: Iterable[str], known: Collection[str]) -> None:
    """Raises `RunError` for a flag that a command does not have, naming the nearest."""
    for word in words:
        flag = word.partition("=")[0]
        if not flag.startswith("--") or _normal(flag) in known:
            continue
        usual = _USUAL_NAMES.get(flag, "")
        nearest = usual if usual in known else _nearest(_normal(flag), known)
        hint = f" Did you mean {nearest}?" if nearest else ""
        raise RunError(
            f"zosam {command} has no flag {flag}.{hint} `zosam {command} --help` lists "
            "the flags."
        )


def flags(kind: type) -> dict[str, str]:
    """Returns the fields of a command by flag, as `{"--batch-size": "batch_size"}`.

    Args:
      kind: The class of the command. Flags of its actions, as those of `zosam data
        prepare`, are included.
    """
    found: dict[str, str] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        actions = _actions(field.type)
        for action in actions.values():
            found |= flags(action)
        marks = getattr(field.type, "__metadata__", ())
        if actions or Suppress in marks or Positional in marks:
            continue
        # A field may not be named as a word of Python, so "from_" is --from.
        flag = f"--{field.name.rstrip('_').replace('_', '-')}"
        found[flag] = field.name
        if field.type is bool:
            found[f"--no-{flag[2:]}"] = field.name
    return found


def _actions(hint: object) -> dict[str, type]:
    """Returns the actions in the type of a field, by name, as `{"list": List}`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return {hint.__name__.lower(): hint}
    found = (_actions(part) for part in typing.get_args(hint))
    return {name: action for each in found for name, action in each.items()}


def typed(words: Iterable[str], kind: type) -> set[str]:
    """Returns the fields of a command that a command line gives by their flags."""
    known = flags(kind)
    given = (_normal(word.partition("=")[0]) for word in words)
    return {known[flag] for flag in given if flag in known}


def _normal(flag: str) -> str:
    return flag.replace("_", "-")


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return near[0] if near else ""


def _value(words: Sequence[str], name: str) -> str | None:
    """Returns the value of a flag, the last if it is given twice; None without it."""
    found = None
    for word, after in itertools.zip_longest(words, words[1:]):
        flag, equals, text = word.partition("=")
        if flag == f"--{name}":
            found = text if equals else after
    return found
