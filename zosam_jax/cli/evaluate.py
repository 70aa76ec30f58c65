"""`zosam evaluate`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from zosam_jax.cli.own_code import OwnCode
from zosam_jax.data.corruptions import COMMON, EXTRA, SEVERITIES, STANDIN
from zosam_jax.runs import paths

_CORRUPTIONS = (
    f"Corruptions by name: {', '.join(COMMON)} (common); {', '.join(EXTRA)} (extra); "
    f"{STANDIN}. common: the 15 of the published benchmark. all: common and extra."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluate(OwnCode):
    """Evaluate a run: accuracy on clean and corrupted images, calibration.

    Of examples with any of several labels, calibration is by label; of values the score
    is R², without a calibration; of a segmentation it is the mean IoU. An unfinished
    run is evaluated at its last checkpoint. Writes evaluation.json and evaluation.png
    to the run's folder. evaluation.jsonl keeps the result on every image set, so none
    is evaluated twice.
    """

    run: Positional[Path]
    """Folder of a run, finished or not; or a safetensors file that was exported."""
    checkpoint: int | None = None
    """Step of one of the run's checkpoints. None: the last."""
    corruptions: Annotated[tuple[str, ...], arg(help=_CORRUPTIONS)] = ("all",)
    severities: tuple[int, ...] = SEVERITIES
    """Severities, from 1 to 5."""
    source: str = "generated"
    """generated: corrupt the test images here, by the definitions of CIFAR-10-C \
(ImageNet-C from 128 pixels on). published: read the published sets from --data-dir or \
--published-dir."""
    images: int | None = None
    """Number of test images of each set. None: all."""
    seed: int = 0
    """Seed of the generated corruptions."""
    dataset: str | None = None
    """Data set with the classes of the run, as folder:PATH if the images have moved. \
None: that of the run."""
    data_dir: str | None = None
    """TFDS directory. None: the directory of the run."""
    published_dir: Path | None = None
    """Folder of the released .npy files of CIFAR-10-C or CIFAR-100-C."""
    frost_dir: Path | None = None
    """Folder of photographs of frost. None: generated frost is a drawn stand-in."""
    out: Path | None = None
    """Folder for evaluation.json and evaluation.png. None: the run folder."""
    overwrite: bool = False
    """Evaluate all image sets again."""

    def execute(self, line: Sequence[str]) -> int:
        """Evaluates, prints the tables, draws the picture; returns the exit status."""
        from rich.console import Console

        from zosam_jax.cli import compilation_cache, evaluation_report, terminal
        from zosam_jax.evaluate import evaluate

        compilation_cache.use()
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        options |= self.given()
        show = evaluation_report.EvaluationDisplay(Console(file=sys.stdout))
        try:
            figures = evaluate(
                options.pop("run"), **options, on_progress=show, command=line
            )
        finally:
            show.close()
        terminal.show(evaluation_report.terminal_table(figures))
        folder = paths.absolute(self.out or self.run, "out")
        folder = folder.parent if folder.is_file() else folder

        def draw(path: Path) -> None:
            from zosam_jax.cli import pictures

            pictures.evaluation(figures, path)

        terminal.write(f"{folder / 'evaluation.json'}\n")
        terminal.write(f"{terminal.drawn(draw, folder / 'evaluation.png')}\n")
        return 0
