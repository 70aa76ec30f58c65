"""Spends minutes of an accelerator on what was never run, the most valuable first.

    python -m benchmarks.accelerator --minutes 15 --dataset npz:cifar10.npz
    python -m benchmarks.accelerator --minutes 15 --dataset npz:cifar10.npz
    python -m benchmarks.accelerator --merge

The work is divided into pieces: comparisons with NumPy, throughput, changes of masks,
trainings and their corrupted accuracy. Each piece runs in its own process and writes
its own file. OUT/pieces.jsonl gets a line for every piece that is done, and
OUT/accelerator.json is written anew, so that the next call goes on. A piece starts only
if the time that it is expected to take is left; it is ended when the time is over, and
repeated by the next call. A training may start in less time: it goes on where it was.
The time that a piece is expected to take is a guess for one GPU, corrected by the
pieces of its kind that are done; that of a training follows from the throughput.
With `--at-once N`, N trainings run side by side, each with its share of the device's
memory: a small network leaves most of a device idle. Timings run alone.

`--plan` prints the pieces. `--small` runs tiny ones, to try the program out. `--merge`
copies the result to `benchmarks/results`. Each device needs an `--out` of its own.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks import record, sparsity, tables, throughput
from benchmarks.accelerator_tables import CORE, TRAININGS, cells
from zosam_jax.runs.presets import PRESETS

PRESET, IMAGES = "cifar-resnet32", 50_000
SPARSITY_ROUNDS, THROUGHPUT_ROUNDS = 9, 20
CHUNK = 5
"""Gradients that are timed in one process, besides SGD and ZO-SAM."""

GRACE = 20.0
"""Seconds of the budget for the end of a piece that is cut: a training saves itself."""
LEAST = 90.0
"""Seconds that must be left for a training that will go on in the next call."""
# Programs read from a cache would have no time of compilation.
_NO_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}

MEMORY = "XLA_CLIENT_MEM_FRACTION"
"""The part of a GPU's memory that a process takes."""

Outcome = Literal["done", "failed", "cut"]


class Piece(NamedTuple):
    """A part of the work, done in one process.

    Attributes:
      name: Its name, which is also that of its files.
      kind: Pieces of a kind tell how far guesses of their times are off.
      seconds: The time that it is expected to take, before any is known.
      command: The words after `python -m`.
      environment: Variables of its process.
      goes_on: Whether it goes on where it was cut.
      after: Name of a piece that must be done before; "" for none.
    """

    name: str
    kind: str
    seconds: float
    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    goes_on: bool = False
    after: str = ""


def pieces(args: argparse.Namespace) -> list[Piece]:
    """Returns all pieces, the most valuable first.

    Args:
      args: The command line: `out`, `dataset`, `seeds`, `small`.
    """
    checked = Piece(
        "correctness",
        "correctness",
        90,
        ("benchmarks.correctness", "--out", str(_file(args.out, "correctness"))),
    )
    timed = list(_throughput(args))
    changes = list(_changes(args))
    trained = list(_trainings(args))
    cores, own = len(cells(args.small)), 2 * len(TRAININGS)
    first, few = 2, 5
    return [
        checked,
        *timed[:first],
        *changes[:few],
        *timed[first:cores],
        *trained[:own],
        *changes[few:],
        *timed[cores:],
        *trained[own:],
    ]


def _file(out: Path, name: str) -> Path:
    return out / "pieces" / f"{name}.json"


