"""`zosam report`."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from zosam_jax.runs.errors import RunError, explained

if TYPE_CHECKING:
    from zosam_jax.cli.group_tables import Comparison
    from zosam_jax.runs.record import RunRecord

# Without a terminal, the table may be wider than the usual 80 columns.
_WIDTH = 200
_WATCH_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Compare runs, and runs that differ in the seed alone as groups.

    Prints tables; writes them as groups.md, groups.csv and groups.tex, all figures as
    report.json, the curves as curves.png, and one HTML page, report.html.
    """

    runs: Positional[tuple[Path, ...]]
    """Run folders, finished or not, or folders of `zosam sweep` and `zosam lottery`."""
    out: Path = Path("report")
    """Folder for the files."""
    html: Path | None = None
    """File of the HTML page. None: report.html in --out."""
    baseline: tuple[str, ...] = ()
    """Group to compare the others to, as FIELD=VALUE: gradient=backprop. In a grid, \
each group is compared to the one that agrees with it in the other fields."""
    target: float | None = None
    """Test accuracy (or R²), in (0, 1]: the table then has the epochs and the seconds \
of training to reach it."""
    watch: bool = False
    """Show the table again whenever a run has gone on, until all are finished, and \
write the files at the end. Ctrl-C ends it."""

    def execute(self, line: Sequence[str]) -> int:
        """Prints and writes the comparison, and returns the exit status."""
        del line
        if self.target is not None and not 0 < self.target <= 1:
            raise RunError(f"target={self.target:g} must be above 0 and at most 1.")
        from zosam_jax.cli import report_files, terminal
        from zosam_jax.runs import record

        runs, found = self._show(record.read_all(self.runs))
        while self.watch and not record.are_over(self.runs):
            time.sleep(_WATCH_SECONDS)
            now = record.read_all(self.runs)
            if now != runs:
                runs, found = self._show(now)
        with explained(self.out):
            lines = report_files.write(runs, found, self.out, self.html)
        terminal.write("".join(f"{text}\n" for text in lines))
        return 0

    def _show(self, runs: list["RunRecord"]) -> tuple[list["RunRecord"], "Comparison"]:
        """Prints the tables; returns the runs and the statistics of their groups."""
        from zosam_jax.cli import comparison, group_tables, terminal
        from zosam_jax.runs import groups

        found = group_tables.compare(groups.group(runs), self.baseline, self.target)
        width = terminal.width() or _WIDTH
        if self.watch:
            terminal.clear()
        terminal.show(comparison.terminal_table(runs, width), width)
        if found.says_more:
            terminal.show(group_tables.terminal_table(found, width), width)
            notes = group_tables.notes(found)
            terminal.write("".join(f"{note}\n" for note in notes))
        return runs, found
