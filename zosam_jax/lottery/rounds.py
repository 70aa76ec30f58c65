"""Lottery tickets: rounds of training, pruning and rewinding, each one a run.

    OUT/lottery.json     the configuration, and the figures of every round
    OUT/round-00         trained with all weights; an ordinary run, as all rounds are
    OUT/round-01 ...     with the mask of the largest weights of the previous round
    OUT/rewind           states of round 0 that the others rewind to
    OUT/early-bird       masks and their distances by epoch, with early_bird

An interrupted round resumes from its own checkpoint, which holds its mask. A round
without a checkpoint starts again from the last checkpoint of the previous round and a
state in `rewind`. The numbers do not depend on where the rounds were interrupted.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax import sparsity, tree
from zosam_jax.lottery import tickets
from zosam_jax.lottery.config import LotteryConfig
from zosam_jax.runs import files, folder
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError, explained
from zosam_jax.runs.files import JSON
from zosam_jax.runs.progress import Display, Shielded, Silent
from zosam_jax.train import checkpoint, choices, loop, processes, trial
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.experiment import Loss, Model
from zosam_jax.train.interruption import EARLY, Stop
from zosam_jax.train.objects import GivenData, GivenGradient, GivenOptimizer, Objects
from zosam_jax.train.step import TrainState

RECORD = folder.LOTTERY_RECORD


class LotteryResult(NamedTuple):
    """How a call of `run_lottery` ended.

    Attributes:
      folder: The folder of all rounds.
      status: "finished", "unchanged" (it was finished before), "interrupted" (by a
        signal), or "out of time" (the time limit).
      rounds: One record for each finished round, as in `lottery.json`.
      signal: The signal that interrupted it, or None.
    """

    folder: Path
    status: str
    rounds: list[JSON]
    signal: int | None = None

    @property
    def ended_early(self) -> bool:
        """Whether a signal or the time limit ended it before the last round."""
        return self.status in EARLY


class _Search(NamedTuple):
    """A search under way.

    Attributes:
      config: Its configuration.
      rounds: The configuration of each round.
      given: The objects that all rounds use; the method is that of tickets.
      compiled: The programs of all rounds.
      display: Where to show progress.
      command: The command line, or None.
      stop: What ends the search early.
    """

    config: LotteryConfig
    rounds: Sequence[TrainConfig]
    given: Objects
    compiled: CompiledRun
    display: Display
    command: Sequence[str] | None
    stop: Stop


def run_lottery(
    config: LotteryConfig,
    *,
    dataset: GivenData | None = None,
    model: Model | None = None,
    gradient: GivenGradient | None = None,
    optimizer: GivenOptimizer | None = None,
    loss: Loss | None = None,
    display: Display | None = None,
    command: Sequence[str] | None = None,
) -> LotteryResult:
    """Trains round after round, each with a sparser mask, and leaves a run folder each.

    The same call continues an interrupted search, between rounds or within one, to the
    same numbers.

    Args:
      config: The configuration.
      dataset: As for `run`.
      model: As for `run`.
      gradient: As for `run`.
      optimizer: As for `run`.
      loss: As for `run`.
      display: Where to show progress. Default: nowhere.
      command: The command line, for the record.

    Raises:
      RunError: It cannot start or continue; the message says what would work.
      Divergence: A `RunError`: the loss is not finite.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    processes.check_alone("a search for lottery tickets")
    show = Shielded(display or Silent())
    stop = Stop(config.train.time_limit)
    folder.check(config, RECORD)
    rounds = _rounds(config)
    if not config.overwrite:
        done = [_record(c) for c in rounds if folder.read_summary(c) is not None]
        if len(done) == len(rounds):
            _complete(config, done)
            show.message(
                f"{config.folder} is finished already; --overwrite would start anew."
            )
            return LotteryResult(config.folder, "unchanged", done)
    method = choices.ticket_method(rounds[0])
    given = Objects(dataset, model, method, gradient, optimizer, loss).made()
    compiled = _prepare(config, rounds, given)
    search = _Search(config, rounds, given, compiled, show, command, stop)
    with folder.claim(config, RECORD, _clear) as path, explained(path):
        # Another process may have searched here while this one prepared.
        folder.check(config, RECORD)
        return _run_rounds(search, path)


def try_lottery(config: LotteryConfig, display: Display | None = None) -> None:
    """Makes every check of `run_lottery`, trains one step and writes nothing.

    Args:
      config: The configuration.
      display: Where to show the figures of the step. Default: nowhere.

    Raises:
      RunError: As for `run_lottery`.
      zosam_jax.data.DatasetError: As for `run_lottery`.
    """
    processes.check_alone("a search for lottery tickets")
    folder.check(config, RECORD)
    rounds = _rounds(config)
    given = Objects(method=choices.ticket_method(rounds[0]))
    compiled = _prepare(config, rounds, given)
    trial.one_step(rounds[0], compiled, display or Silent())


def _rounds(config: LotteryConfig) -> list[TrainConfig]:
    """Returns the configurations of the rounds."""
    sparsities = sparsity.ticket_sparsities(config.train.sparsity, config.total_rounds)
    return [_round(config, *pair) for pair in enumerate(sparsities)]


def _prepare(
    config: LotteryConfig, rounds: Sequence[TrainConfig], given: Objects
) -> CompiledRun:
    """Returns the programs of all rounds, after checks of fields, weights and disk."""
    loop.check_effects(rounds[0], given)
    compiled = loop.prepare(rounds[0], given)
    try:
        compiled.check_live(config.train.sparsity)
    except ValueError as error:
        raise RunError(str(error)) from error
    size = checkpoint.size_in_bytes(compiled.abstract)
    unfinished = [c for c in rounds if config.overwrite or not _is_finished(c)]
    folder.check_space(config, (len(unfinished) * config.keep + 4) * size)
    return compiled


