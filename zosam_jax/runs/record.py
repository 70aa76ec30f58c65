"""The record of a stored run, finished or not, as its folder holds it."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from zosam_jax.runs import dataset_facts, files, metrics, paths, schema, summary, sweep
from zosam_jax.runs.errors import RunError, explained
from zosam_jax.runs.files import JSON
from zosam_jax.runs.folder import LOTTERY_RECORD, SWEEP_RECORD, read_config


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder.

    Attributes:
      name: Name of the folder. `read_all` makes the names of several runs unique.
      config: The configuration.
      metrics: The lines of `metrics.jsonl`; [] before the end of the first epoch.
      summary: The contents of `summary.json`; None if the run is unfinished.
      origin: What else the run is made of, by kind: the objects that a user gave, and
        the round of a lottery.
      evaluation: The contents of `evaluation.json`; None if it is not there, or of
        other weights than those at the end of the run.
      score: What its accuracies are: "accuracy", "label accuracy", "R²" or "mean IoU".
      together: Number of runs in the program that trained it; its times are theirs.
    """

    name: str
    config: JSON
    metrics: list[JSON]
    summary: JSON | None
    origin: JSON = dataclasses.field(default_factory=dict)
    evaluation: JSON | None = None
    score: str = "accuracy"
    together: int = 1

    def curve(self, split: str, figure: str) -> tuple[list[float], list[float]]:
        """Returns the epochs and the values of one figure over the training.

        Args:
          split: "train", "validation" or "test".
          figure: Name of the figure in `metrics.jsonl`, as "loss".

        >>> line = {"step": 4, "epoch": 1, "split": "test", "loss": 0.5}
        >>> RunRecord("mine", {}, [line], None).curve("test", "loss")
        ([1], [0.5])
        """
        chosen = [r for r in self.metrics if r["split"] == split and figure in r]
        return [r["epoch"] for r in chosen], [r[figure] for r in chosen]

    def last(self, split: str) -> JSON:
        """Returns the last line of `metrics.jsonl` for a split, or {}."""
        lines = (line for line in reversed(self.metrics) if line["split"] == split)
        return next(lines, {})


def read(folder: Path) -> RunRecord:
    """Returns the record of one run.

    Raises:
      RunError: The folder holds no run or several runs, or a file is damaged.
    """
    folder = find(folder)
    content = read_config(folder)
    found = summary.read(folder)
    sessions = content.get("sessions") or []
    run = RunRecord(
        name=folder.name,
        config=content["config"],
        summary=found,
        metrics=metrics.read(folder / "metrics.jsonl"),
        origin={name: content[name] for name in _ORIGIN if content.get(name)},
        evaluation=_evaluation(folder, found),
        score=dataset_facts.score_of(content.get("dataset")),
        together=max((each.get("together", 1) for each in sessions), default=1),
    )
    _check_agreement(folder, run, bool(sessions) and sessions[0]["step"] == 0)
    return run


_ORIGIN = ("objects", "lottery")
_EVALUATION = {
    "step": schema.WHOLE,
    "clean": schema.OBJECT,
    "mean_corrupted_accuracy": schema.AT_MOST_ONE,
}
_CLEAN = {"accuracy": schema.AT_MOST_ONE, "loss": schema.NUMBER}
# Where the task has them.
_CALIBRATION = {
    "ece": schema.SHARE,
    "brier": schema.SHARE,
    "pixel_accuracy": schema.SHARE,
}
_CORRUPTED = {f"mean_corrupted_{name}": kind for name, kind in _CALIBRATION.items()}


def _evaluation(folder: Path, summary: JSON | None) -> JSON | None:
    """Returns the contents of `evaluation.json` if it is of the end of the run."""
    path, advice = folder / "evaluation.json", "`zosam evaluate` writes it again."
    found = files.read_object(path, _EVALUATION, _CORRUPTED, advice=advice)
    if found is None or summary is None or found["step"] != summary["steps"]:
        return None
    wrong = schema.fault(found["clean"], _CLEAN, _CALIBRATION)
    if wrong is not None:
        raise RunError(f"{path} is damaged: in 'clean', {wrong}. {advice}")
    return found


