"""`zosam sweep`."""

import dataclasses
import functools
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from tyro.conf import arg

from zosam_jax import _check
from zosam_jax.cli import defaults, parsing, terminal
from zosam_jax.cli.train import Train
from zosam_jax.runs import paths
from zosam_jax.runs import sweep as record
from zosam_jax.runs.config import HOUSEKEEPING, TrainConfig, default, field_texts
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.train import choices, devices, effects, grouping, objects
from zosam_jax.train import sweep as processes
from zosam_jax.train.devices import Device

_LEFT_OUT = ("overwrite",)
# The fields that no training has, and the folder.
_OWN = ("jobs", "devices", "together", "dry_run", "out")


def _is_list(hint: Any) -> bool:
    """Whether the values of a field are lists, perhaps None."""
    return any(
        typing.get_origin(part) is tuple for part in (hint, *typing.get_args(hint))
    )


def _fields() -> list[tuple[str, Any, Any]]:
    """Returns the fields of the command that are those of a configuration.

    Each takes several values. A value of a field of lists is one word.
    """
    hints = typing.get_type_hints(Train, include_extras=True)
    plain = typing.get_type_hints(TrainConfig)
    texts, made = field_texts(TrainConfig), []
    for field in dataclasses.fields(TrainConfig):
        name = field.name
        if name in (*_LEFT_OUT, "out"):
            continue
        notes = list(getattr(hints[name], "__metadata__", ())) or [
            arg(help=_help(texts.get(name, ""), plain[name]))
        ]
        kind = plain[name]
        if name not in HOUSEKEEPING:
            # Tyro takes one or more words where no value is an empty list.
            kind = tuple[str, ...] if _is_list(kind) else tuple[kind, ...]
        made.append((name, Annotated[kind, *notes], dataclasses.field(default=())))
    return made