def _round(config: LotteryConfig, number: int, sparsity: float) -> TrainConfig:
    """Returns the configuration of a round."""
    return dataclasses.replace(
        config.train,
        method="ticket",
        sparsity=sparsity,
        out=str(config.folder / f"round-{number:02}"),
        overwrite=False,
    )


def _origin(config: LotteryConfig, number: int) -> JSON:
    """Returns where the mask of a round comes from, for its `config.json`."""
    origin = {
        "round": number,
        "rounds": config.total_rounds,
        "final_sparsity": config.train.sparsity,
        "per_layer": config.per_layer,
        "rewind": config.rewinds,
        "rewind_epoch": config.rewind_epoch,
    }
    if config.early_bird:
        origin["early_bird_window"] = config.early_bird_window
        origin["early_bird_tolerance"] = config.early_bird_tolerance
    return origin


def _is_finished(config: TrainConfig) -> bool:
    return folder.read_summary(config) is not None


def _complete(config: LotteryConfig, records: Sequence[JSON]) -> None:
    """Writes the record of finished rounds anew if a killed process did not."""
    if folder.read_config(config.folder, RECORD).get("rounds") != records:
        with folder.claim(config) as path, explained(path):
            _write(config, path, records)


def _run_rounds(search: _Search, path: Path) -> LotteryResult:
    """Runs the rounds that are not finished, and returns how they ended."""
    config, rounds, show = search.config, search.rounds, search.display
    records: list[JSON] = []
    for number, chosen in enumerate(rounds):
        _write(config, path, records)
        folder.check(chosen)
        if not _is_finished(chosen):
            show.message(f"round {number} of {len(rounds) - 1}")
            result = _run_round(search, number)
            search = search._replace(compiled=search.compiled.again())
            is_last = number == len(rounds) - 1
            if result.summary is None:
                return LotteryResult(path, result.status, records, result.signal)
            if result.signal and not is_last:
                return LotteryResult(path, "interrupted", records, result.signal)
        records.append(_record(chosen))
    _write(config, path, records)
    for line in _table(path, records):
        show.message(line)
    return LotteryResult(path, "finished", records)


def _run_round(search: _Search, number: int) -> loop.Result:
    """Trains one round from its ticket."""
    config, chosen = search.config, search.rounds[number]
    start = observer = None
    if number == 0:
        observer = tickets.observer(config, search.compiled.experiment)
    elif not checkpoint.steps_in(chosen.folder / "checkpoints"):
        start = _start(search, number)
        _warn_of_empty_layers(start, search.display)
    return loop.run(
        chosen,
        **search.given._asdict(),
        display=search.display,
        command=search.command,
        compiled=search.compiled,
        start=start,
        on_epoch=observer,
        record={"lottery": _origin(config, number)},
        stop=search.stop,
    )


def _start(search: _Search, number: int) -> TrainState:
    """Returns the state that a round begins with, from the files of earlier rounds."""
    config, compiled = search.config, search.compiled
    before = search.rounds[number - 1]
    last = folder.read_summary(before)
    assert last is not None
    trained = tickets.read(
        before.folder / "checkpoints",
        last["steps"],
        compiled,
        f"Delete {before.folder / 'summary.json'} and run the same command: that round "
        "goes on from an earlier checkpoint, to the same numbers.",
    )
    anew = "Start anew with --overwrite."
    kept = config.folder / "rewind"
    fresh = tickets.read(kept, 0, compiled, anew)
    step = config.rewind_epoch * compiled.experiment.steps_per_epoch
    early = tickets.read(kept, step, compiled, anew) if step else fresh
    return tickets.ticket(
        trained,
        early,
        fresh,
        search.rounds[number].sparsity,
        rewind=config.rewinds,
        per_layer=config.per_layer,
    )


def _warn_of_empty_layers(start: TrainState, show: Display) -> None:
    masks = sparsity.masks(start.opt_state)
    pairs = zip(tree.paths(masks), jax.tree.leaves(masks), strict=True)
    empty = [path for path, m in pairs if np.ndim(m) and not np.any(m)]
    if empty:
        show.message(f"no weight is left in {', '.join(empty)}; try --per-layer")


def _record(config: TrainConfig) -> JSON:
    """Returns the figures of a finished round."""
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


def _write(config: LotteryConfig, path: Path, records: Sequence[JSON]) -> None:
    """Writes `lottery.json`."""
    content: JSON = {"config": config.record(), "rounds": records}
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


def _table(path: Path, records: Sequence[JSON]) -> list[str]:
    """Returns the rounds in a folder as lines of text."""
    score = f"test {folder.read_score(path / records[0]['folder'])}"
    lines = [f"{'round':10}{'density':>9}{'live weights':>15}{score:>16}"]
    for r in records:
        lines.append(
            f"{r['folder']:10}{r['density']:9.2%}{r['weights_live']:15,}"
            f"{r['test_accuracy']:16.2%}"
        )
    return lines


def _clear(path: Path) -> None:
    """Deletes the rounds and their files but for `lottery.json`; other files stay."""
    for entry in path.glob("round-[0-9]*"):
        folder.clear(entry)
        (entry / "config.json").unlink(missing_ok=True)
        (entry / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            entry.rmdir()
    for name in ("rewind", "early-bird"):
        shutil.rmtree(path / name, ignore_errors=True)
    (path / "curves.png").unlink(missing_ok=True)
