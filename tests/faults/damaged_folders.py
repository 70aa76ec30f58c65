"""Damages the folder of a tiny run in hundreds of ways, and reads each in every way.

    python tests/faults/damaged_folders.py --out benchmarks/results/damaged-folders.json

A run of seconds is trained once. Every variant is a copy with one damage: a kind of
damage to a whole file, to an entry of a JSON file, to a line, or to a file of a
checkpoint. It is read as `zosam report`, `zosam evaluate`, `load` and a resumed
training read it, up to the compilation. Each reading ends in one of

- clean error: a `RunError` or `DatasetError` that names the folder;
- survival: the same figures and weights as without the damage, or others with a message
  that says so;
- silent acceptance: other figures or weights without a word;
- traceback: any other exception.

Damage that leaves a valid record with other valid values, such as a changed digit, is
beyond any reader and not part of this.
"""

# ruff: noqa: T201
import argparse
import functools
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]

import attacks  # noqa: E402
import tiny_run  # noqa: E402
from attacks import FAULTS  # noqa: E402

from zosam_jax.cli import comparison  # noqa: E402
from zosam_jax.data import DatasetError  # noqa: E402
from zosam_jax.evaluate import evaluate, evaluation  # noqa: E402
from zosam_jax.runs import record  # noqa: E402
from zosam_jax.runs.errors import RunError  # noqa: E402
from zosam_jax.runs.progress import Silent  # noqa: E402
from zosam_jax.train import checkpoint, load_run, run  # noqa: E402

FIELDS = {"method": "random", "gradient": "backprop"}
SEED = 0

READERS = {
    "metrics.jsonl": ("report", "resume", "repeat"),
    "evaluation.jsonl": ("evaluate",),
    "checkpoints": ("load", "evaluate", "resume"),
    "summary.json": ("report", "load", "evaluate", "repeat"),
    "config.json": ("report", "load", "resume"),
}
"""Who reads each record. The others open nothing of it, or what one of these does."""


class Variant(NamedTuple):
    """A damage.

    Attributes:
      record: What is damaged: a file, or "checkpoints".
      kind: The kind of damage.
      what: The place of the damage.
      apply: Damages the folder it is called with.
    """

    record: str
    kind: str
    what: str
    apply: Callable[[Path], None]


class Reading(NamedTuple):
    """How one variant was read in one way.

    Attributes:
      variant: The damage.
      entry: The way: report, evaluate, load, resume or repeat.
      ending: One of `attacks.ENDINGS`.
      detail: The message or the traceback.
    """

    variant: Variant
    entry: str
    ending: str
    detail: str


# Kinds of damage to a whole file.


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Returns the damage that puts something else in the place of a file."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


