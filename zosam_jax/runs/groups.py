"""Groups of runs that differ in the seed alone, and the statistics of their figures."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from zosam_jax.runs import files, intervals
from zosam_jax.runs.config import HOUSEKEEPING, TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.runs.record import RunRecord

_IN_NAMES = ("dataset", "model", "method", "sparsity", "gradient")


class Figure(NamedTuple):
    """A figure of a finished run.

    Attributes:
      title: Name in tables.
      read: Returns its value; None if the run has none.
      form: Format of a mean.
      unit: Factor of the value in tables, as 100 for percent.
    """

    title: str
    read: Callable[[RunRecord], float | None]
    form: str
    unit: float = 1.0


def _of_summary(name: str) -> Callable[[RunRecord], float | None]:
    return lambda run: (run.summary or {}).get(name)


def _of_evaluation(*names: str) -> Callable[[RunRecord], float | None]:
    return lambda run: files.at(run.evaluation or {}, names)


FIGURES = {
    "test_accuracy": Figure(
        "test accuracy, %", _of_summary("test_accuracy"), ".2f", 100
    ),
    "selected_test_accuracy": Figure(
        "test accuracy of the selected epoch, %",
        _of_summary("selected_test_accuracy"),
        ".2f",
        100,
    ),
    "corrupted_accuracy": Figure(
        "corrupted accuracy, %", _of_evaluation("mean_corrupted_accuracy"), ".2f", 100
    ),
    "ece": Figure("calibration error, %", _of_evaluation("clean", "ece"), ".2f", 100),
    "brier": Figure("Brier score", _of_evaluation("clean", "brier"), ".4f"),
    "corrupted_ece": Figure(
        "corrupted calibration error, %",
        _of_evaluation("mean_corrupted_ece"),
        ".2f",
        100,
    ),
    "test_loss": Figure("test loss", _of_summary("test_loss"), ".4f"),
    "train_loss": Figure("train loss", _of_summary("train_loss"), ".4f"),
    "clean_labels_accuracy": Figure(
        "train accuracy, clean labels, %",
        _of_summary("train_accuracy_clean_labels"),
        ".2f",
        100,
    ),
    "sparsity": Figure("sparsity, %", _of_summary("sparsity"), ".2f", 100),
    "flops_share": Figure(
        "FLOPs of the dense network, %", _of_summary("flops_share"), ".2f", 100
    ),
    "successive_cosine": Figure(
        "cosine of successive gradients",
        lambda run: run.last("train").get("successive_cosine"),
        ".3f",
    ),
    "images_per_second": Figure("images/s", _of_summary("images_per_second"), ",.0f"),
    "seconds": Figure("time, s", _of_summary("seconds"), ",.1f"),
}
"""The figures of groups, by name. A table leaves out those that no run has."""


def epochs_to(target: float) -> Figure:
    """Returns the figure of the first epoch whose test accuracy reaches a target.

    Args:
      target: The accuracy, at most 1. A run that does not reach it has no value.
    """
    return Figure(f"epochs to {100 * target:g} %", _at_target(target, "epoch"), ".1f")


def seconds_to(target: float) -> Figure:
    """Returns the figure of the seconds until the test accuracy reaches a target.

    The clock is that of `metrics.jsonl` at the end of the epoch: training, evaluation
    and checkpoints of all sessions. Compilation does not count, nor do steps that were
    lost with a process that was killed, and made again.

    Args:
      target: As for `epochs_to`.

    >>> seconds_to(0.95).title
    'seconds to 95 %'
    """
    read = _at_target(target, "seconds")
    return Figure(f"seconds to {100 * target:g} %", read, ",.1f")


def _at_target(target: float, name: str) -> Callable[[RunRecord], float | None]:
    """Returns what reads an entry of the first test line that reaches a target."""

    def read(run: RunRecord) -> float | None:
        tests = (line for line in run.metrics if line["split"] == "test")
        reached = (line for line in tests if line["accuracy"] >= target)
        return next(reached, {}).get(name)

    return read


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
      label: What tells it from the other groups, in short.
      fields: The fields of the configuration in which groups differ, with its values.
      config: The configuration, without seed and housekeeping.
      members: All its runs.
    """

    label: str
    fields: JSON
    config: JSON
    members: tuple[RunRecord, ...]

    @property
    def runs(self) -> dict[int, RunRecord]:
        """The finished runs by seed; of several runs of a seed, the first."""
        found: dict[int, RunRecord] = {}
        for run in self.members:
            if run.summary is not None:
                found.setdefault(run.config["seed"], run)
        return found

    @property
    def scores(self) -> set[str]:
        """What the accuracies of its runs are, as `RunRecord.score`."""
        return {run.score for run in self.members}

    @property
    def seeds(self) -> int:
        """Number of different seeds, of finished and unfinished runs."""
        return len({run.config["seed"] for run in self.members})

    def values(self, figure: Figure) -> dict[int, float]:
        """Returns a figure of the finished runs that have it, by seed."""
        found = {seed: figure.read(run) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def curve(self, split: str, figure: str) -> "Band":
        """Returns mean and deviation of a figure over the training.

        One run of each seed counts, and the epochs that all of them with a curve have
        recorded.

        Args:
          split: "train", "validation" or "test".
          figure: Name of the figure in `metrics.jsonl`, as "loss".
        """
        curves = {
            run.config["seed"]: dict(zip(*run.curve(split, figure), strict=True))
            for run in reversed(self.members)
        }
        by_run = [values for values in curves.values() if values]
        common = set(by_run[0]).intersection(*by_run) if by_run else set()
        epochs = sorted(common)
        rows = [[values[epoch] for values in by_run] for epoch in epochs]
        deviations = [statistics.stdev(row) if len(row) > 1 else 0.0 for row in rows]
        return Band(epochs, [statistics.fmean(row) for row in rows], deviations)


class Band(NamedTuple):
    """A mean over runs with its deviation, at each epoch."""

    epochs: list[float]
    means: list[float]
    deviations: list[float]


def group(runs: Sequence[RunRecord]) -> list[Group]:
    """Returns the groups of runs, in the order of their first runs."""
    missing = {
        name: value
        for name, value in TrainConfig().record().items()
        if name not in HOUSEKEEPING | {"seed"}
    }
    configs: dict[str, JSON] = {}
    members: dict[str, list[RunRecord]] = {}
    for run in runs:
        config = {**missing, **run.config}
        config = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in config.items()
            if name not in HOUSEKEEPING | {"seed"}
        }
        config |= _origin(run)
        key = json.dumps(config, sort_keys=True)
        configs[key] = config
        members.setdefault(key, []).append(run)
    differing = _differing(list(configs.values()))
    groups = []
    for key, config in configs.items():
        fields = {name: config.get(name) for name in differing}
        groups.append(
            Group(_label(fields, config), fields, config, tuple(members[key]))
        )
    return groups


