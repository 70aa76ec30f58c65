"""The table of groups of runs: for a terminal, and as Markdown, CSV, LaTeX and JSON."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from zosam_jax.cli.terminal import printable
from zosam_jax.runs import groups as runs_groups
from zosam_jax.runs.dataset_facts import score_title
from zosam_jax.runs.files import JSON
from zosam_jax.runs.groups import FIGURES, Figure, Group, Row

_MAIN = "test_accuracy"
# Figures that are the accuracy, or the score of another task.
_SCORES = (_MAIN, "selected_test_accuracy", "corrupted_accuracy")
_TARGETS = {
    "epochs_to_target": runs_groups.epochs_to,
    "seconds_to_target": runs_groups.seconds_to,
}


class Statistics(NamedTuple):
    """The statistics of a group.

    Attributes:
      group: The group.
      baseline: The group that it is compared to, or None.
      rows: The statistics of its figures, by name.
    """

    group: Group
    baseline: Group | None
    rows: dict[str, Row]


class Comparison(NamedTuple):
    """The statistics of all groups.

    Attributes:
      figures: The figures that some group has, by name.
      groups: The statistics of each group.
    """

    figures: dict[str, Figure]
    groups: list[Statistics]

    @property
    def has_seeds(self) -> bool:
        """Whether some runs differ in the seed alone."""
        return any(each.group.seeds > 1 for each in self.groups)

    @property
    def has_baseline(self) -> bool:
        """Whether some group is compared to another."""
        return any(each.baseline is not None for each in self.groups)

    @property
    def has_target(self) -> bool:
        """Whether the way to a target is asked for."""
        return not self.figures.keys().isdisjoint(_TARGETS)

    @property
    def says_more(self) -> bool:
        """Whether its table says more than that of the runs."""
        return self.has_seeds or self.has_baseline or self.has_target

    @property
    def scores(self) -> set[str]:
        """What the accuracies of the runs are, as `RunRecord.score`."""
        return set().union(*(each.group.scores for each in self.groups))


def compare(
    groups: Sequence[Group], baseline: Sequence[str] = (), target: float | None = None
) -> Comparison:
    """Returns the statistics of groups.

    Args:
      groups: The groups.
      baseline: Fields of the baseline, as for `runs.groups.baselines`.
      target: Test accuracy to count epochs and seconds to; None: none.
    """
    wanted = {k: to(target) for k, to in _TARGETS.items()} if target else {}
    # What is asked for stands behind the main figure.
    figures = {_MAIN: FIGURES[_MAIN], **wanted, **FIGURES}
    found = []
    for own, base in zip(groups, runs_groups.baselines(groups, baseline), strict=True):
        rows = {
            name: runs_groups.row(
                own.values(figure), None if base is None else base.values(figure)
            )
            for name, figure in figures.items()
        }
        known = {name: row for name, row in rows.items() if row is not None}
        found.append(Statistics(own, base, known))
    present = {name for each in found for name in each.rows} | wanted.keys()
    return Comparison({k: f for k, f in figures.items() if k in present}, found)


class Column(NamedTuple):
    """A column of the table of groups.

    Attributes:
      header: Its title.
      cells: One for each group.
      is_text: Whether they are text.
      is_asked: Whether a flag asks for it, so that a narrow terminal shows it first.
    """

    header: str
    cells: list[str]
    is_text: bool = False
    is_asked: bool = False


def columns(found: Comparison) -> list[Column]:
    """Returns the columns of the table; cells are "-" where a group has no figure."""
    each = found.groups
    labels = [printable(one.group.label) for one in each]
    counts = [_count(one.group) for one in each]
    made = [Column("runs that differ in seed alone", labels, True), Column("n", counts)]
    for name, figure in found.figures.items():
        rows = [one.rows.get(name) for one in each]
        cells = [
            spread(row, figure) + _missing(row, one.group)
            for row, one in zip(rows, each, strict=True)
        ]
        title = figure.title
        if name in _SCORES:
            title = score_title(title, found.scores)
            cells = _with_scores(cells, found)
        made.append(Column(title, cells, is_asked=name in _TARGETS))
        if name != _MAIN:
            continue
        made.append(Column("95 % interval", [_interval(row, figure) for row in rows]))
        if found.has_baseline:
            cells = [_difference(row, figure) for row in rows]
            made.append(Column("difference to the baseline", cells, is_asked=True))
            made.append(Column("p", [_p_value(row) for row in rows], is_asked=True))
            names = [_label(one.baseline) for one in each]
            made.append(Column("baseline", names, True))
    return made


def _with_scores(cells: list[str], found: Comparison) -> list[str]:
    """Returns the cells of a score with its name, where groups have several."""
    if len(found.scores) < 2:
        return cells
    names = [" or ".join(sorted(each.group.scores)) for each in found.groups]
    pairs = zip(cells, names, strict=True)
    return [cell if cell == "-" else f"{cell} {name}" for cell, name in pairs]


def _label(group: Group | None) -> str:
    return "-" if group is None else printable(group.label)


def _count(group: Group) -> str:
    done, members = len(group.runs), len(group.members)
    return str(done) if done == members else f"{done} of {members}"


def spread(row: Row | None, figure: Figure) -> str:
    """Returns a mean and its deviation as text, "-" if there is none."""
    if row is None:
        return "-"
    mean = format(figure.unit * row.mean, figure.form)
    if row.deviation is None:
        return mean
    return f"{mean} ± {format(figure.unit * row.deviation, figure.form)}"


def _missing(row: Row | None, group: Group) -> str:
    """Returns how many runs have a figure, if it is not all the finished ones."""
    return "" if row is None or row.n == len(group.runs) else f" (n={row.n})"


def _interval(row: Row | None, figure: Figure) -> str:
    if row is None or row.half_width is None:
        return "-"
    ends = (row.mean - row.half_width, row.mean + row.half_width)
    return " to ".join(format(figure.unit * end, figure.form) for end in ends)


def _difference(row: Row | None, figure: Figure) -> str:
    if row is None or row.difference is None or row.difference_half_width is None:
        return "-"
    difference = format(figure.unit * row.difference, f"+{figure.form}")
    return f"{difference} ± {figure.unit * row.difference_half_width:{figure.form}}"


def _p_value(row: Row | None) -> str:
    if row is None or row.p_value is None:
        return "-"
    return "< 0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"


def notes(found: Comparison) -> list[str]:
    """Returns sentences on what the table shows."""
    said = ["± is the standard deviation over the finished runs, n their number."]
    if found.has_baseline:
        said.append(
            "Differences to the baseline are paired by seed, ± half of their 95 % "
            "interval; p is that of the paired t-test."
        )
    if found.has_target:
        said.append(
            "Seconds are those of training, evaluation and checkpoints, without "
            "compilation."
        )
    shared = [
        each.group.label
        for each in found.groups
        if any(run.together > 1 for run in each.group.members)
    ]
    if shared:
        said.append(
            "Times of runs in one program are those of the whole program: "
            f"{'; '.join(map(printable, shared))}."
        )
    twice = [
        each.group.label
        for each in found.groups
        if each.group.seeds < len(each.group.members)
    ]
    if twice:
        said.append(
            f"Several runs of one seed count once, the first finished one: "
            f"{'; '.join(map(printable, twice))}."
        )
    return said


# The label, the count and the main figure are always there.
_ALWAYS = 3


def terminal_table(found: Comparison, width: int) -> Table:
    """Returns the table for a terminal.

    Args:
      found: The statistics.
      width: Width of the terminal in characters. A narrow one shows the columns that
        are asked for, then the first ones, and says how many are left out; the files
        have all.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    made = columns(found)
    ranked = sorted(
        range(len(made)), key=lambda i: (i >= _ALWAYS and not made[i].is_asked, i)
    )
    widths = _widths([made[i] for i in ranked], width)
    rooms = sorted(zip(ranked, widths, strict=False))
    shown = [made[i] for i, _ in rooms]
    for column, (_, room) in zip(shown, rooms, strict=True):
        justify = "left" if column.is_text else "right"
        # With a width of its own, Rich narrows no column in favour of another.
        table.add_column(column.header, justify=justify, overflow="fold", width=room)
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*map(Text, row))
    if left := len(made) - len(shown):
        table.caption = f"{left} more column{'s' * (left > 1)} in groups.md"
    return table


