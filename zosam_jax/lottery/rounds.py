"""Lottery tickets: rounds of training, pruning and rewinding, each one a run.

    OUT/lottery.json     the configuration, and what every round reached
    OUT/round-00         trained with all weights; an ordinary run, as all rounds are
    OUT/round-01 ...     with the mask of the largest weights of the round before
    OUT/rewind           states of round 0 that the others go back to
    OUT/early-bird       masks and their distances by epoch, with early_bird

A round that was interrupted resumes from its own checkpoint, which holds its mask. One
that has none starts again from the last checkpoint of the round before and a state in
`rewind`, so that it makes no difference where the rounds were cut off.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import zosam_jax as zs
from zosam_jax import data, tree
from zosam_jax.lottery import tickets
from zosam_jax.lottery.config import LotteryConfig
from zosam_jax.runs import files, folder
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.progress import Display, Silent
from zosam_jax.train import checkpoint, loop
from zosam_jax.train.plan import plan
from zosam_jax.train.programs import Programs
from zosam_jax.train.step import TrainState

RECORD = folder.LOTTERY_RECORD


class LotteryResult(NamedTuple):
    """How a call of `run_lottery` ended.

    Attributes:
      folder: The folder of all rounds.
      status: "finished", "unchanged" (it was finished before), or "interrupted".
      rounds: One record for each finished round, as in `lottery.json`.
      signal: The signal that interrupted it, else None.
    """

    folder: Path
    status: str
    rounds: list[dict[str, Any]]
    signal: int | None = None


def run_lottery(
    config: LotteryConfig,
    *,
    dataset: data.Dataset | None = None,
    model: Any = None,
    display: Display | None = None,
    command: Sequence[str] | None = None,
) -> LotteryResult:
    """Trains round after round, each with a sparser mask, and leaves a run folder each.

    The same call goes on where an earlier one was interrupted, between rounds or within
    one, to the same numbers.

    Args:
      config: The configuration.
      dataset: As for `run`.
      model: As for `run`.
      display: Where to show what happens. Default: nowhere.
      command: The command line, for the record.

    Raises:
      RunError: It cannot start or go on; the message says what would work.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    show = display or Silent()
    folder.check(config, RECORD)
    sparsities = zs.sparsity.ticket_sparsities(config.sparsity, config.total_rounds)
    rounds = [_round(config, *pair) for pair in enumerate(sparsities)]
    if not config.overwrite:
        done = [_record(c) for c in rounds if folder.read_summary(c) is not None]
        if len(done) == len(rounds):
            show.message(
                f"{config.folder} is finished already; --overwrite would start anew."
            )
            return LotteryResult(config.folder, "unchanged", done)
    programs = plan(rounds[0], dataset, model)
    size = checkpoint.size_in_bytes(programs.abstract)
    unfinished = [c for c in rounds if config.overwrite or not _is_finished(c)]
    folder.check_space(config, (len(unfinished) * config.keep + 4) * size)
    with folder.claim(config) as path:
        if config.overwrite:
            _clear(path)
        return _run_rounds(config, rounds, programs, path, show, command)


def _round(config: LotteryConfig, number: int, sparsity: float) -> TrainConfig:
    """Returns the configuration of a round, which says all that its mask comes from."""
    says = {
        "round": number,
        "rounds": config.total_rounds,
        "final_sparsity": config.sparsity,
        "per_layer": config.per_layer,
        "rewind": config.rewinds,
        "rewind_epoch": config.rewind_epoch,
    }
    if config.early_bird:
        says["early_bird_window"] = config.early_bird_window
        says["early_bird_tolerance"] = config.early_bird_tolerance
    common = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    own = {
        "method": "ticket",
        "ticket": tuple(f"{name}={value}" for name, value in says.items()),
        "sparsity": sparsity,
        "out": str(config.folder / f"round-{number:02}"),
        "overwrite": False,
    }
    return TrainConfig(**{**common, **own})


def _is_finished(config: TrainConfig) -> bool:
    return folder.read_summary(config) is not None