def _origin(run: RunRecord) -> JSON:
    """Returns what else than its configuration tells a run from others."""
    number = run.origin.get("lottery", {}).get("round")
    objects = {
        f"own {kind}": text for kind, text in run.origin.get("objects", {}).items()
    }
    return objects if number is None else {"round": number, **objects}


def _differing(configs: Sequence[JSON]) -> list[str]:
    names = {name: None for config in configs for name in config}
    first = configs[0] if configs else {}
    return [
        name
        for name in names
        if any(config.get(name) != first.get(name) for config in configs)
    ]


def _label(fields: JSON, config: JSON) -> str:
    """Returns a name made of the fields that differ."""
    if not fields:
        return ", ".join(str(config[name]) for name in _IN_NAMES)
    return ", ".join(f"{name}={shown(value)}" for name, value in fields.items())


def shown(value: object) -> str:
    """Returns the value of a field as text.

    >>> shown(["crop=4", "flip"]), shown(None), shown(0.9)
    ('crop=4 flip', 'default', '0.9')
    """
    if value is None:
        return "default"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


class Row(NamedTuple):
    """The statistics of a figure of a group.

    Attributes:
      n: Number of runs with the figure.
      mean: Their mean.
      deviation: Their standard deviation; None of a single run.
      half_width: Of the 95 % interval of the mean; None of a single run.
      pairs: Number of seeds that the baseline has too.
      difference: Mean of the differences to the baseline, seed by seed; None without
        two pairs, and of the baseline itself.
      difference_half_width: Of the 95 % interval of that mean.
      p_value: Of the paired t-test; None if all differences are the same.
    """

    n: int
    mean: float
    deviation: float | None
    half_width: float | None
    pairs: int = 0
    difference: float | None = None
    difference_half_width: float | None = None
    p_value: float | None = None


def row(values: Mapping[int, float], base: Mapping[int, float] | None) -> Row | None:
    """Returns the statistics of a figure; None without a value.

    Args:
      values: The figure by seed.
      base: That of the baseline; None without a baseline.
    """
    found = list(values.values())
    if not found:
        return None
    if len(found) == 1:
        return Row(1, found[0], None, None)
    mean, half = intervals.interval(found)
    seeds = sorted(values.keys() & (base or {}).keys())
    plain = Row(len(found), mean, statistics.stdev(found), half)
    if base is None or len(seeds) < 2:
        return plain
    pairs = [values[seed] for seed in seeds], [base[seed] for seed in seeds]
    difference, width = intervals.paired(*pairs)
    return plain._replace(
        pairs=len(seeds),
        difference=difference,
        difference_half_width=width,
        p_value=intervals.p_value(*pairs),
    )


def baselines(groups: Sequence[Group], named: Sequence[str]) -> list[Group | None]:
    """Returns the baseline of each group; None where it is the baseline itself.

    Of several groups that have the named fields, it is the one that agrees with the
    group in the most other fields: in a grid of sparsities, the one of its sparsity.

    Args:
      groups: The groups.
      named: Fields of the baseline as FIELD=VALUE, as "gradient=backprop". None: no
        group has a baseline.

    Raises:
      RunError: No group has the fields, or several agree with a group equally.
    """
    if not named:
        return [None] * len(groups)
    wanted = dict(_pair(text, groups) for text in named)
    chosen = [
        each
        for each in groups
        if all(shown(each.config.get(k)) == v for k, v in wanted.items())
    ]
    if not chosen:
        labels = "; ".join(each.label for each in groups)
        raise RunError(f"baseline={' '.join(named)!r} is none of the groups: {labels}.")
    return [None if each in chosen else _nearest(each, chosen) for each in groups]


def _pair(text: str, groups: Sequence[Group]) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    known = groups[0].config if groups else {}
    if not equals or name not in known:
        raise RunError(
            f"baseline={text!r} must be FIELD=VALUE with a field of the configuration, "
            "as gradient=backprop."
        )
    return name, value


def _nearest(own: Group, chosen: Sequence[Group]) -> Group:
    def agreement(other: Group) -> int:
        return sum(own.fields[name] == value for name, value in other.fields.items())

    best = max(map(agreement, chosen))
    nearest = [each for each in chosen if agreement(each) == best]
    if len(nearest) > 1:
        labels = " and ".join(each.label for each in nearest[:2])
        raise RunError(
            f"several groups could be the baseline of {own.label}: {labels}. Name more "
            "fields with --baseline."
        )
    return nearest[0]