WHOLE_FILE: dict[str, Callable[[Path], None]] = {
    "removed": _instead(lambda path: None),
    "empty": _bytes(lambda b: b""),
    "one newline": _bytes(lambda b: b"\n"),
    "zeros": _bytes(lambda b: bytes(len(b))),
    "cut at a quarter": _bytes(lambda b: b[: len(b) // 4]),
    "cut in half": _bytes(lambda b: b[: len(b) // 2]),
    "without its last two bytes": _bytes(lambda b: b[:-2]),
    "twice": _bytes(lambda b: b + b),
    "noise": _bytes(lambda b: random.Random(SEED).randbytes(len(b))),
    "one byte not UTF-8": _bytes(
        lambda b: b[: len(b) // 2] + b"\xff" + b[len(b) // 2 :]
    ),
    "UTF-16": _bytes(lambda b: b.decode().encode("utf-16")),
    "byte order mark": _bytes(lambda b: b"\xef\xbb\xbf" + b),
    "null": _bytes(lambda b: b"null\n"),
    "an empty list": _bytes(lambda b: b"[]\n"),
    "an empty object": _bytes(lambda b: b"{}\n"),
    "a text": _bytes(lambda b: b'"text"\n'),
    "a number": _bytes(lambda b: b"3\n"),
    "NaN": _bytes(lambda b: b"NaN\n"),
    "a deep list": _bytes(lambda b: b"[" * 100_000 + b"]" * 100_000 + b"\n"),
    "a deep object": _bytes(lambda b: b'{"config":' * 100_000 + b"\n"),
    "a number of 5,000 digits": _bytes(lambda b: b'{"step": ' + b"9" * 5000 + b"}\n"),
    "a folder": _instead(lambda path: path.mkdir()),
    "a dangling link": _instead(lambda path: path.symlink_to("nowhere")),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "a pipe": _instead(os.mkfifo),
}

# Values that take the place of an entry.
WRONG: dict[str, Any] = {
    "null": None,
    "text": "?",
    "-1": -1,
    "a fraction": 0.123,
    "1e400": float("inf"),
    "true": True,
    "a list": ["?", None],
    "an object": {"?": []},
}


def _places(value: Any, depth: int, place: tuple = ()) -> Iterator[tuple]:
    """Yields the paths of the entries of a JSON value, as keys and indices."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = list(enumerate(value))[:1]
    for key, inner in items:
        yield (*place, key)
        if depth > 1:
            yield from _places(inner, depth - 1, (*place, key))


def _edited(value: Any, place: tuple, edit: Callable[[Any, Any], None]) -> Any:
    value = json.loads(json.dumps(value))
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    edit(inner, place[-1])
    return value


def _entry_damages(value: Any, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Yields kind, place and the damaged value for every entry of a JSON value."""
    for place in _places(value, depth):
        name = "/".join(map(str, place))
        yield "entry removed", name, _edited(value, place, lambda v, k: v.pop(k))
        old = functools.reduce(lambda inner, key: inner[key], place, value)
        for kind, wrong in WRONG.items():
            if isinstance(old, float) and isinstance(wrong, float) and wrong < 1:
                continue  # Another valid value is beyond any reader.

            def put(v: Any, k: Any, wrong: Any = wrong) -> None:
                v[k] = wrong

            yield f"entry is {kind}", name, _edited(value, place, put)


def _file(name: str, kind: str, damage: Callable[[Path], None]) -> Variant:
    return Variant(name, kind, name, lambda path: damage(path / name))


def _json_variants(whole: Path, name: str, depth: int) -> Iterator[Variant]:
    for kind, damage in WHOLE_FILE.items():
        yield _file(name, kind, damage)
    value = json.loads((whole / name).read_text())
    for kind, place, wrong in _entry_damages(value, depth):
        text = json.dumps(wrong).replace("Infinity", "1e400")
        yield Variant(
            name,
            kind,
            place,
            lambda path, text=text: (path / name).write_text(text) and None,
        )


def _lines_variants(whole: Path, name: str, depth: int) -> Iterator[Variant]:
    """Yields damages to a file of JSON lines and to its line in the middle."""
    for kind, damage in WHOLE_FILE.items():
        yield _file(name, kind, damage)
    lines = (whole / name).read_text().splitlines(keepends=True)
    middle = len(lines) // 2

    def put(kind: str, new: list[str]) -> Variant:
        text = "".join(new)
        return _file(name, kind, lambda path: path.write_text(text) and None)

    before, line, after = lines[:middle], lines[middle], lines[middle + 1 :]
    yield put("first line removed", lines[1:])
    yield put("line in the middle removed", before + after)
    yield put("last line removed", lines[:-1])
    yield put("last two lines removed", lines[:-2])
    yield put("line twice", [*before, line, line, *after])
    yield put("lines swapped", [*lines[:1], lines[2], lines[1], *lines[3:]])
    yield put("lines reversed", lines[::-1])
    yield put("line cut", [*before, line[: len(line) // 2] + "\n", *after])
    yield put("two lines in one", [*before[:-1], before[-1].strip(), line, *after])
    yield put("blank line", [*before, "\n", *lines[middle:]])
    yield put("last line torn", [*lines[:-1], lines[-1][:20]])
    yield put("a torn line behind", [*lines, lines[-1][:20]])
    yield put("lines end as on Windows", [x.replace("\n", "\r\n") for x in lines])
    for value in ("[]", "null", "3", '"text"', "{}", "[" * 100_000, "\x00"):
        yield put(f"a line is {value[:6]!a}", [*before, value + "\n", *after])
    for kind, place, wrong in _entry_damages(json.loads(line), depth):
        text = json.dumps(wrong).replace("Infinity", "1e400") + "\n"
        yield put(kind, [*before, text, *after])._replace(what=place)


def _checkpoint_variants(whole: Path) -> Iterator[Variant]:
    """Yields damages to the newest checkpoint, its files, and all checkpoints."""
    root = Path("checkpoints")
    newest = max((whole / root).glob("[0-9]*"), key=lambda p: int(p.name)).name
    damages: dict[str, Callable[[Path], None]] = {
        name: WHOLE_FILE[name]
        for name in ("removed", "empty", "cut in half", "noise", "zeros", "a folder")
    }
    damages |= {n: WHOLE_FILE[n] for n in ("an empty object", "a dangling link")}
    for path in sorted((whole / root / newest).rglob("*")):
        place = path.relative_to(whole)
        if path.is_file():
            for kind, damage in damages.items():
                yield Variant(
                    "checkpoints",
                    f"file {kind}",
                    str(place),
                    lambda run, place=place, damage=damage: damage(run / place),
                )
        else:
            yield Variant(
                "checkpoints",
                "folder removed",
                str(place),
                lambda run, place=place: shutil.rmtree(run / place),
            )

    def both(run: Path) -> None:
        for step in (run / root).iterdir():
            for path in step.rglob("*"):
                if path.is_file():
                    path.write_bytes(b"noise")

    def place_file(run: Path) -> None:
        shutil.rmtree(run / root)
        (run / root).write_text("")

    def place_link(run: Path) -> None:
        shutil.rmtree(run / root)
        (run / root).symlink_to("nowhere")

    whole_folder: dict[str, Callable[[Path], object]] = {
        "all removed": lambda run: shutil.rmtree(run / root),
        "all empty": lambda run: [
            (shutil.rmtree(p), p.mkdir()) for p in (run / root).iterdir()
        ],
        "all noise": both,
        "newest removed": lambda run: shutil.rmtree(run / root / newest),
        "newest empty": lambda run: (
            shutil.rmtree(run / root / newest),
            (run / root / newest).mkdir(),
        ),
        "newest under the next number": lambda run: (run / root / newest).rename(
            run / root / str(int(newest) + 1)
        ),
        "newest under a name": lambda run: (run / root / newest).rename(
            run / root / "last"
        ),
        "newest is a file": lambda run: (
            shutil.rmtree(run / root / newest),
            (run / root / newest).write_text(""),
        ),
        "a file in their place": place_file,
        "a dangling link in their place": place_link,
        "a foreign file among them": lambda run: (run / root / "notes").write_text(""),
    }
    for kind, damage in whole_folder.items():
        yield Variant(
            "checkpoints",
            kind,
            str(root),
            lambda run, damage=damage: damage(run) and None,
        )


def variants(whole: Path) -> list[Variant]:
    """Returns all damages of a run folder.

    Args:
      whole: The folder, undamaged.
    """
    return [
        *_lines_variants(whole, "metrics.jsonl", 1),
        *_lines_variants(whole, "evaluation.jsonl", 2),
        *_checkpoint_variants(whole),
        *_json_variants(whole, "summary.json", 1),
        *_json_variants(whole, "config.json", 2),
    ]


# The ways to read a run.


class Reached(Exception):
    """A reading came to the point where it would compile."""


class Told(Silent):
    """Collects what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        """Notes a line of text."""
        self.said.append(text)


def make(path: Path) -> Path:
    """Trains and evaluates the run that is damaged; returns its folder."""
    tiny_run.train(path, **FIELDS)
    evaluate(
        path,
        dataset=tiny_run.dataset(),
        model=tiny_run.Net(),
        corruptions=("fog", "contrast"),
        severities=(1, 2),
    )
    return path


class Reader:
    """Reads run folders, and compares what it finds with an undamaged one."""

    def __init__(self, whole: Path):
        """Reads the undamaged folder.

        Args:
          whole: The folder that `make` made.
        """
        self.whole = whole
        config = tiny_run.config(whole, **FIELDS)
        self.compiled = tiny_run.prepare(config)
        self.entries: dict[str, Callable[[Path], tuple[Any, list[str]]]] = {
            "report": self.report,
            "evaluate": self.evaluate,
            "load": self.load,
            "resume": self.resume,
            "repeat": self.repeat,
        }
        self.states = [[state] for state in self._states()]
        self.found: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for entry, read in self.entries.items():
                copy = shutil.copytree(whole, Path(scratch, entry, "run"))
                self.found[entry] = read(copy)[0]

    def _states(self) -> Iterator[tuple[int, int]]:
        """Yields step and digest of every checkpoint."""
        place = self.whole / "checkpoints"
        checkpoints = checkpoint.Checkpoints(place, keep=2, read_only=True)
        for step in checkpoints.steps():
            yield (
                step,
                checkpoint.digest(checkpoints.read(step, self.compiled.abstract)),
            )
        checkpoints.close()

    def says_so(self, found: Any, said: list[str]) -> bool:
        """Whether a reading that found something else says so."""
        text = " ".join(said)
        if found in self.states:
            return f"resuming at step {found[0][0]} " in text
        return any(word in text for word in _WARNINGS)

    def report(self, path: Path) -> tuple[Any, list[str]]:
        """As `zosam report`."""
        runs = record.read_all([path])
        comparison.terminal_table(runs, 200)
        cells = [[c.cell(r) for c in comparison.COLUMNS] for r in runs]
        comparison.config_differences([*runs, *runs])
        curves = [runs[0].curve(s, "loss") for s in ("train", "test")]
        # Without its summary, a run was killed before it wrote it: "unfinished".
        return (cells, curves), [row[1] for row in cells]

    def load(self, path: Path) -> tuple[Any, list[str]]:
        """As `load`, with the objects that the run was given."""
        found = load_run.load(path, model=tiny_run.Net(), dataset=tiny_run.dataset())
        return checkpoint.digest(found.variables), list(found.notes)

    def evaluate(self, path: Path) -> tuple[Any, list[str]]:
        """As `zosam evaluate`, up to the first image set."""
        reused: list[Any] = []

        def stop(
            experiment: Any, network: Any, sets: Any, keys: Any, results: Any, _: Any
        ) -> None:
            reused.extend(results.get(key) for key in keys)
            reused.append(checkpoint.digest(network))
            raise Reached

        score, evaluation.score = evaluation.score, stop
        try:
            evaluate(
                path,
                dataset=tiny_run.dataset(),
                model=tiny_run.Net(),
                corruptions=("fog", "contrast"),
                severities=(1, 2),
            )
        except Reached:
            pass
        finally:
            evaluation.score = score
        # A result that is not there is made again: only a wrong one is a fault.
        known = [r for r in reused[:-1] if r is not None]
        missing = len(reused) - 1 - len(known)
        said = [f"{missing} image sets are evaluated again"] * bool(missing)
        return (known, reused[-1]), said

    def _train(self, path: Path) -> tuple[Any, list[str]]:
        show = Told()
        at: list[Any] = []
        compiled = self.compiled.again()

        def place(state: Any) -> Any:
            at.append((int(state.step), checkpoint.digest(state)))
            raise Reached

        def init() -> Any:
            at.append("the beginning")
            raise Reached

        # The programs are not compiled: the state is the next thing that is needed.
        compiled.compile, compiled.place, compiled.init = lambda: None, place, init
        try:
            result = run(
                tiny_run.config(path, **FIELDS),
                dataset=tiny_run.dataset(),
                model=tiny_run.Net(),
                display=show,
                compiled=compiled,
            )
            at.append(result.summary)
        except Reached:
            pass
        return at, show.said

    def resume(self, path: Path) -> tuple[Any, list[str]]:
        """As the command that began the run, if its summary were not there."""
        if (path / "summary.json").is_file():
            (path / "summary.json").unlink()
        return self._train(path)

    def repeat(self, path: Path) -> tuple[Any, list[str]]:
        """As the command that began the run, which is finished."""
        return self._train(path)


def read(reader: Reader, variant: Variant, entry: str, scratch: Path) -> Reading:
    """Returns how a variant is read in one way.

    Args:
      reader: The reader of the undamaged folder.
      variant: The damage.
      entry: The way.
      scratch: A folder for the copy, which is deleted.
    """
    path = scratch / "run"
    shutil.copytree(reader.whole, path, symlinks=True)
    try:
        variant.apply(path)
        try:
            found, said = reader.entries[entry](path)
        except (RunError, DatasetError) as error:
            text = str(error)
            ending = "clean error" if str(scratch) in text else "traceback"
            return Reading(variant, entry, ending, text)
        except Exception:
            return Reading(variant, entry, "traceback", traceback.format_exc())
        same = found == reader.found[entry]
        is_good = same or reader.says_so(found, said)
        ending = "survival" if is_good else "silent acceptance"
        return Reading(variant, entry, ending, "" if same else " | ".join(said))
    finally:
        shutil.rmtree(path, ignore_errors=True)


# What a message says if the figures or weights are not those of the undamaged folder.
_WARNINGS = ("damaged", "lost", "missing", "again", "unfinished")


def count(readings: list[Reading]) -> dict[str, int]:
    """Returns the number of readings with each ending."""
    return attacks.count(reading.ending for reading in readings)


def main() -> int:
    """Reads all variants in all ways, prints the counts and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--only", default="", help="a part of `record kind what`")
    options = parser.parse_args()
    started = time.perf_counter()
    readings = []
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place).resolve()
        reader = Reader(make(scratch / "whole"))
        chosen = [v for v in variants(reader.whole) if options.only in " ".join(v[:3])]
        for variant in chosen:
            for entry in READERS[variant.record]:
                reading = read(reader, variant, entry, scratch)
                readings.append(reading)
                if reading.ending in FAULTS:
                    print(reading.ending, *variant[:3], entry, sep=" | ")
                    print(reading.detail[-1500:])
    seconds = time.perf_counter() - started
    print(f"{len(chosen)} folders, {len(readings)} readings in {seconds:.0f} s")
    by = {
        name: {
            str(key): count([r for r in readings if of(r) == key])
            for key in dict.fromkeys(map(of, readings))
        }
        for name, of in (
            ("by_record", lambda r: r.variant.record),
            ("by_entry", lambda r: r.entry),
            ("by_kind", lambda r: r.variant.kind),
        )
    }
    everything = count(readings)
    attacks.show({**by["by_record"], **by["by_entry"], "all": everything})
    content = {"folders": len(chosen), "readings": len(readings)}
    content |= {"seconds": round(seconds), "all": everything, **by}
    attacks.write(options.out, content)
    return int(any(r.ending in FAULTS for r in readings))


if __name__ == "__main__":
    sys.exit(main())