def _widths(made: Sequence[Column], width: int) -> list[int]:
    """Returns the widths of the first columns, as many as fit on a terminal."""

    def taken(widths: Sequence[int]) -> int:
        # An edge on both sides, and two characters between columns.
        return sum(widths) + 2 * len(widths)

    least = [_least_width(column, width) for column in made]
    found = least[:_ALWAYS]
    for each in least[_ALWAYS:]:
        if taken([*found, each]) > width:
            break
        found.append(each)
    # What is left goes to texts, then to headers; what is missing, the labels lose.
    for is_text in (True, False):
        for place, column in enumerate(made[: len(found)]):
            if column.is_text == is_text:
                wanted = max(map(len, (column.header, *column.cells)))
                room = found[place] + width - taken(found)
                found[place] = max(8 if is_text else found[place], min(wanted, room))
    return found


def _least_width(column: Column, width: int) -> int:
    """Returns the least width of a column, in which words stay whole.

    Numbers stay on one line. Texts may take several, and half of the terminal at most.
    """
    words = column.header.split()
    cells = max(map(len, column.cells), default=0)
    if column.is_text:
        words += [word for cell in column.cells for word in cell.split()]
        cells = min(cells, max(16, width // 4))
    return max(cells, *(min(len(word), width // 2) for word in words))


def markdown(found: Comparison) -> str:
    """Returns the table as Markdown, with its notes."""
    made = columns(found)
    lines = [[column.header for column in made]]
    lines.append(["---" if column.is_text else "---:" for column in made])
    lines += [list(row) for row in zip(*(c.cells for c in made), strict=True)]
    rows = ["| " + " | ".join(map(_in_markdown, line)) + " |" for line in lines]
    return "\n".join([*rows, "", *notes(found)]) + "\n"


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {character: rf"\{character}" for character in "&%$#_{}"}


def latex(found: Comparison) -> str:
    """Returns the table as a `tabular` of LaTeX's package booktabs."""
    made = columns(found)
    kinds = "".join("l" if column.is_text else "r" for column in made)
    rows = zip(*(column.cells for column in made), strict=True)
    header, *body = (
        " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in row) + r" \\"
        for row in ([column.header for column in made], *rows)
    )
    return "\n".join(
        [
            *(f"% {note}" for note in notes(found)),
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            header,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def comma_separated(found: Comparison) -> str:
    """Returns a CSV table: a line for each group and figure, with plain numbers."""
    text = io.StringIO()
    differing = list(found.groups[0].group.fields) if found.groups else []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", *differing, "figure", *Row._fields, "baseline"])
    for each in found.groups:
        values = [runs_groups.shown(value) for value in each.group.fields.values()]
        base = "" if each.baseline is None else each.baseline.label
        for name, row in each.rows.items():
            # None is an empty cell.
            writer.writerow([each.group.label, *values, name, *row, base])
    return text.getvalue()


def as_object(found: Comparison) -> JSON:
    """Returns all figures as a JSON object: of each run, and of each group."""
    return {
        "groups": [
            {
                "label": each.group.label,
                "fields": each.group.fields,
                "baseline": None if each.baseline is None else each.baseline.label,
                "runs": [run.name for run in each.group.members],
                "values": {
                    name: _by_seed(each.group.values(figure))
                    for name, figure in found.figures.items()
                },
                "layers": layers(each.group),
                "statistics": {name: row._asdict() for name, row in each.rows.items()},
            }
            for each in found.groups
        ]
    }


def _by_seed(values: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in values.items()}


def layers(group: Group) -> dict[str, float]:
    """Returns the mean density of each sparse layer over the finished runs."""
    found = [(run.summary or {}).get("layers", {}) for run in group.runs.values()]
    names = (
        [name for name in found[0] if all(name in each for each in found)]
        if found
        else []
    )
    return {name: sum(each[name] for each in found) / len(found) for name in names}
