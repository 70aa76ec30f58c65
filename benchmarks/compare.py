"""Compares the speed of two versions of the library, and fails if one step is slower.

    python -m benchmarks.compare HEAD~20 HEAD
    python -m benchmarks.compare main . --turns 8

A version is a Git revision or a folder with a checkout; `.` is the working tree. Either
way the benchmark is that of the current folder, and `zosam_jax` the version's. In each
turn a new process of each version compiles the steps, without the persistent cache, and
then runs them in rounds: training steps of 128 images of 32x32 pixels, and updates of
the network's weights under RigL. Only one of the two processes works at a time. The
order of the steps, and that of the versions, is random. With `--model resnet20`, most
of the time goes to compilation.

A step has one ratio for each turn, the median of new / old over its rounds. The table
shows the geometric mean of these ratios, with a 95 % interval by Student's t. The exit
status is 1 if an interval lies above 1.05.
"""

import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import command_line
from zosam_jax import models
from zosam_jax.runs import intervals

LIMIT = 1.05
STEPS = ("SGD", "SAM", "ZO-SAM", "RigL, ordinary update", "RigL, new masks")
COMPILED = "ZO-SAM"
"""The step whose compilation is compared too."""

SEED = 0
Values = list[list[float]]
"""Measurements by turn and round."""


class Row(NamedTuple):
    """How a figure differs between the versions; less is better.

    Attributes:
      name: The figure.
      old: Its median in the old version.
      new: Its median in the new one.
      ratio: New / old.
      low: Lower end of the ratio's interval.
      high: Upper end.
    """

    name: str
    old: float
    new: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.low > LIMIT:
            return "slower"
        return "not slower" if self.high <= LIMIT else "unclear"


def compared(name: str, old: Values, new: Values) -> Row:
    """Returns how a figure differs.

    Args:
      name: The figure.
      old: Its values in the old version, at least two turns.
      new: Those in the new one, measured beside them.
    """
    ratios = [
        statistics.median(b / a for a, b in zip(*turns, strict=True))
        for turns in zip(old, new, strict=True)
    ]
    found = intervals.interval([math.log(x) for x in ratios])
    middle, half = found.mean, found.half_width
    ends = (math.exp(x) for x in (middle, middle - half, middle + half))
    medians = (
        statistics.median(x for turn in values for x in turn) for values in (old, new)
    )
    return Row(name, *medians, *ends)