def _run_rounds(
    config: LotteryConfig,
    rounds: Sequence[TrainConfig],
    programs: Programs,
    path: Path,
    show: Display,
    command: Sequence[str] | None,
) -> LotteryResult:
    records: list[dict[str, Any]] = []
    for number, chosen in enumerate(rounds):
        _write(config, path, records)
        folder.check(chosen)
        if not _is_finished(chosen):
            programs = programs.again(chosen)
            show.message(f"round {number} of {len(rounds) - 1}")
            start = None
            if number and not _has_checkpoint(chosen):
                start = _start(config, rounds[number - 1], chosen, programs)
                _warn_of_empty_layers(start, show)
            result = loop.run(
                chosen,
                display=show,
                command=command,
                programs=programs,
                start=start,
                on_epoch=None if number else tickets.observer(config, programs),
            )
            is_last = number == len(rounds) - 1
            if result.status == "interrupted" or (result.signal and not is_last):
                return LotteryResult(path, "interrupted", records, result.signal)
        records.append(_record(chosen))
    _write(config, path, records)
    for line in _table(records):
        show.message(line)
    return LotteryResult(path, "finished", records)


def _has_checkpoint(config: TrainConfig) -> bool:
    """Whether a round resumes by itself, for which nothing need be made ready."""
    path = config.folder / "checkpoints"
    if not path.exists():
        return False
    with contextlib.closing(checkpoint.Checkpoints(path, config.keep)) as found:
        return bool(found.steps())


def _start(
    config: LotteryConfig, before: TrainConfig, now: TrainConfig, programs: Programs
) -> TrainState:
    """Returns the state that a round begins with, from what is on disk."""
    steps_per_epoch = programs.task.steps_per_epoch
    last = folder.read_summary(before)
    assert last is not None
    trained = tickets.read(
        before.folder / "checkpoints",
        last["steps"],
        programs,
        f"Delete {before.folder / 'summary.json'} and run the same command: that round "
        "goes on from an earlier checkpoint, to the same numbers.",
    )
    anew = "Start anew with --overwrite."
    kept = config.folder / "rewind"
    fresh = tickets.read(kept, 0, programs, anew)
    step = config.rewind_epoch * steps_per_epoch
    early = tickets.read(kept, step, programs, anew) if step else fresh
    return tickets.ticket(
        trained,
        early,
        fresh,
        now.sparsity,
        rewind=config.rewinds,
        per_layer=config.per_layer,
    )


def _warn_of_empty_layers(start: TrainState, show: Display) -> None:
    masks = zs.sparsity.masks(start.opt_state)
    pairs = zip(tree.paths(masks), jax.tree.leaves(masks), strict=True)
    empty = [path for path, m in pairs if np.ndim(m) and not np.any(m)]
    if empty:
        show.message(f"no weight is left in {', '.join(empty)}; try --per-layer")


def _record(config: TrainConfig) -> dict[str, Any]:
    """Returns what a finished round reached."""
    summary = folder.read_summary(config)
    assert summary is not None
    sparsified = summary["parameters_sparsified"]
    live = summary["parameters_live"] - (summary["parameters"] - sparsified)
    return {
        "folder": config.folder.name,
        "status": summary["status"],
        "epochs": summary["epochs"],
        "density_nominal": 1 - config.sparsity,
        "density": live / sparsified,
        "weights_live": live,
        "weights_prunable": sparsified,
        "test_accuracy": summary["test_accuracy"],
        "test_loss": summary["test_loss"],
    }


def _write(
    config: LotteryConfig, path: Path, records: Sequence[dict[str, Any]]
) -> None:
    content: dict[str, Any] = {"config": dataclasses.asdict(config), "rounds": records}
    if config.early_bird and records:
        found = records[0]["status"] == "stopped"
        last = records[0]["epochs"]
        content["early_bird"] = {
            "found_after_epoch": last if found else None,
            "distances": [
                count / records[0]["weights_prunable"]
                for count in tickets.changes(path, last)
            ],
        }
    files.write_json(path / RECORD, content)


def _table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the rounds as lines of text."""
    lines = [f"{'round':10}{'density':>9}{'live weights':>15}{'test accuracy':>16}"]
    for r in records:
        lines.append(
            f"{r['folder']:10}{r['density']:9.2%}{r['weights_live']:15,}"
            f"{r['test_accuracy']:16.2%}"
        )
    return lines


def _clear(path: Path) -> None:
    """Deletes the rounds and what belongs to them: its own files and nothing else."""
    for entry in path.glob("round-[0-9]*"):
        folder.clear(entry)
        (entry / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            entry.rmdir()
    for name in ("rewind", "early-bird"):
        shutil.rmtree(path / name, ignore_errors=True)
    # Last: without it, the folder would not be known for one of rounds.
    for name in ("curves.png", RECORD):
        (path / name).unlink(missing_ok=True)
