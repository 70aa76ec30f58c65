"""`zosam train`, and what `zosam lottery` has in common with it."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from zosam_jax.cli import (
    compilation_cache,
    defaults,
    names,
    own_code,
    parsing,
    terminal,
)
from zosam_jax.cli.distributed import Distributed, is_first
from zosam_jax.lottery.config import LotteryConfig
from zosam_jax.runs.config import TrainConfig, default
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.train import choices, constructors, effects, objects

if TYPE_CHECKING:
    from zosam_jax.runs.progress import Display


_CHOSEN = ("gradient", "method", "optimizer")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Train(TrainConfig):
    """Train a sparse network and write a run folder.

    The same command resumes an interrupted run; so does --resume. Flags override the
    preset. --dataset, --model, --method, --gradient, --optimizer and --loss take code
    of your own, as MODULE:NAME: an object, or a function that makes it.
    """

    dataset: names.Dataset = "digits"
    model: names.Model = "resnet20"
    method: names.Method = "rigl"
    gradient: names.Gradient = "zosam"
    optimizer: names.Optimizer = "sgd"
    loss: str | None = None
    """Loss of your own in place of the cross-entropy, as MODULE:NAME: a function of \
outputs and labels that returns the losses of all examples."""
    from_: names.From = None
    preset: str = "digits"
    """Preset that sets the defaults of all flags; `zosam presets` lists them."""
    config: str | None = None
    """JSON file that sets them instead, as --print-config prints it."""
    resume: str | None = None
    """Folder of a run to go on with: its own configuration sets all flags. --epochs \
trains a run for longer if its learning rate is constant and its masks do not change."""
    print_config: bool = False
    """Print the resulting configuration as JSON and exit."""
    dry_run: bool = False
    """Make every check, compile, train one step and exit; write nothing."""
    distributed: bool = False
    """Train with the processes of a cluster: the same command on every host. Cloud \
TPU, GKE, SLURM and Open MPI tell who they are; else the next three flags do."""
    coordinator: str | None = None
    """HOST:PORT of process 0, with a free port."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    process_timeout: int = 100
    """Seconds after which a silent process counts as dead, and all end. At the start, \
they wait three times as long for each other."""

    def __post_init__(self):
        """Checks nothing: `config` does, when the command line is complete."""

    @classmethod
    def of(cls, given: Mapping[str, str | None]) -> Self:
        """Returns the command with the defaults that flags choose.

        Args:
          given: The values of --preset, --config and --resume, or None.
        """
        return defaults.command(cls, given, "config.json")

    def execute(self, line: Sequence[str]) -> int:
        """Trains, draws the curves and returns the exit status."""
        typed = parsing.typed(line, type(self))
        given = own_code.typed(self, typed)
        config = checked(self, typed, is_stored=self.resume is not None, given=given)
        check_modes(print_config=self.print_config, dry_run=self.dry_run)
        processes = self._processes(line)
        if self.print_config:
            return print_config(config)
        from zosam_jax.runs import progress

        compilation_cache.use()
        if processes is not None:
            processes.connect()
        show: progress.Display = progress.Silent()
        if is_first():
            show = progress.display(config.log_every)
        # The imports take seconds.
        show.message(opening(config))
        from zosam_jax.train import run, try_out

        if self.dry_run:
            try_out(config, show, objects.Objects(**given))
            return 0
        result = run(config, display=show, command=line, **given)
        if result.ended_early:
            return early_exit(result.signal)
        if is_first():
            draw_curves(result.folder, [result.folder], show)
        return 0

    def _processes(self, line: Sequence[str]) -> Distributed | None:
        """Returns the processes of the run, checked; None without --distributed."""
        found = Distributed(
            self.coordinator, self.num_processes, self.process_id, self.process_timeout
        )
        others = {f.name for f in dataclasses.fields(Distributed)}
        idle = sorted(others & parsing.typed(line, type(self)))
        if self.distributed and self.resume is not None:
            raise RunError(
                "--resume reads the run's folder, which only process 0 need have. Give "
                "all processes the command that began the run: it goes on with it."
            )
        if not self.distributed:
            if idle:
                raise RunError(
                    f"--{idle[0].replace('_', '-')} is for --distributed. Say both, or "
                    "leave it out."
                )
            return None
        try:
            found.check()
        except ValueError as error:
            raise RunError(str(error)) from error
        return found