class Version:
    """A process that runs the steps of one version."""

    def __init__(self, name: str, folder: Path, model: str):
        """Starts it.

        Args:
          name: What the command line calls the version.
          folder: Its checkout.
          model: Name of the network.
        """
        self.name = name
        program = Path(__file__).with_name("compared_steps.py")
        # -P keeps the folder of the program off the path.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(program), model],
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str, step: str) -> dict[str, float]:
        """Returns the answer to a request, see `compared_steps`.

        Args:
          what: "compile" or "run".
          step: One of `STEPS`.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([what, step]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(
                f"{self.name} does not {what} {step}: the error stands above. Compare "
                "with a newer version, or leave the step out by --steps."
            )
        return json.loads(answer)

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()


def measure(
    versions: Mapping[str, Path],
    model: str,
    steps: Sequence[str],
    turns: int,
    rounds: int,
) -> dict[str, tuple[Values, Values]]:
    """Returns the values of each figure in the old version and in the new one.

    Args:
      versions: The two checkouts, the old one first, by name.
      model: Name of the network.
      steps: Some of `STEPS`.
      turns: Number of processes of each version.
      rounds: Measurements of each step in each process.
    """
    order = random.Random(SEED)
    figures = [*steps]
    if COMPILED in steps:
        figures += [f"{COMPILED}, CPU s to compile", f"{COMPILED}, instructions"]
    found: dict[str, tuple[Values, Values]] = {name: ([], []) for name in figures}
    for turn in range(turns):
        with contextlib.ExitStack() as stack:
            running = []
            for name, folder in versions.items():
                running.append(Version(name, folder, model))
                stack.callback(running[-1].end)
            pair = list(enumerate(running))
            for values in found.values():
                for own in values:
                    own.append([])
            for step in steps:
                for index, version in order.sample(pair, 2):
                    taken = version.ask("compile", step)
                    if step == COMPILED:
                        for name, key in zip(figures[-2:], taken, strict=True):
                            found[name][index][-1].append(taken[key])
            for _ in range(rounds):
                for step in order.sample(steps, len(steps)):
                    for index, version in order.sample(pair, 2):
                        seconds = version.ask("run", step)["seconds"]
                        found[step][index][-1].append(seconds)
        print(f"turn {turn + 1} of {turns}", flush=True)
    return found


@contextlib.contextmanager
def checkout(version: str, root: Path = command_line.ROOT) -> Iterator[Path]:
    """Yields the folder of a version; a work tree that was made for it is removed.

    Args:
      version: A folder that holds `zosam_jax`, or a revision.
      root: The repository.
    """
    if (Path(version) / "zosam_jax" / "__init__.py").exists():
        yield Path(version).resolve()
        return
    commit = _git(root, "rev-parse", "--verify", "--end-of-options", f"{version}^0")
    if commit is None:
        raise SystemExit(
            f"{version!r} is neither a revision of this repository nor a folder with "
            "zosam_jax in it. Name a commit, a branch, a tag or a checkout."
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "version").resolve()
        if _git(root, "worktree", "add", "--detach", str(folder), commit) is None:
            raise SystemExit(f"git worktree add failed for {version!r}; see above.")
        try:
            yield folder
        finally:
            _git(root, "worktree", "remove", "--force", str(folder))


def _git(root: Path, *words: str) -> str | None:
    """Returns what git prints; None if it fails."""
    command = ["git", "-C", str(root), *words]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else None


def table(rows: Sequence[Row], old: str, new: str) -> Table:
    """Returns the rows as a table.

    Args:
      rows: What `compared` returns.
      old: Name of the old version.
      new: Name of the new one.
    """
    found = Table(title=f"{new} against {old}", caption="steps: milliseconds")
    found.add_column("figure", no_wrap=True)
    for column in ("old", "new", "new / old", "95 % interval", "verdict"):
        found.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        factor = 1e3 if row.name in STEPS else 1
        found.add_row(
            row.name,
            f"{factor * row.old:.4g}",
            f"{factor * row.new:.4g}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            row.verdict,
        )
    return found


def main() -> int:
    """Compares, prints the table, and says whether nothing is slower."""
    parser = command_line.parser(__doc__)
    parser.add_argument("old", metavar="OLD", help="revision or checkout")
    parser.add_argument("new", metavar="NEW", help="revision or checkout")
    of_images = [name for name in models.names() if models.kind(name) == "image"]
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="mlp",
        choices=of_images,
        help=command_line.listed("model", of_images),
    )
    parser.add_argument(
        "--steps",
        metavar="STEP",
        nargs="+",
        choices=STEPS,
        default=list(STEPS),
        help=command_line.listed("steps", STEPS),
    )
    parser.add_argument(
        "--turns", metavar="N", type=int, default=5, help="processes of each version"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=7, help="measurements in a process"
    )
    args = parser.parse_args()
    if args.turns < 2 or args.rounds < 1:
        parser.error("an interval needs --turns of at least 2, and --rounds of 1.")
    # An exception removes the work trees; a plain SIGTERM does not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with contextlib.ExitStack() as stack:
        pair: dict[str, Any] = {}
        for label, version in (("old", args.old), ("new", args.new)):
            pair[f"{version} ({label})"] = stack.enter_context(checkout(version))
        found = measure(pair, args.model, args.steps, args.turns, args.rounds)
    rows = [compared(name, *values) for name, values in found.items()]
    Console(width=100).print(table(rows, args.old, args.new))
    return int(any(row.low > LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
