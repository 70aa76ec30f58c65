"""What differs between the folder of a run and one that was never interrupted."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

TIMES = {"seconds", "images_per_second", "compile_seconds"}
TIMES |= {"compile_seconds_by_program", "written", "command", "started", "sessions"}
TIMES |= {"out", "commit", "overwrite"}


def differences(whole: Path, folder: Path) -> list[str]:
    """Returns what differs between two folders, a line each.

    Args:
      whole: The folder of a command that was not interrupted.
      folder: The other.
    """
    names = [
        {str(p.relative_to(root)) for p in root.rglob("*") if _is_record(p, root)}
        for root in (whole, folder)
    ]
    lone = sorted(names[0] ^ names[1])
    found = [f"only in one folder: {name}" for name in lone if not _is_old(name, names)]
    for name in sorted(names[0] & names[1]):
        pair = whole / name, folder / name
        if name.endswith((".json", ".jsonl")):
            texts = [_figures(path) for path in pair]
        elif (pair[0] / "_CHECKPOINT_METADATA").exists():
            texts = [_arrays(path) for path in pair]
        else:
            continue
        if texts[0] != texts[1]:
            found.append(f"{name}: {_first_difference(*texts)}")
    return found


def _is_record(path: Path, root: Path) -> bool:
    """Whether a path is a file of the run, or a whole checkpoint."""
    inside = path.relative_to(root).parts
    within = [part for part in inside[:-1] if part.isdigit()]
    return not within and (path.is_file() or path.name.isdigit())


def _is_old(name: str, names: Sequence[set[str]]) -> bool:
    """Whether a path is a checkpoint, and both folders have a newer one."""
    step = Path(name)
    others = (
        [int(path.name) for path in map(Path, own) if path.parent == step.parent]
        for own in names
        if step.parent.name == "checkpoints"
    )
    newest = [max(steps, default=-1) for steps in others]
    return bool(newest) and int(step.name) < min(newest)


def _figures(path: Path) -> dict[str, Any]:
    """Returns the entries of a file but times and speeds, by line and path."""
    lines = path.read_text().splitlines()
    texts = lines if path.suffix == ".jsonl" else ["".join(lines)]
    return {
        f"line {number}{place}": value
        for number, text in enumerate(texts, start=1)
        for place, value in _entries(json.loads(text))
    }


def _entries(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in TIMES:
                yield from _entries(inner, f"{place}/{key}")
    elif isinstance(value, list):
        yield f"{place}/length", len(value)
        for index, inner in enumerate(value):
            yield from _entries(inner, f"{place}/{index}")
    else:
        yield place, value


def _arrays(path: Path) -> dict[str, Any]:
    """Returns type, shape and bytes of every array of a checkpoint, by its path."""
    return {
        key: (str(x.dtype), x.shape, x.tobytes())
        for key, x in sorted(read_arrays(path).items())
    }


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns every array of a checkpoint by its path.

    Args:
      path: The folder of the checkpoint.
    """
    import jax

    with contextlib.closing(ocp.PyTreeCheckpointer()) as reader:
        state = reader.restore(path / "state")
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    for key in (*one, *other):
        if one.get(key) != other.get(key):
            return f"{key}: {one.get(key)!r:.80} != {other.get(key)!r:.80}"
    raise AssertionError("they are the same")