def checked(
    command: TrainConfig,
    typed: Collection[str],
    *,
    is_stored: bool,
    method: str | None = None,
    given: Mapping[str, Any] = {},
) -> TrainConfig:
    """Returns the configuration of a command, checked.

    Fields of the preset or file that have no effect beside the flags fall back to their
    defaults. Those of a run stay as they are.

    Args:
      command: The command.
      typed: The fields whose flags are on the command line.
      is_stored: Whether the other fields are those of a run.
      method: The sparse method that uses the fields; None: that of the command.
      given: Objects in place of what the command names, by part of the run.

    Raises:
      RunError: A value is unknown or out of range, or a flag has no effect.
    """
    try:
        config = _without_idle(
            TrainConfig(**fields(TrainConfig, command)), typed, given
        )
        used = dataclasses.replace(config, method=method or config.method)
        objects.check_named(config, given)
        idle = effects.without_effect(used, typed)
        for name in idle:
            if name in typed:
                raise ValueError(effects.explain(used, name))
        if not is_stored:
            config = dataclasses.replace(
                config, **{name: default(name) for name in idle}
            )
        choices.check(config, **{k: given.get(k) for k in _CHOSEN})
    except ValueError as error:
        raise RunError(str(error)) from error
    return config


def _without_idle(
    config: TrainConfig, typed: Collection[str], given: Mapping[str, Any]
) -> TrainConfig:
    """Returns a configuration without the fields that given objects do not read.

    Raises:
      ValueError: Such a field is on the command line.
    """
    for kind, value in given.items():
        if constructors.is_one(value):
            continue
        for name in objects.FIELDS.get(kind, ()):
            if name in typed:
                raise ValueError(
                    f"{name}={getattr(config, name)!r} has no effect: {kind}="
                    f"{getattr(config, kind)} is an object that is made already. Name "
                    "a function that makes it, or leave it out."
                )
            config = dataclasses.replace(config, **{name: default(name)})
    return config


def check_modes(*, print_config: bool, dry_run: bool) -> None:
    """Raises `RunError` if a command is to do two things at once."""
    if print_config and dry_run:
        raise RunError("--print-config and --dry-run exclude each other.")


def opening(config: TrainConfig) -> str:
    """Returns the first line that a training shows, at once."""
    parts = (config.dataset, config.model, config.method, config.gradient)
    return f"preparing {', '.join(parts)}..."


def fields(kind: type, record: object) -> JSON:
    """Returns the values that `record` has for the fields of a dataclass."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(kind)}


def early_exit(number: int | None) -> int:
    """Returns the exit status of a run that ended early.

    Args:
      number: The signal that ended it; None for the time limit, whose status is 75, the
        one for "try again" in `sysexits.h`.
    """
    return 75 if number is None else 128 + number


def print_config(config: TrainConfig | LotteryConfig) -> int:
    """Prints a configuration as JSON and returns the exit status 0."""
    terminal.write(json.dumps(config.record(), indent=2) + "\n")
    return 0


def draw_curves(folder: Path, runs: Sequence[Path], show: "Display") -> None:
    """Writes the curves of runs to `folder/curves.png`, and says so."""

    def draw(path: Path) -> None:
        from zosam_jax.cli import pictures
        from zosam_jax.runs import record

        pictures.curves(record.read_all(runs), path)

    show.message(f"curves: {terminal.drawn(draw, folder / 'curves.png')}")
