"""`zosam analyze`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

if TYPE_CHECKING:
    from rich.table import Table

    from zosam_jax.runs.files import JSON

_PARTS = ("curvature", "sharpness", "landscape", "noise", "masks")

# Without a terminal, the table may be wider than the usual 80 columns.
_WIDTH = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Analyze:
    """Analyse runs: curvature, sharpness, loss landscape, gradient noise, masks.

    The loss is that of the same training examples for every run, without augmentation.
    Writes analysis.json (figures), analysis.npz (arrays) and a picture for each part.
    """

    runs: Positional[tuple[Path, ...]]
    """Run folders, finished or not."""
    parts: tuple[
        Literal["curvature", "sharpness", "landscape", "noise", "masks"], ...
    ] = _PARTS
    """Parts of the analysis."""
    images: int = 512
    """Number of examples, drawn at random."""
    batch_size: int | None = None
    """Examples of a batch. None: as in the training of the first run."""
    split: Literal["train", "test"] = "train"
    """Where the examples come from. A streamed data set has test alone."""
    rho: float = 0.05
    """Radius of the sharpness. The adaptive radius is ten times that."""
    directions: Literal["random", "eigenvectors"] = "random"
    """Of the landscape. random: filter-normalised. eigenvectors: of the Hessian."""
    points: int = 21
    """Landscape points along each of two directions, an odd number."""
    extent: float = 1.0
    """The landscape goes from -extent to extent."""
    seed: int = 0
    """Seed of all draws."""
    dataset: str | None = None
    """Data set with the classes of the runs, as folder:PATH if the images have moved. \
None: that of each run."""
    data_dir: str | None = None
    """TFDS directory. None: the directory of each run."""
    out: Path | None = None
    """Folder to write. None: RUN/analysis; of several runs, ./analysis."""

    def execute(self, line: Sequence[str]) -> int:
        """Analyses, prints the table, draws the pictures; returns the exit status."""
        import numpy as np
        from rich.console import Console

        from zosam_jax.analysis import of_runs, pictures
        from zosam_jax.cli import compilation_cache, terminal
        from zosam_jax.cli.analysis_progress import AnalysisDisplay

        compilation_cache.use()
        names = [f.name for f in dataclasses.fields(of_runs.Settings)]
        settings = of_runs.Settings(**{name: getattr(self, name) for name in names})
        where = {"out": self.out, "dataset": self.dataset, "data_dir": self.data_dir}
        show = AnalysisDisplay(Console(file=sys.stdout))
        try:
            found = of_runs.analyze(
                self.runs, settings, **where, on_progress=show, command=line
            )
        finally:
            show.close()
        terminal.show(_table(found), terminal.width() or _WIDTH)
        folder = of_runs.place_of(self.out, self.runs)
        for name in ("analysis.json", "analysis.npz"):
            terminal.write(f"{folder / name}\n")
        arrays = np.load(folder / "analysis.npz")
        for part in pictures.drawable(found):

            def draw(path: Path, part: str = part) -> None:
                pictures.draw(part, found, arrays, path)

            terminal.write(f"{terminal.drawn(draw, folder / f'{part}.png')}\n")
        return 0


def _table(found: "JSON") -> "Table":
    """Returns a table with a row for each run and the figures of the parts."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from zosam_jax.cli.terminal import printable

    columns = [row for row in _COLUMNS if row[1] in found["settings"]["parts"]]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for heading in ("loss", *(row[0] for row in columns)):
        table.add_column(heading, justify="right")
    for run in found["runs"]:
        cells = [_number(run["loss"])]
        cells += [_number(_at(run[part], path)) for _, part, path in columns]
        # As text: a name may look like Rich's markup.
        table.add_row(*map(Text, (printable(run["run"]), *cells)))
    return table


# Heading, part, and where the figure is in the part.
_COLUMNS = (
    ("λ1", "curvature", ("largest", 0)),
    ("λmin", "curvature", ("smallest",)),
    ("trace", "curvature", ("trace",)),
    ("worst rise", "sharpness", ("plain", "best")),
    ("mean rise", "sharpness", ("plain", "average")),
    ("adaptive worst rise", "sharpness", ("adaptive", "best")),
    ("Ra", "landscape", ("roughness",)),
    ("signal/noise", "noise", ("backprop", "ratio")),
)


def _at(figures: "JSON", path: tuple[str | int, ...]) -> float | None:
    found: Any = figures
    for key in path:
        found = found[key]
    return found


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
