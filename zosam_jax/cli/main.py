"""The command line: `python -m zosam_jax`, also installed as `zosam`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import (
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    Suppress,
    subcommand,
)

from zosam_jax.runs.config import METHOD_FIELDS
from zosam_jax.train import PRESETS, LotteryConfig, RunError, TrainConfig, preset


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Train(TrainConfig):
    """Train a sparse network, and leave a run folder that `report` reads.

    The same command continues an interrupted run. Other flags override the preset.
    """

    ticket: Suppress[tuple[str, ...] | None] = None
    preset: str = "digits"
    """Recipe to start from; `zosam recipes` lists them."""
    print_config: bool = False
    """Print the configuration that results, as JSON, and stop."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lottery(LotteryConfig):
    """Find lottery tickets: train, prune the smallest weights, rewind, train again.

    Every round is a run folder OUT/round-NN that `report` reads; OUT/lottery.json sums
    them up. The same command continues where it was. Other flags override the preset.
    """

    method: Suppress[str] = "dense"
    budget: Suppress[str] = "auto"
    update_interval: Suppress[int | None] = None
    drop_fraction: Suppress[float | None] = None
    stop_fraction: Suppress[float | None] = None
    method_options: Suppress[tuple[str, ...]] = ()
    ticket: Suppress[tuple[str, ...] | None] = None
    preset: str = "digits"
    """Recipe to start from, without its sparse-training method; `zosam recipes` lists \
them."""
    print_config: bool = False
    """Print the configuration that results, as JSON, and stop."""


@dataclasses.dataclass(frozen=True, slots=True)
class Recipes:
    """List the recipes: what each claims, what it costs, and what shows it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Compare runs: a table here, curves.png, and report.html in one file."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, finished or not."""
    out: Path = Path("report")
    """Folder for curves.png and report.html."""


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate a finished run: clean and corrupted accuracy, and calibration.

    Leaves evaluation.json and evaluation.png in the run's folder, of the last command;
    evaluation.jsonl keeps every test set, so that none is evaluated twice.
    """

    run: Positional[Path]
    """Folder of a finished run."""
    corruptions: tuple[str, ...] = ("all",)
    """Names, as fog jpeg_compression; common: the 15 of the published measure; all: \
those and speckle_noise, gaussian_blur, spatter, saturate."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Severities, from 1 to 5."""
    source: str = "generated"
    """generated: corrupted here, by the definitions of CIFAR-10-C (ImageNet-C from \
128 pixels on). published: those sets themselves, from --data-dir or --published-dir."""
    images: int | None = None
    """Test images of each set to use. None: all."""
    seed: int = 0
    """Seed of the generated corruptions."""
    data_dir: str | None = None
    """TFDS directory. None: that of the run."""
    published_dir: Path | None = None
    """Folder of the released .npy files of CIFAR-10-C or CIFAR-100-C."""
    frost_dir: Path | None = None
    """Folder of photographs of frost. None: generated frost is a drawn stand-in."""
    out: Path | None = None
    """Folder of evaluation.json and evaluation.png. None: that of the run."""
    overwrite: bool = False
    """Evaluate again what was evaluated before."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prepare:
    """Make a data set ready for training, as TFDS keeps it."""

    name: Positional[str]
    """Data set: cifar10, cifar100, imagenette, oxford_iiit_pet, imagenet2012 (from \
archives that you fetch), folder:PATH (from --archive), or another of TFDS, for which \
it says what to run."""
    data_dir: str | None = None
    """TFDS directory. None: TFDS_DATA_DIR or ~/tensorflow_datasets."""
    archive: Path | None = None
    """A copy of the set's archive, or the folder of them, for machines without a \
network."""


