"""`zosam report`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional

from zosam_jax.runs.errors import explained

# Without a terminal, the table may be wider than the usual 80 columns.
_WIDTH = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Compare runs: print a table, and write curves.png and report.html."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, finished or not."""
    out: Path = Path("report")
    """Folder for curves.png and report.html."""

    def execute(self, line: Sequence[str]) -> int:
        """Prints and writes the comparison, and returns the exit status."""
        del line
        from zosam_jax.cli import comparison, terminal
        from zosam_jax.runs import record

        runs = record.read_all(self.runs)
        width = terminal.width() or _WIDTH
        terminal.show(comparison.terminal_table(runs, width), width)
        with explained(self.out):
            paths = comparison.write(runs, self.out)
        terminal.write("".join(f"{path}\n" for path in paths))
        return 0
