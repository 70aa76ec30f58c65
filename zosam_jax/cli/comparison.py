"""The table of runs, and the fields in which they differ."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from zosam_jax.cli.terminal import printable
from zosam_jax.runs.config import HOUSEKEEPING, PERTURB_FIELDS
from zosam_jax.runs.dataset_facts import score_title
from zosam_jax.runs.progress import duration
from zosam_jax.runs.record import RunRecord


class Column(NamedTuple):
    """A column of the table of runs.

    Attributes:
      header: The header.
      cell: Returns the text of a run's cell; "-" for an unknown figure.
      is_text: Whether the cells are text, aligned left; numbers are aligned right.
      least_width: The narrowest terminal to show the column on, in characters.
    """

    header: str
    cell: Callable[[RunRecord], str]
    is_text: bool = False
    least_width: int = 0

    def text(self, run: RunRecord) -> str:
        """Returns the text of a run's cell, without control characters."""
        return printable(self.cell(run))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _last(split: str, figure: str, form: str) -> Callable[[RunRecord], str]:
    """Returns the function that shows the last value of a figure of a split."""
    return lambda run: _number(run.last(split).get(figure), form)


_score = _last("test", "accuracy", ".2%")


def _named_score(run: RunRecord) -> str:
    return f"{_score(run)} {run.score}"


def _summary(run: RunRecord, figure: str, default: Any = None) -> Any:
    """Returns a figure of a finished run's summary."""
    return (run.summary or {}).get(figure, default)


# Below this width, what a run trained stands under its name.
_WIDE = 150


def _field(name: str) -> Callable[[RunRecord], str]:
    """Returns the function that shows a field of a run's configuration."""
    return lambda run: str(run.config.get(name, "-"))


def _what(run: RunRecord) -> str:
    """Returns what a run trained, in short."""
    parts = [_field(name)(run) for name in ("dataset", "method", "gradient")]
    return f"{', '.join(parts)}, seed {_field('seed')(run)}"


def _epoch(run: RunRecord) -> str:
    return f"{run.last('test').get('epoch', 0)}/{run.config.get('epochs', '?')}"


def _sparsity(run: RunRecord) -> str:
    return _number(_summary(run, "sparsity", run.last("test").get("sparsity")), ".2%")


def _live(run: RunRecord) -> str:
    return _number(_summary(run, "parameters_live"), ",d")


def _removable(run: RunRecord) -> str:
    return _number(_summary(run, "parameters_removable") or None, ",d")


def _speed(run: RunRecord) -> str:
    speed = run.last("train").get("images_per_second")
    return _number(_summary(run, "images_per_second", speed), ",.0f")


def _time(run: RunRecord) -> str:
    seconds = run.last("test").get("seconds")
    return "-" if seconds is None else duration(seconds)


COLUMNS = (
    Column("run", lambda run: run.name, is_text=True),
    Column("data set", _field("dataset"), is_text=True, least_width=_WIDE),
    Column("method", _field("method"), is_text=True, least_width=_WIDE),
    Column("gradient", _field("gradient"), is_text=True, least_width=_WIDE),
    Column("seed", _field("seed"), least_width=_WIDE),
    Column("status", lambda run: _summary(run, "status", "unfinished"), is_text=True),
    Column("epoch", _epoch),
    Column("test accuracy", _score),
    Column("test loss", _last("test", "loss", ".4f"), least_width=_WIDE),
    Column("train loss", _last("train", "loss", ".4f"), least_width=_WIDE),
    Column("sparsity", _sparsity),
    Column("live parameters", _live, least_width=80),
    Column("images/s", _speed, least_width=_WIDE),
    Column("time", _time, least_width=90),
)


def _probes(run: RunRecord) -> str:
    """Returns what the ascent step sees, in short; "-" for the batch as it is."""
    fraction, dtype = run.config.get("probe_fraction"), run.config.get("probe_dtype")
    parts = [f"{fraction:.3g} of the batch"] if fraction not in (None, 1) else []
    return (
        ", ".join([*parts, *([str(dtype)] if dtype not in (None, "same") else [])])
        or "-"
    )


def _perturbed(run: RunRecord) -> str:
    """Returns which steps are perturbed, in short; "-" for all."""
    start, interval, probability = (run.config.get(name) for name in PERTURB_FIELDS)
    parts = [f"from {start:.0%} on"] if start else []
    parts += [f"every {interval}"] if interval not in (None, 1) else []
    parts += [f"with p = {probability:.3g}"] if probability not in (None, 1) else []
    return ", ".join(parts) or "-"


def _noise(run: RunRecord) -> str:
    return _number(run.config.get("label_noise") or None, ".0%")


def _from(run: RunRecord) -> str:
    """Returns the name of the weights that a run started from."""
    path = run.config.get("from_")
    return Path(path).name if path else "-"


def _of_labels(kind: str) -> Callable[[RunRecord], str]:
    """Returns the function that shows the training accuracy on one kind of labels."""
    figure = f"train_accuracy_{kind}_labels"
    return lambda run: _number(_summary(run, figure), ".2%")


# They stand behind the others if a run has a value.
RARE_COLUMNS = (
    Column("starts from", _from, is_text=True, least_width=90),
    Column("label noise", _noise),
    Column("train accuracy, given labels", _of_labels("given"), least_width=_WIDE),
    Column("train accuracy, clean labels", _of_labels("clean"), least_width=100),
    Column("probes", _probes, is_text=True, least_width=80),
    Column("perturbed", _perturbed, is_text=True, least_width=80),
    Column("could be cut", _removable, least_width=_WIDE),
    Column(
        "cosine of successive gradients",
        _last("train", "successive_cosine", ".3f"),
        least_width=_WIDE,
    ),
)


def columns(runs: Sequence[RunRecord]) -> list[Column]:
    """Returns the columns of the table of these runs.

    The column of the test accuracy is named by what it is; of runs of several tasks,
    each cell is.
    """
    scores = {run.score for run in runs}
    score = Column(
        score_title("test accuracy", scores),
        _score if len(scores) < 2 else _named_score,
    )
    usual = [score if c.header == "test accuracy" else c for c in COLUMNS]
    rare = [c for c in RARE_COLUMNS if any(c.cell(run) != "-" for run in runs)]
    return [*usual, *rare]


def terminal_table(runs: Sequence[RunRecord], width: int) -> Table:
    """Returns the table of runs for a terminal.

    Args:
      runs: The runs. Their names are shown whole, over several lines where needed.
      width: Width of the terminal in characters. A narrow one shows fewer columns; the
        HTML page has all of them.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown = [column for column in columns(runs) if width >= column.least_width]
    for column in shown:
        folds = column.header in ("run", "data set")
        table.add_column(
            column.header if width >= _WIDE else column.header.replace(" ", "\n"),
            justify="left" if column.is_text else "right",
            no_wrap=not folds,
            min_width=16 if folds else None,
            overflow="fold",
        )
    for run in runs:
        # As `Text`, names are no markup.
        cells = [Text(column.text(run)) for column in shown]
        if width < _WIDE:
            cells[0].append(f"\n{printable(_what(run))}", style="dim")
        table.add_row(*cells)
    return table


def config_differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Returns the configuration fields that differ between runs, with their values.

    Fields that do not change the numbers, such as `out`, are left out.
    """
    names = {name: None for run in runs for name in run.config}
    values = {name: [run.config.get(name) for run in runs] for name in names}
    return {
        name: row
        for name, row in values.items()
        if name not in HOUSEKEEPING and any(value != row[0] for value in row)
    }
