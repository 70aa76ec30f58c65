"""`zosam analyze`."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from tyro.conf import Positional

from zosam_jax.cli.own_code import OwnCode

_Part = Literal[
    "curvature", "sharpness", "landscape", "noise", "masks", "errors", "features"
]
_PARTS: tuple[_Part, ...] = get_args(_Part)
# Without a terminal, the table may be wider than the usual 80 columns.
_WIDTH = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Analyze(OwnCode):
    """Analyse runs: curvature, sharpness, landscape, noise, masks, errors, features.

    The loss is that of the same training examples for every run, without augmentation.
    Writes analysis.json (figures), analysis.npz (arrays), predictions.csv (the answers
    to all test examples) and a picture for each part.
    """

    runs: Positional[tuple[Path, ...]]
    """Run folders, finished or not."""
    parts: tuple[_Part, ...] = _PARTS
    """Parts of the analysis."""
    images: int = 512
    """Number of examples, drawn at random."""
    batch_size: int | None = None
    """Examples of a batch. None: as in the training of the first run."""
    split: Literal["train", "test"] = "train"
    """Where the examples come from. A streamed data set has test alone."""
    rho: float = 0.05
    """Radius of the sharpness. The adaptive radius is ten times that."""
    directions: Literal["random", "eigenvectors", "runs"] = "random"
    """Of the landscape. random: filter-normalised. eigenvectors: of the Hessian. \
runs: one landscape on the plane through three runs."""
    points: int = 21
    """Landscape points along each of two directions, an odd number."""
    extent: float | None = None
    """The landscape goes from -extent to extent. None: 1; through three runs, a \
quarter of their width beyond them."""
    interactive: bool = False
    """Also write landscape.html, surfaces to turn and zoom. Needs \
pip install 'zosam-jax[interactive]'."""
    examples: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Numbers of the test images whose features are shown, from 0."""
    layers: tuple[str, ...] = ()
    """Layers whose features are shown, as block* for all that begin so. None: four of \
the outermost modules."""
    checkpoints: bool = False
    """Analyse every checkpoint of the runs, and draw the figures along the training. \
A training keeps two, or as many as its --keep says."""
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

        from zosam_jax.analysis import interactive, of_runs, pictures
        from zosam_jax.cli import analysis_report, compilation_cache, terminal
        from zosam_jax.cli.analysis_progress import AnalysisDisplay

        if self.interactive:
            interactive.check(self.parts)
        compilation_cache.use()
        names = [f.name for f in dataclasses.fields(of_runs.Settings)]
        settings = of_runs.Settings(**{name: getattr(self, name) for name in names})
        where = {"out": self.out, "dataset": self.dataset, "data_dir": self.data_dir}
        where |= self.given()
        show = AnalysisDisplay(Console(file=sys.stdout))
        try:
            found = of_runs.analyze(
                self.runs, settings, **where, on_progress=show, command=line
            )
        finally:
            show.close()
        width = terminal.width() or _WIDTH
        terminal.show(analysis_report.table(found), width)
        for table in analysis_report.error_tables(found):
            terminal.show(table, width)
        notes = analysis_report.notes(found)
        terminal.write("".join(f"{note}\n" for note in notes))
        folder = of_runs.place_of(self.out, self.runs)
        for name in ("analysis.json", "analysis.npz"):
            terminal.write(f"{folder / name}\n")
        arrays = np.load(folder / "analysis.npz")
        if "errors" in self.parts:
            path = analysis_report.write_predictions(found, arrays, folder)
            terminal.write(f"{path}\n")
        for name in pictures.drawable(found):
            draw = functools.partial(pictures.draw, name, found, arrays)
            terminal.write(f"{terminal.drawn(draw, folder / f'{name}.png')}\n")
        if self.interactive:
            page = folder / "landscape.html"
            interactive.write(found, arrays, page)
            terminal.write(f"{page}\n")
        return 0
