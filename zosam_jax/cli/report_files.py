"""The files of a report: curves, tables, the figures as JSON, and the page."""

import json
from collections.abc import Sequence
from pathlib import Path

from zosam_jax.cli import group_tables, page, pictures
from zosam_jax.cli.group_tables import Comparison
from zosam_jax.runs import paths
from zosam_jax.runs.record import RunRecord


def write(
    runs: Sequence[RunRecord],
    found: Comparison,
    folder: Path,
    html: Path | None = None,
) -> list[str]:
    """Writes the files of a report, and returns a line for each.

    Args:
      runs: The runs.
      found: The statistics of their groups.
      folder: The folder to write to. It is created if it does not exist.
      html: File of the page. Default: `report.html` in the folder.
    """
    folder = paths.absolute(folder, "out")
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "curves.png"
    pictures.curves(runs, picture)
    texts = {
        "groups.md": group_tables.markdown(found),
        "groups.csv": group_tables.comma_separated(found),
        "groups.tex": group_tables.latex(found),
        "report.json": json.dumps(group_tables.as_object(found), indent=2) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    lines = [str(picture), *(str(folder / name) for name in texts)]
    path = folder / "report.html" if html is None else paths.absolute(html, "html")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.page(runs, found, picture.read_bytes()), encoding="utf-8")
    return [*lines, str(path)]