def _throughput(args: argparse.Namespace) -> Iterator[Piece]:
    """Yields the timings: a few gradients in every cell, then the others in two."""
    every = list(cells(args.small))
    core = ("SAM",) if args.small else CORE
    labels = [*throughput.methods(), *(f"{label} + RigL" for label in _BASE)]
    others = [label for label in labels if label not in (*core, *_BASE)]
    jobs = [(cell, core, 0) for cell in every]
    if not args.small:
        starts = range(0, len(others), CHUNK)
        jobs += [
            (cell, tuple(others[start : start + CHUNK]), 1 + start // CHUNK)
            for cell in every[:2]
            for start in starts
        ]
    for cell, labels, part in jobs:
        name = f"throughput-{cell.name}" + (f"-{part}" if part else "")
        words = ["--model", cell.model, "--width", f"{cell.width:g}"]
        words += ["--batch", str(cell.batch), "--image-size", str(cell.side)]
        words += ["--rounds", str(2 if args.small else THROUGHPUT_ROUNDS)]
        words += ["--only", ";".join(labels), "--out", str(_file(args.out, name))]
        precision = {"JAX_DEFAULT_MATMUL_PRECISION": cell.precision}
        # A program takes half a minute to compile, one of large images a whole one.
        seconds = (30 if cell.side <= 32 else 60) * (len(labels) + 2)
        yield Piece(
            name,
            "throughput",
            seconds,
            ("benchmarks.throughput", *words),
            _NO_CACHE | (precision if cell.precision != "default" else {}),
        )


_BASE = ("SGD", "ZO-SAM")  # timed in every process


def _changes(args: argparse.Namespace) -> Iterator[Piece]:
    """Yields the timings of sparse methods at 25 M and at 100 M weights."""
    few = [sparsity.SELECTION, "RigL"]
    if args.small:
        jobs = [("1", label) for label in few]
    else:
        others = [label for label in sparsity.measured() if label not in few]
        jobs = [("25", sparsity.RESNET), *((s, m) for s in ("25", "100") for m in few)]
        jobs += [(size, label) for size in ("25", "100") for label in others]
    for size, label in jobs:
        name = f"sparsity-{size}-{label}".replace(", ", "-").replace(" ", "-")
        words = "--one", size, label, "--rounds", str(_rounds(args.small))
        log = "--log", str(args.out / "sparsity.jsonl")
        seconds = 60 if size == "100" else 30
        command = ("benchmarks.sparsity", *words, *log)
        yield Piece(name.replace(":", "of"), "sparsity", seconds, command, _NO_CACHE)


def _rounds(small: bool) -> int:
    return 2 if small else SPARSITY_ROUNDS


def _trainings(args: argparse.Namespace) -> Iterator[Piece]:
    """Yields the trainings, all of a seed first, each with its corrupted accuracy."""
    speeds = _speeds(args.out)
    for seed in range(args.seeds):
        for label, training in TRAININGS.items():
            run = _run(args.out, label, seed)
            if args.small:
                given = ["--preset", "digits", "--model", "mlp", "--epochs", "1"]
                given += ["--dataset", args.dataset or "digits"]
                few = ["--images", "20", "--corruptions", "fog", "--severities", "1"]
            else:
                given = ["--preset", PRESET, "--dataset", args.dataset or "cifar10"]
                few = ["--images", "1000"]
            seconds = 9 * PRESETS[PRESET].config.epochs * training.passes
            if label in speeds:
                examples = PRESETS[PRESET].config.epochs * IMAGES
                seconds = 60 + 1.1 * examples / speeds[label]
            words = [*given, *training.flags, "--seed", str(seed), "--out", str(run)]
            train = Piece(
                f"train-{run.name}",
                "train",
                30 if args.small else seconds,
                ("zosam_jax", "train", *words),
                goes_on=True,
            )
            yield train
            command = ("zosam_jax", "evaluate", str(run), *few)
            name = f"evaluate-{run.name}"
            yield Piece(name, "evaluate", 180, command, goes_on=True, after=train.name)


def _run(out: Path, label: str, seed: int) -> Path:
    return out / "runs" / f"{TRAININGS[label].name}-s{seed}"


def _speeds(out: Path) -> dict[str, float]:
    """Returns the images a second of each training, where its step was timed."""
    file = _file(out, f"throughput-{cells()[0].name}")
    if not file.exists():
        return {}
    steps = {r["step"]: r["images_per_second"] for r in _read(file)["steps"]}
    return {
        label: steps[training.step]
        for label, training in TRAININGS.items()
        if training.step in steps
    }


def expected(piece: Piece, rows: Iterable[Mapping[str, Any]]) -> float:
    """Returns the seconds that a piece will take.

    Args:
      piece: The piece.
      rows: Lines of the pieces that are done. The median over those of the same kind,
        of the time over the guess, corrects the guess. Pieces that went on are left
        out, since a line has the time of the last process alone.
    """
    ratios = [
        row["took"] / row["guess"]
        for row in rows
        if row["kind"] == piece.kind and row["outcome"] == "done"
    ]
    return piece.seconds * (
        statistics.median(ratios) if ratios and not piece.goes_on else 1.0
    )


def choose(
    plan: Sequence[Piece],
    rows: Sequence[Mapping[str, Any]],
    tried: set[str],
    left: float,
) -> Piece | None:
    """Returns the most valuable piece that fits into the time that is left, or None.

    Args:
      plan: All pieces, the most valuable first.
      rows: Lines of the pieces that are done or failed.
      tried: Names of the pieces that were started in this call.
      left: Seconds.
    """
    done = {row["piece"] for row in rows if row["outcome"] == "done"}
    for piece in plan:
        if piece.name in done | tried or (piece.after and piece.after not in done):
            continue
        seconds = expected(piece, rows)
        if seconds <= left or (piece.goes_on and left >= LEAST):
            return piece
    return None


def choose_group(
    plan: Sequence[Piece],
    rows: Sequence[Mapping[str, Any]],
    tried: set[str],
    left: float,
    at_once: int,
) -> list[Piece]:
    """Returns the pieces that run next, side by side; none if nothing fits.

    Only pieces that go on where they were cut share a device: what is timed runs alone.

    Args:
      plan: As for `choose`, like all others but the last.
      rows: See `plan`.
      tried: See `plan`.
      left: See `plan`.
      at_once: Most pieces that share the device.
    """
    group: list[Piece] = []
    while len(group) < at_once:
        known = tried | {piece.name for piece in group}
        piece = choose(plan, rows, known, left)
        if piece is None or (group and piece.kind != group[0].kind):
            break
        group.append(piece)
        if not piece.goes_on:
            break
    return group


def spend(
    plan: Callable[[], Sequence[Piece]],
    log: record.Log,
    seconds: float,
    run: Callable[[Sequence[Piece], float], Sequence[Outcome]],
    finished: Callable[[], None],
    at_once: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Runs pieces until the time is over or nothing is left that fits.

    Args:
      plan: Returns all pieces; asked before each, since measurements correct guesses.
      log: Gets a line for every piece that is done or failed.
      seconds: The time.
      run: Runs pieces side by side for at most so many seconds.
      finished: Called after every line.
      at_once: Most trainings that run side by side.
      clock: Returns the time in seconds.
    """
    end, tried = clock() + seconds - GRACE, set()
    while True:
        left = end - clock()
        group = choose_group(plan(), log.rows(), tried, left, at_once)
        if not group:
            return
        tried.update(piece.name for piece in group)
        for piece in group:
            guess = expected(piece, log.rows())
            print(f"{piece.name}: about {guess:.0f} s of {left:.0f} s", flush=True)
        start = clock()
        outcomes = run(group, left)
        took = clock() - start
        for piece, outcome in zip(group, outcomes, strict=True):
            print(f"{piece.name}: {outcome} after {took:.0f} s", flush=True)
            if outcome == "cut":
                continue
            row = {"piece": piece.name, "kind": piece.kind, "guess": piece.seconds}
            log.append({**row, "took": round(took, 2), "outcome": outcome})
            finished()
        if "cut" in outcomes:
            return


def execute(group: Sequence[Piece], seconds: float, out: Path) -> list[Outcome]:
    """Runs pieces side by side, each in a process whose output goes to OUT/logs.

    Args:
      group: The pieces.
      seconds: Time after which they are ended: they are asked to, and killed after
        `GRACE`.
      out: The folder of the results.
    """
    end = time.monotonic() + seconds
    started: list[tuple[subprocess.Popen[bytes], Path]] = []
    outcomes: list[Outcome] = []
    try:
        for piece in group:
            log = out / "logs" / f"{piece.name}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            started.append((_start(piece, log, len(group)), log))
        for process, log in started:
            try:
                code = process.wait(max(end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                outcomes.append("cut")
                continue
            if code:
                words = log.read_text(errors="replace").strip().splitlines()[-3:]
                print("\n".join(words), f"({log})", sep="\n", flush=True)
            outcomes.append("failed" if code else "done")
    finally:
        _end([process for process, _ in started])
    return outcomes


def _start(piece: Piece, log: Path, sharing: int) -> subprocess.Popen[bytes]:
    """Starts a piece that shares its device's memory with so many, itself included."""
    own = {} if sharing == 1 else {MEMORY: f"{0.9 / sharing:.3f}"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *piece.command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **own, **piece.environment},
            start_new_session=True,
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends those processes that still run, and what they started."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
    end = time.monotonic() + GRACE - 5
    for process in running:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def merged(args: argparse.Namespace, log: record.Log) -> dict[str, Any]:
    """Returns the results of all pieces that are done.

    Args:
      args: The command line.
      log: The lines of the pieces.
    """
    rows = log.rows()
    done = {row["piece"] for row in rows if row["outcome"] == "done"}
    file = _file(args.out, "correctness")
    changes = record.Log(
        args.out / "sparsity.jsonl", sparsity.log_settings(_rounds(args.small))
    )
    return {
        "settings": log.settings,
        "pieces": [{k: v for k, v in row.items() if k != "settings"} for row in rows],
        # Wrong results make the piece fail, and are shown.
        "correctness": _read(file) if file.exists() else None,
        "throughput": [
            _read(_file(args.out, name))
            for name in sorted(done)
            if name.startswith("throughput-")
        ],
        "sparsity": sparsity.merged(changes),
        "trainings": [
            _training(args.out, label, seed)
            for seed in range(args.seeds)
            for label in TRAININGS
            if f"train-{_run(args.out, label, seed).name}" in done
        ],
    }


def _training(out: Path, label: str, seed: int) -> dict[str, Any]:
    """Returns the figures of a finished training."""
    folder = _run(out, label, seed)
    summary, corrupted = _read(folder / "summary.json"), folder / "evaluation.json"
    evaluation = _read(corrupted) if corrupted.exists() else {}
    sessions = _read(folder / "config.json")["sessions"]
    return {
        "training": label,
        "seed": seed,
        "accuracy": summary["test_accuracy"],
        "seconds": summary["seconds"] + summary["compile_seconds"],
        "parameters": summary["parameters"],
        "parameters_live": summary["parameters_live"],
        "corrupted_accuracy": evaluation.get("mean_corrupted_accuracy"),
        "corrupted_images": evaluation.get("images"),
        "sessions": [
            {name: session.get(name) for name in ("commit", "versions", "device")}
            for session in sessions
        ],
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def device() -> str:
    """Returns the kind of the device, asked by a process that leaves it free again."""
    program = "import jax; print(jax.devices()[0].device_kind)"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"JAX finds no device: {found.stderr.strip()[-300:]}")
    return found.stdout.strip().splitlines()[-1]


def main() -> None:
    """Spends the time, or prints the plan, or copies the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"))
    parser.add_argument(
        "--dataset", help="CIFAR-10, as npz:FILE without TFDS; default: cifar10"
    )
    parser.add_argument("--seeds", type=int, default=5, help="at most, from 0")
    parser.add_argument(
        "--at-once", metavar="N", type=int, default=1, help="trainings side by side"
    )
    parser.add_argument("--small", action="store_true", help="tiny pieces, for a try")
    parser.add_argument("--plan", action="store_true", help="print the pieces")
    parser.add_argument("--merge", action="store_true", help="copy the result")
    parser.add_argument(
        "--result", type=Path, default=tables.RESULTS / tables.ACCELERATOR
    )
    args, start = parser.parse_args(), time.monotonic()
    if args.merge:
        found = _read(args.out / "accelerator.json")
        if found["settings"]["small"]:
            raise SystemExit(f"{args.out} holds tiny pieces, which are no results.")
        record.replace(args.result, found)
        print(f"written: {args.result}")
        return
    settings = {"small": args.small, "device": device()}
    log = record.Log(args.out / "pieces.jsonl", settings)
    if args.plan:
        done = {row["piece"] for row in log.rows() if row["outcome"] == "done"}
        for piece in pieces(args):
            seconds = f"{expected(piece, log.rows()):.0f} s"
            print(piece.name, "done" if piece.name in done else seconds)
        return
    # An exception makes `execute` end its process; a plain SIGTERM does not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    spend(
        lambda: pieces(args),
        log,
        60 * args.minutes - (time.monotonic() - start),
        lambda group, seconds: execute(group, seconds, args.out),
        lambda: record.replace(args.out / "accelerator.json", merged(args, log)),
        args.at_once,
    )


if __name__ == "__main__":
    main()
