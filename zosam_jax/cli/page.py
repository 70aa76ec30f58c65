"""The HTML page of a report: one file that needs no other and no network."""

import base64
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from zosam_jax._version import __version__
from zosam_jax.cli import comparison, group_tables
from zosam_jax.cli.group_tables import Column, Comparison
from zosam_jax.cli.terminal import printable
from zosam_jax.runs.groups import shown
from zosam_jax.runs.record import RunRecord

_TEMPLATE = "report.html.jinja"


def page(runs: Sequence[RunRecord], found: Comparison, picture: bytes) -> str:
    """Returns the page, whose texts Jinja2 has escaped.

    Args:
      runs: The runs.
      found: The statistics of their groups.
      picture: The curves as PNG.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = resources.files(__package__ or "").joinpath(_TEMPLATE).read_text("utf-8")
    return environment.from_string(source).render(_content(runs, found, picture))


def _content(
    runs: Sequence[RunRecord], found: Comparison, picture: bytes
) -> dict[str, Any]:
    """Returns what the template shows."""
    changed = comparison.config_differences(runs)
    names = [printable(run.name) for run in runs]
    fields = [
        Column("run", names, True),
        *(
            Column(printable(name), [printable(shown(x)) for x in row], True)
            for name, row in changed.items()
        ),
    ]
    tables: list[tuple[str, str, list[Column], Sequence[str]]] = [
        ("Runs", "runs", _runs(runs), ()),
        ("Densities of layers", "layers", _layers(found), ()),
        ("Differences", "differences", fields if changed else [], ()),
    ]
    if found.says_more:
        notes = group_tables.notes(found)
        groups = group_tables.columns(found)
        title = "Means over seeds" if found.has_seeds else "Comparison"
        tables.insert(0, (title, "groups", groups, notes))
    return {
        "version": __version__,
        "tables": [
            {
                "title": title,
                "id": name,
                "columns": made,
                "rows": list(zip(*(column.cells for column in made), strict=True)),
                "notes": said,
            }
            for title, name, made, said in tables
            if made
        ],
        "picture": base64.b64encode(picture).decode(),
        "configs": [
            (name, json.dumps(run.config, indent=2))
            for name, run in zip(names, runs, strict=True)
        ],
        "data": group_tables.as_object(found),
    }


def _runs(runs: Sequence[RunRecord]) -> list[Column]:
    return [
        Column(each.header, [each.text(run) for run in runs], each.is_text)
        for each in comparison.columns(runs)
    ]


def _layers(found: Comparison) -> list[Column]:
    """Returns a table of the mean density of each sparse layer, by group."""
    by_group = [group_tables.layers(each.group) for each in found.groups]
    names = list(dict.fromkeys(name for layers in by_group for name in layers))
    if not names:
        return []
    return [
        Column("layer, live weights in %", [printable(name) for name in names], True),
        *(
            Column(
                printable(each.group.label),
                [f"{100 * own[n]:.2f}" if n in own else "-" for n in names],
            )
            for each, own in zip(found.groups, by_group, strict=True)
        ),
    ]
