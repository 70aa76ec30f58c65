"""`zosam predict`."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from zosam_jax.cli.own_code import OwnCode
from zosam_jax.runs.errors import RunError

if TYPE_CHECKING:
    from rich.table import Table

    from zosam_jax.train.load_run import LoadedRun
    from zosam_jax.train.prediction import Prediction


@dataclasses.dataclass(frozen=True, slots=True)
class Predict(OwnCode):
    """Predict the classes of images or of their pixels, or values, by a run's network.

    The data set of the run is not needed. Images are prepared as its test images were.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a run, finished or not; or a safetensors file that was exported."""
    paths: Positional[tuple[Path, ...]]
    """Image files, or folders of images."""
    top: int | None = None
    """Number of classes of each image, the most probable first. None: one; all \
where an image may have several."""
    to: Path | None = None
    """Folder for the label maps of a segmentation: a PNG of each image, of its name, \
whose indices are the classes. None: they are not written."""
    format: Literal["table", "json", "csv"] = "table"
    """table; json: a list of objects; csv: a line for each class of each image."""
    checkpoint: int | None = None
    """Step of one of the run's checkpoints. None: the last."""
    batch_size: int = 256
    """Largest number of images of a batch, over all devices together."""

    def execute(self, line: Sequence[str]) -> int:
        """Prints the predictions and returns the exit status."""
        del line
        from zosam_jax.cli import compilation_cache, terminal
        from zosam_jax.train import load_run

        if not self.paths:
            raise RunError("predict needs at least one image: zosam predict RUN PATH")
        compilation_cache.use()
        net = load_run.load(self.run, checkpoint=self.checkpoint, **self.given())
        task = net.facts.task
        if self.to is not None and task != "segmentation":
            raise RunError(
                f"to={str(self.to)!r} is for label maps, and the labels of "
                f"{net.facts.name} are of {task}. Leave it out."
            )
        several = task in ("multilabel", "segmentation")
        usual = len(net.classes) if several else 1
        top = usual if self.top is None else self.top
        try:
            if self.to is None:
                found = net.predict(self.paths, top=top, batch_size=self.batch_size)
            else:
                found = _written(net, self.paths, self.to, top, self.batch_size)
        except ValueError as error:
            raise RunError(str(error)) from error
        name = _NUMBERS.get(task, "probability")
        if self.format == "table":
            terminal.show(_table(found, name), terminal.width() or _WIDTH)
            if self.to is not None:
                terminal.write(f"label maps: {self.to}\n")
        else:
            terminal.write({"json": _json, "csv": _csv}[self.format](found, name))
        return 0


_NUMBERS = {"regression": "value", "segmentation": "share"}
"""What the numbers beside the classes are, if they are no probabilities."""


def _written(
    net: "LoadedRun", paths: Sequence[Path], folder: Path, top: int, batch_size: int
) -> list["Prediction"]:
    """Returns the predictions, after writing a label map for each image."""
    from zosam_jax.data import label_maps
    from zosam_jax.runs.errors import explained
    from zosam_jax.train import prediction

    given = prediction.examples(net.facts, paths)
    places = [folder / f"{Path(path or '').stem}.png" for path in given.paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise RunError(
                f"to={str(folder)!r}: two images would have the label map {place.name}."
                " Predict one of them by itself."
            )
    maps = net.label_maps(paths, batch_size=batch_size)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for place, labels in zip(places, maps, strict=True):
            label_maps.write(place, labels)
    return prediction.shares(net.facts, given, maps, top)


# Without a terminal, the table may be wider than the usual 80 columns.
_WIDTH = 200


def _table(found: Sequence["Prediction"], what: str) -> "Table":
    """Returns a table with a row for each image; `what` names the numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from zosam_jax.cli.terminal import printable

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    form = ".6g" if what == "value" else ".1%"
    # Images may have classes in different numbers.
    for _ in range(max(len(each.classes) for each in found)):
        table.add_column("" if what == "value" else "class")
        table.add_column("", justify="right")
    for each in found:
        pairs = zip(each.classes, each.probabilities, strict=True)
        cells = [x for name, p in pairs for x in (printable(name), format(p, form))]
        # As text: a name may look like Rich's markup.
        table.add_row(*map(Text, (printable(each.path or ""), *cells)))
    return table


def _json(found: Sequence["Prediction"], what: str) -> str:
    """Returns a list of objects as JSON."""
    rows = [
        {
            "path": each.path,
            "classes": [
                {"class": name, what: p}
                for name, p in zip(each.classes, each.probabilities, strict=True)
            ],
        }
        for each in found
    ]
    return json.dumps(rows, indent=2) + "\n"


def _csv(found: Sequence["Prediction"], what: str) -> str:
    """Returns a line for each class of each image, under a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "rank", "class", what))
    for each in found:
        pairs = zip(each.classes, each.probabilities, strict=True)
        for rank, (name, p) in enumerate(pairs, start=1):
            writer.writerow((each.path, rank, name, p))
    return text.getvalue()