@dataclasses.dataclass(frozen=True, slots=True)
class List:
    """List the data sets."""


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """Data sets: list them, make them ready."""

    action: OmitSubcommandPrefixes[
        Annotated[Prepare, subcommand("prepare")] | Annotated[List, subcommand("list")]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    0: done. 2: an error that the message explains. 130 or 143: interrupted by SIGINT
    or SIGTERM, to be continued by the same command.

    Args:
      arguments: The command line without the program's name. Default: `sys.argv`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = _parse(given)
        return _COMMANDS[type(command)](command, given)
    except (RunError, _dataset_error()) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _dataset_error() -> type[Exception]:
    """Returns the data package's error; imported only when there is an exception."""
    from zosam_jax.data import DatasetError

    return DatasetError


def _parse(arguments: list[str]) -> Any:
    # The preset gives the defaults, so it must be known before the flags are.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="digits")
    name = early.parse_known_args(arguments)[0].preset
    try:
        chosen = preset(name).config
    except ValueError as error:
        raise RunError(str(error)) from error
    recipe = _values(TrainConfig, chosen)
    shared = {k: v for k, v in recipe.items() if k not in METHOD_FIELDS}
    commands = OmitArgPrefixes[
        Annotated[Train, subcommand("train", default=Train(**recipe, preset=name))]
        | Annotated[
            Lottery, subcommand("lottery", default=Lottery(**shared, preset=name))
        ]
        | Annotated[Recipes, subcommand("recipes")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Data, subcommand("data")]
        | Annotated[Evaluate, subcommand("evaluate")]
    ]
    return tyro.cli(
        commands,
        prog="zosam",
        description="Sparse networks with flat minima, at the price of one backward "
        "pass. `zosam COMMAND --help` explains every flag.",
        args=arguments,
    )


def _values(kind: type, record: Any) -> dict[str, Any]:
    """Returns the fields of `kind` that a record has, and no others."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(kind)}


def _placed(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns fields whose data are found from another working directory too."""
    kind, _, path = fields["dataset"].partition(":")
    if kind not in ("folder", "text") or not path:
        return fields
    return fields | {"dataset": f"{kind}:{Path(path).expanduser().resolve()}"}


def _print(config: TrainConfig) -> int:
    sys.stdout.write(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    return 0


def _train(command: Train, arguments: Sequence[str]) -> int:
    config = TrainConfig(**_placed(_values(TrainConfig, command)))
    if command.print_config:
        return _print(config)
    from zosam_jax.runs import progress
    from zosam_jax.train import run

    line = ["python", "-m", "zosam_jax", *arguments]
    show = progress.display(config.log_every)
    result = run(config, display=show, command=line)
    if result.status == "interrupted":
        return 128 + (result.signal or 0)
    from zosam_jax.cli import report

    curves = result.folder / "curves.png"
    report.plot(report.read_all([result.folder]), curves)
    show.message(f"curves: {curves}")
    return 0


def _lottery(command: Lottery, arguments: Sequence[str]) -> int:
    config = LotteryConfig(**_placed(_values(LotteryConfig, command)))
    if command.print_config:
        return _print(config)
    from zosam_jax.runs import progress
    from zosam_jax.train import run_lottery

    line = ["python", "-m", "zosam_jax", *arguments]
    show = progress.display(config.log_every)
    result = run_lottery(config, display=show, command=line)
    if result.status == "interrupted":
        return 128 + (result.signal or 0)
    from zosam_jax.cli import report

    curves = result.folder / "curves.png"
    folders = [result.folder / record["folder"] for record in result.rounds]
    report.plot(report.read_all(folders), curves)
    show.message(f"curves: {curves}")
    return 0


def _recipes(command: Recipes, arguments: Sequence[str]) -> int:
    del command, arguments
    for name, recipe in PRESETS.items():
        sys.stdout.write(
            f"zosam train --preset {name}\n"
            f"    {recipe.claim}\n"
            f"    Cost: {recipe.cost}\n"
            f"    Evidence: {recipe.evidence}\n"
        )
    return 0


def _report(command: Report, arguments: Sequence[str]) -> int:
    del arguments
    from rich.console import Console

    from zosam_jax.cli import report

    runs = report.read_all(command.runs)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(report.terminal_table(runs, console.width))
    try:
        paths = report.write(runs, command.out)
    except OSError as error:
        raise RunError(
            f"out={str(command.out)!r} cannot be written: {error}."
        ) from error
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


def _evaluate(command: Evaluate, arguments: Sequence[str]) -> int:
    from rich.console import Console

    from zosam_jax.cli import evaluation_report
    from zosam_jax.evaluate import run as evaluation

    options = _values(Evaluate, command)
    show = evaluation_report.display()
    try:
        figures = evaluation.evaluate(
            options.pop("run"),
            **options,
            on_progress=show,
            command=["python", "-m", "zosam_jax", *arguments],
        )
    finally:
        show.close()
    Console().print(evaluation_report.terminal_table(figures))
    folder = Path(command.out or command.run).expanduser().resolve()
    evaluation_report.plot(figures, folder / "evaluation.png")
    for name in ("evaluation.json", "evaluation.png"):
        _say(str(folder / name))
    return 0


def _data(command: Data, arguments: Sequence[str]) -> int:
    del arguments
    from zosam_jax import data

    if isinstance(command.action, List):
        sys.stdout.write("\n".join(data.names()) + "\n")
        sys.stdout.write(
            "and any other image classification set of TFDS, folder:PATH and "
            "text:PATH\n"
        )
        return 0
    action = command.action
    try:
        data.prepare(
            action.name,
            data_dir=action.data_dir,
            archive=action.archive,
            on_progress=_say,
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


_COMMANDS: dict[type, Callable[[Any, Sequence[str]], int]] = {
    Train: _train,
    Lottery: _lottery,
    Recipes: _recipes,
    Report: _report,
    Evaluate: _evaluate,
    Data: _data,
}