def _check_agreement(folder: Path, run: RunRecord, is_whole: bool) -> None:
    """Raises `RunError` if lines are missing, or the summary contradicts the last.

    Args:
      folder: The run's folder.
      run: Its record.
      is_whole: Whether the run began at step 0; rounds of a lottery may not.
    """
    summary, last = run.summary, run.last("test")
    path = folder / "metrics.jsonl"
    found = metrics.gap(run.metrics)
    if is_whole and run.metrics and run.metrics[0]["epoch"] != 1:
        found = f"line 1 is of epoch {run.metrics[0]['epoch']}"
    if found is not None:
        raise RunError(
            f"{path} is damaged: {found}. Delete that line with all after it, and "
            "summary.json: the training command writes them again."
        )
    if summary is None:
        return
    if last.get("step") != summary["steps"]:
        raise RunError(
            f"{path} ends at {last.get('step', 'no step')}, and the run at step "
            f"{summary['steps']}: lines are lost. The weights are good, and so are the "
            "lines that are left. Delete summary.json to see them, or to let the "
            "training command write the others again."
        )
    pairs = {"test_loss": "loss", "test_accuracy": "accuracy", "sparsity": "sparsity"}
    for name, figure in pairs.items():
        if summary[name] != last[figure]:
            raise RunError(
                f"{folder / 'summary.json'} has {name} {summary[name]}, and the last "
                f"line of {path.name} {last[figure]}: one of them is damaged. Delete "
                "summary.json; the same command writes it again."
            )


def find(folder: str | os.PathLike[str]) -> Path:
    """Returns the absolute folder of one run.

    Raises:
      RunError: The path cannot be used, or the folder holds several runs.
    """
    folder = paths.absolute(folder, "RUN")
    with explained(folder, "read"):
        if (folder / "config.json").exists() or not folder.is_dir():
            return folder
        several = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if several:
        raise RunError(
            f"{folder} holds several runs ({', '.join(several[:3])}"
            f"{', ...' if len(several) > 3 else ''}). Name one of them, or all: "
            f"{folder.name}/*"
        )
    return folder


def read_all(folders: Sequence[Path]) -> list[RunRecord]:
    """Returns the records of several runs, under different names.

    A folder of `zosam lottery` stands for its rounds, and one of `zosam sweep` for the
    runs that have begun.

    Raises:
      RunError: `folders` is empty, a folder holds no run, or a file is damaged.
    """
    if not folders:
        raise RunError("report needs at least one run folder.")
    folders = [path for folder in folders for path in _parts(Path(folder))]
    runs = [read(folder) for folder in folders]
    if len({folder.absolute().parent for folder in folders}) > 1:
        runs = [
            dataclasses.replace(run, name=f"{path.absolute().parent.name}/{run.name}")
            if _is_lottery(path.parent)
            else run
            for run, path in zip(runs, folders, strict=True)
        ]
    names = [run.name for run in runs]
    return [
        run
        if names.count(run.name) == 1
        else dataclasses.replace(run, name=str(folder))
        for run, folder in zip(runs, folders, strict=True)
    ]


def _is_lottery(folder: Path) -> bool:
    return (folder / LOTTERY_RECORD).exists()


def _parts(folder: Path) -> list[Path]:
    """Returns the runs of a lottery or a sweep; another folder stands for itself."""
    paths.absolute(folder, "RUN")
    with explained(folder, "read"):
        if (folder / SWEEP_RECORD).exists():
            return _of_sweep(folder)
        if not _is_lottery(folder):
            return [folder]
        rounds = sorted(folder.glob("round-[0-9]*"))
    if not rounds:
        raise RunError(f"{folder} holds no round of a lottery yet.")
    return rounds


def _of_sweep(folder: Path) -> list[Path]:
    runs = [folder / name for name in sweep.read(folder)]
    begun = [path for path in runs if (path / "config.json").exists()]
    if not begun:
        raise RunError(f"{folder} holds no run of the sweep yet.")
    return begun


def are_over(folders: Sequence[Path]) -> bool:
    """Whether no run is still to train: all are finished, or failed in their sweep.

    Args:
      folders: As for `read_all`.
    """
    for folder in map(Path, folders):
        if (folder / SWEEP_RECORD).exists():
            if not sweep.is_over(folder):
                return False
        elif any(summary.read(path) is None for path in _parts(folder)):
            return False
    return True