def _help(text: str, kind: Any) -> str:
    if not _is_list(kind):
        return text
    return f"{text} Here, a list is one word, its parts joined by commas."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    preset: str = "digits"
    """Preset that sets the defaults of all flags; `zosam presets` lists them."""
    config: str | None = None
    """JSON file that sets them instead, as `zosam train --print-config` prints it."""
    out: Path = Path("runs/sweep")
    """Folder of the sweep; each run is a folder in it, and `zosam report` reads it."""
    jobs: int | None = None
    """Processes at the same time, each of which trains a run. None: one, or one on \
each of --devices. With a larger number, several share a GPU."""
    devices: tuple[str, ...] = ()
    """Devices of this machine to train on, by number, or "all"; a run sees one of \
them. By default, all devices share the batches of a run."""
    together: int = 1
    """Runs that train in one program, at most. They differ in --seed and --rho alone. \
Worth while for small networks."""
    dry_run: bool = False
    """Check and list the runs, and exit; write nothing."""

    @classmethod
    def of(cls, given: Mapping[str, str | None]) -> Self:
        """Returns the command with the defaults that flags choose.

        Args:
          given: The values of --preset and --config, or None.
        """
        # The defaults are those of a training; each is the only value of its field.
        train = defaults.command(Train, given, "config.json")
        hints = typing.get_type_hints(TrainConfig)
        values: JSON = {}
        for field in dataclasses.fields(cls):
            if field.name in _OWN:
                continue
            value = getattr(train, field.name)
            if field.name not in hints or field.name in HOUSEKEEPING:
                values[field.name] = value
            else:
                values[field.name] = (_word(value, hints[field.name]),)
        return cls(**values)

    def execute(self, line: Sequence[str]) -> int:
        """Trains the runs of the grid, and returns the exit status."""
        typed = parsing.typed(line, type(self)) & set(
            typing.get_type_hints(TrainConfig)
        )
        path = paths.absolute(self.out, "out")
        try:
            _check.whole("together", self.together)
            if self.jobs is not None:
                _check.whole("jobs", self.jobs)
            grid, plan = self._plan(typed, path)
        except ValueError as error:
            raise RunError(str(error)) from error
        slots = self._slots()
        if self.dry_run:
            return _list(plan, slots, self.together)
        result = processes.train_all(
            plan,
            path,
            slots=slots,
            start=functools.partial(processes.process, path),
            say=lambda text: terminal.write(f"{terminal.printable(text)}\n"),
            beside={"command": list(line), "grid": grid},
            together=self.together,
        )
        return _end(result, path)

    def _slots(self) -> list[Device | None]:
        """Returns the device of each of the processes at a time.

        Raises:
          RunError: There is no such device, or one would have no run.
        """
        if not self.devices:
            return [None] * (self.jobs or 1)
        found = devices.chosen(self.devices, devices.found())
        return list(devices.shared(found, self.jobs or len(found)))

    def _plan(
        self, typed: Collection[str], path: Path
    ) -> tuple[dict[str, list[Any]], list[record.Planned]]:
        """Returns the values of the fields that vary, and the runs.

        Args:
          typed: The fields whose flags are on the command line.
          path: Folder of the sweep.

        Raises:
          ValueError: A configuration is out of range, or a flag has no effect in any.
          RunError: As for `ValueError`.
        """
        hints = typing.get_type_hints(TrainConfig)
        values = {
            name: [_value(word, kind, name) for word in getattr(self, name)]
            for name, kind in hints.items()
            if name not in HOUSEKEEPING
        }
        for name, found in values.items():
            if not found and hints[name] is bool:
                # As for `zosam train`, where the flag alone says yes.
                values[name] = [True]
            elif not found:
                empty = '; an empty list is ""' if _is_list(hints[name]) else ""
                raise RunError(f"{name}: it needs a value{empty}.")
        grid = {name: found for name, found in values.items() if len(found) > 1}
        fixed = {name: found[0] for name, found in values.items()}
        fixed |= {
            name: getattr(self, name)
            for name in HOUSEKEEPING
            if name not in (*_LEFT_OUT, "out")
        }
        used: set[str] = set()

        def settle(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
            idle = effects.without_effect(config, typed)
            used.update(set(typed) - set(idle))
            config = dataclasses.replace(config, **{n: default(n) for n in idle})
            objects.check_named(config)
            choices.check(config)
            return config, [name for name in grid if not effects.is_used(config, name)]

        base = TrainConfig(**fixed)
        plan = record.plan(base, grid, path, settle)
        for name in typed:
            if name not in used:
                raise RunError(effects.explain(base, name))
        return grid, plan


def _word(value: Any, kind: Any) -> Any:
    """Returns the default value of a field as its flag takes it."""
    if not _is_list(kind):
        return value
    return "None" if value is None else ",".join(map(str, value))


def _value(word: Any, kind: Any, name: str) -> Any:
    """Returns the value of a field that a word of its flag stands for."""
    if not _is_list(kind):
        return word
    if word == "None" and type(None) in typing.get_args(kind):
        return None
    parts = _split(word)
    if kind != tuple[float, ...]:
        return tuple(parts)
    try:
        return tuple(map(float, parts))
    except ValueError as error:
        raise RunError(f"{name}={word!r} must be numbers joined by commas.") from error


def _split(text: str) -> list[str]:
    """Returns the parts of a list; commas in brackets do not separate.

    >>> _split("crop=4,flip"), _split("shape=(2,2),n=1"), _split("")
    (['crop=4', 'flip'], ['shape=(2,2)', 'n=1'], [])
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _list(
    plan: Sequence[record.Planned], slots: Sequence[Device | None], together: int
) -> int:
    """Prints the runs of a plan: which are finished, and where the others train.

    Args:
      plan: The runs.
      slots: The device of each of the processes at a time.
      together: Most runs in one program.
    """
    left = []
    for each in plan:
        if processes.is_done(each):
            terminal.write(f"finished  {terminal.printable(each.name)}\n")
        else:
            left.append(each)
    groups = grouping.groups(left, together)
    for number, group in enumerate(groups):
        for each in group:
            begun = (each.config.folder / "config.json").exists()
            status = "begun" if begun else "to train"
            status = status if each is group[0] else "with"
            name = terminal.printable(each.name)
            reason = grouping.obstacle(each.config) if together > 1 else None
            alone = f"  alone: {reason}" if reason else ""
            where = _where(number, slots) if each is group[0] else ""
            terminal.write(f"{status:9} {name}{where}{alone}\n")
    todo = f", {len(left)} to train" if len(left) < len(plan) else ""
    number = f"{len(groups)} program{'s' * (len(groups) > 1)}"
    programs = f" in {number}" if len(groups) < len(left) else ""
    terminal.write(f"{len(plan)} runs{todo}{programs}. Nothing was written.\n")
    return 0


def _where(number: int, slots: Sequence[Device | None]) -> str:
    """Returns where a process trains, as "  on gpu:0", or "" without devices.

    Args:
      number: Its number, from 0. Each of the first has a slot; the others wait.
      slots: The device of each of the processes at a time.
    """
    if slots[0] is None:
        return ""
    device = slots[number] if number < len(slots) else None
    return "  on the first that is free" if device is None else f"  on {device.name}"


def _end(result: processes.SweepResult, path: Path) -> int:
    """Says how a sweep ended, and returns the exit status."""
    failed = result.named(record.FAILED)
    for name in failed:
        reason = result.outcomes[name].reason
        terminal.write(f"{terminal.printable(f'{name} failed: {reason}')}\n")
    done, total = len(result.named(record.FINISHED)), len(result.outcomes)
    left = "" if done == total else " The same command trains the others."
    terminal.write(f"{done} of {total} runs are finished in {path}.{left}\n")
    if result.signal is not None:
        return 128 + result.signal
    if failed:
        return 1
    return 75 if result.named(record.OUT_OF_TIME) else 0


if typing.TYPE_CHECKING:
    Sweep = _Base
else:
    Sweep = dataclasses.make_dataclass(
        "Sweep",
        _fields(),
        bases=(_Base,),
        frozen=True,
        kw_only=True,
        namespace={
            "__doc__": "Train a grid of runs: flags take several values, as --seed 0 1 "
            "2.\n\nThe same command goes on with an interrupted sweep and skips what "
            "is done. A run that fails does not end the others; the status is then 1.",
            "__module__": __name__,
        },
    )
