"""The Oxford-IIIT pets: images with lists, masks and boxes of heads beside them."""

import io
import pathlib
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from zosam_jax.data.archives import (
    Archives,
    Builder,
    Examples,
    OnProgress,
    Paths,
    Splits,
    files_of,
    reading,
)
from zosam_jax.data.dataset import DatasetError


def urls(builder: Builder) -> tuple[str, ...]:
    """Returns the addresses of the annotations and of the images."""
    return tuple(sorted(builder.url_infos))


def read(builder: Builder, paths: Paths, on_progress: OnProgress) -> Splits:
    """Returns the examples of the pets.

    Args:
      builder: Unused: the archives say everything.
      paths: The archives, by their addresses.
      on_progress: Called with lines of text.
    """
    del builder
    annotations, images = (paths[url] for url in sorted(paths))
    notes = {
        name.partition("annotations/")[2]: file.read()
        for name, file in files_of(annotations)
    }
    tick = reading(on_progress, [images, images])

    def split(file: str) -> Examples:
        lines = [line.split() for line in notes[file].decode().splitlines()]
        rows = {line[0]: line[1:] for line in lines if line}
        for name, content in files_of(images, tick):
            stem, suffix = pathlib.PurePosixPath(name).stem, name[-4:]
            # What is left at the end was listed, but is not in the archive.
            if suffix == ".jpg" and (row := rows.pop(stem, None)):
                yield (
                    f"{stem}.jpg",
                    {
                        "image": io.BytesIO(content.read()),
                        "label": int(row[0]) - 1,
                        "species": int(row[1]) - 1,
                        "file_name": f"{stem}.jpg",
                        "segmentation_mask": io.BytesIO(notes[f"trimaps/{stem}.png"]),
                        "head_bbox": _head(notes.get(f"xmls/{stem}.xml")),
                    },
                )
        if rows:
            raise DatasetError(
                f"{images} lacks {len(rows):,} images that {file} of {annotations} "
                f"lists, such as {min(rows)}.jpg."
            )

    return {"train": split("trainval.txt"), "test": split("test.txt")}


def _head(xml: bytes | None) -> Sequence[float]:
    """Returns the box around a head, in fractions of the image; zeros if unknown."""
    import tensorflow_datasets as tfds

    if xml is None:
        return tfds.features.BBox(0.0, 0.0, 0.0, 0.0)
    tree = ET.fromstring(xml)

    def number(path: str) -> float:
        return float(tree.findtext(path, ""))

    width, height = number("size/width"), number("size/height")
    ends = {k: number(f"object/bndbox/{k}") for k in ("xmin", "xmax", "ymin", "ymax")}
    return tfds.features.BBox(
        ymin=ends["ymin"] / height,
        xmin=ends["xmin"] / width,
        ymax=ends["ymax"] / height,
        xmax=ends["xmax"] / width,
    )


ARCHIVES = Archives(urls, read)
