"""Runs compared: a table, curves, and one HTML page that holds both."""

import base64
import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.table import Table

from zosam_jax.runs import metrics
from zosam_jax.runs.config import HOUSEKEEPING
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.folder import read_config
from zosam_jax.runs.progress import duration


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
      name: The folder's name, made unique by `read_all`.
      config: The configuration.
      records: The lines of `metrics.jsonl`; [] before the first epoch's end.
      summary: The contents of `summary.json`; None where the run is unfinished.
    """

    name: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None

    def curve(self, split: str, figure: str) -> tuple[list[float], list[float]]:
        """Returns epochs and values of one figure ("loss", ...) of one split."""
        chosen = [r for r in self.records if r["split"] == split and figure in r]
        return [r["epoch"] for r in chosen], [r[figure] for r in chosen]


def read(folder: Path) -> Run:
    """Returns the run of a folder; it need not be finished.

    Raises:
      RunError: The folder holds no run, or a file in it is damaged.
    """
    folder = Path(folder).expanduser().resolve()
    if not (folder / "config.json").exists() and any(folder.glob("*/config.json")):
        raise RunError(f"{folder} holds several runs. Name them: {folder.name}/*")
    config = read_config(folder)["config"]
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}.") from error
    return Run(folder.name, config, metrics.read(folder / "metrics.jsonl"), summary)


_LOTTERY = "lottery.json"


def _rounds(folder: Path) -> list[Path]:
    """Returns the rounds that a folder stands for; another stands for itself."""
    is_search = (folder / _LOTTERY).exists()
    return sorted(folder.glob("round-[0-9]*")) if is_search else [folder]


def read_all(folders: Sequence[Path]) -> list[Run]:
    """Returns the runs of several folders, with names that tell them apart.

    A folder of `zosam lottery` stands for its rounds.

    Raises:
      RunError: A folder holds no run, or none is given.
    """
    if not folders:
        raise RunError("report needs at least one run folder.")
    folders = [path for folder in folders for path in _rounds(Path(folder))]
    runs = [read(folder) for folder in folders]
    if len({folder.absolute().parent for folder in folders}) > 1:
        runs = [
            dataclasses.replace(run, name=f"{path.absolute().parent.name}/{run.name}")
            if (path.parent / _LOTTERY).exists()
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


HEADER = (
    "run",
    "status",
    "epoch",
    "test accuracy",
    "test loss",
    "train loss",
    "sparsity",
    "live parameters",
    "images/s",
    "time",
)


def rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Returns a row of text for each run, as `HEADER` names them; "-": not known."""
    return [_row(run) for run in runs]


def _row(run: Run) -> tuple[str, ...]:
    summary = run.summary or {}
    train = next((r for r in reversed(run.records) if r["split"] == "train"), {})
    test = next((r for r in reversed(run.records) if r["split"] == "test"), {})

    def show(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    seconds = test.get("seconds")
    return (
        run.name,
        summary.get("status", "unfinished"),
        f"{test.get('epoch', 0)}/{run.config.get('epochs', '?')}",
        show(test.get("accuracy"), ".2%"),
        show(test.get("loss"), ".4f"),
        show(train.get("loss"), ".4f"),
        show(summary.get("sparsity", test.get("sparsity")), ".2%"),
        show(summary.get("parameters_live"), ",d"),
        show(summary.get("images_per_second", train.get("images_per_second")), ",.0f"),
        "-" if seconds is None else duration(seconds),
    )


def terminal_table(runs: Sequence[Run], width: int) -> Table:
    """Returns the rows as a table for a terminal.

    Args:
      runs: The runs.
      width: Columns of the terminal; below 120, the columns that matter least are left
        out (they are in the HTML page).
    """
    left_out = () if width >= 120 else ("test loss", "train loss", "images/s", "time")
    table = Table(box=box.SIMPLE_HEAD)
    for name in HEADER:
        if name not in left_out:
            is_text = name in ("run", "status")
            table.add_column(
                name,
                justify="left" if is_text else "right",
                no_wrap=name != "run",
                overflow="fold",
            )
    for row in rows(runs):
        cells = zip(HEADER, row, strict=True)
        table.add_row(*[cell for name, cell in cells if name not in left_out])
    return table


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the fields of the configurations that are not the same in all runs."""
    names = {name: None for run in runs for name in run.config}
    values = {name: [run.config.get(name) for run in runs] for name in names}
    return {
        name: row
        for name, row in values.items()
        if name not in HOUSEKEEPING and any(value != row[0] for value in row)
    }


_PANELS = (
    ("test accuracy", "test", "accuracy"),
    ("test loss", "test", "loss"),
    ("training accuracy", "train", "accuracy"),
    ("training loss", "train", "loss"),
)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Writes the curves of accuracy and loss over epochs as a picture.

    Args:
      runs: Runs; one without records is named in the legend and has no curve.
      path: A file whose suffix Matplotlib knows; its folder exists.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for axis, (title, split, name) in zip(axes.flat, _PANELS, strict=True):
        for run in runs:
            epochs, values = run.curve(split, name)
            marker = "o" if len(epochs) < 3 else None
            axis.plot(epochs, values, label=run.name, marker=marker, linewidth=1.4)
        if name == "accuracy":
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        elif _spans_decades(
            [value for line in axis.lines for value in line.get_ydata()]
        ):
            axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix("."))
    temporary.replace(path)


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows more: below a decade it has too few ticks."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Writes `curves.png` and `report.html`, and returns their paths.

    Args:
      runs: The runs.
      folder: Where to write; made if need be.
    """
    folder = Path(folder).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    picture, page = folder / "curves.png", folder / "report.html"
    plot(runs, picture)
    page.write_text(_page(runs, picture.read_bytes()), encoding="utf-8")
    return [picture, page]


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
       padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #d0d7de; padding: .3rem .7rem; text-align: left; }
th { background: #f6f8fa; }
img { max-width: 100%; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; }
"""


def _page(runs: Sequence[Run], picture: bytes) -> str:
    data = base64.b64encode(picture).decode()
    changed = config_differences(runs)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{len(runs)} runs</title><style>{_STYLE}</style></head><body>",
        "<h1>Runs compared</h1>",
        _table(HEADER, rows(runs)),
        f"<img alt='curves of accuracy and loss' src='data:image/png;base64,{data}'>",
    ]
    if changed:
        names = [run.name for run in runs]
        body = [(field, *map(str, values)) for field, values in changed.items()]
        parts += ["<h2>Where they differ</h2>", _table(("field", *names), body)]
    for run in runs:
        config = html.escape(json.dumps(run.config, indent=2))
        parts.append(
            f"<details><summary>configuration of {html.escape(run.name)}</summary>"
            f"<pre>{config}</pre></details>"
        )
    return "\n".join([*parts, "</body></html>\n"])


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    lines = [row(header, "th"), *(row(cells, "td") for cells in body)]
    return f"<table>{''.join(lines)}</table>"
