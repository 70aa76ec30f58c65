"""The tables of the papers, published numbers beside ours.

    python -m benchmarks.paper T1 --scale smoke
    python -m benchmarks.paper T3 T5 --scale medium --part 1/2
    python -m benchmarks.paper --scale smoke --merge

Scale `full` is the papers' setting, for an accelerator; `medium`, a narrow ResNet on a
part of CIFAR-10 for some epochs; `smoke`, small networks on the digits, seconds a cell.
Accuracies of `smoke` and `medium` say nothing about the papers: they show that the
commands work. Differences to published numbers mean something at scale `full` alone.

Each training is a run of `zosam_jax.train` (lottery tickets: `zosam_jax.lottery`) in a
folder of its own, and RUNS/SCALE/log.jsonl gets a line for each that is done: the same
command goes on after it was stopped. Tables share what they have in common. `--merge`
adds the log to `benchmarks/results/paper-SCALE.json`, and what that file has is not
trained again, unless the scale has changed.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import command_line, paper_tables, record, tables, throughput
from benchmarks.paper_plan import SCALES, TABLES, Cell, Scale, config
from zosam_jax import data, evaluate, lottery, train
from zosam_jax.cli import compilation_cache
from zosam_jax.lottery import LotteryConfig
from zosam_jax.runs import folder, metrics
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.progress import Lines
from zosam_jax.train import Divergence, TrainConfig

TRAINING, CORRUPTED, SPEED = "training", "corrupted", "speed"
ROUNDS = 10
"""Of the measurements of a step."""

_TELLING = {TRAINING: "accuracy", CORRUPTED: "corrupted", SPEED: "speed"}
"""A measure of each kind, which is there once that is done."""
_Values = dict[tuple[Cell, str], dict[int, float | None]]
"""Values by cell, measure and seed; None where a training diverged."""


class Paper:
    """The trainings of a scale, and the log of those that are done.

    Attributes:
      name: The scale.
      scale: What it stands for.
      runs: Folder of its runs and of its log.
      result: The result file.
      log: A line for each training, evaluation or timing that is done.
    """

    def __init__(self, name: str, runs: Path, data_dir: str | None, result: Path):
        """Reads nothing yet.

        Args:
          name: The scale.
          runs: Folder of the scales.
          data_dir: TFDS directory.
          result: The result file.
        """
        self.name, self.scale, self.runs = name, SCALES[name], runs / name
        self.result, self._data_dir = result, data_dir
        # As they are read back: JSON knows no tuples, and names keys by text.
        settings = json.loads(json.dumps(self.scale._asdict()))
        kept = ("base", "networks", "data", "examples", "dynamic", "rounds", "speed")
        self.log = record.Log(
            self.runs / "log.jsonl", {name: settings[name] for name in kept}
        )

    def done(self) -> dict[tuple[str, Cell, int], dict[str, Any]]:
        """Returns the lines of the log by kind, cell and seed."""
        return {
            (row["kind"], Cell(*row["cell"]), row["seed"]): row
            for row in self.log.rows()
        }

    def recorded(self) -> dict[str, Any]:
        """Returns the result file; nothing if it is of another scale, or not there."""
        if not self.result.exists():
            return {}
        found = json.loads(self.result.read_text())
        own = json.loads(json.dumps(self.scale._asdict()))
        # A file may have more seeds, or fewer.
        same = all(found["settings"].get(k) == own[k] for k in own if k != "seeds")
        return found if same else {}

    def values(self) -> _Values:
        """Returns what is measured: in the result file, and after that in the log."""
        found: _Values = {}
        for row in self.recorded().get("rows", ()):
            cell = Cell(*(row[name] for name in Cell._fields))
            own = found.setdefault((cell, row["measure"]), {})
            own.update({int(seed): value for seed, value in row["values"].items()})
        for (kind, cell, seed), row in self.done().items():
            for measure, value in _values(kind, row, self.scale).items():
                found.setdefault((cell, measure), {})[seed] = value
        return found

    def note(self, kind: str, cell: Cell, seed: int, found: Mapping[str, Any]) -> None:
        """Appends a line."""
        about = {k: record.environment()[k] for k in ("commit", "versions", "device")}
        own = {"kind": kind, "cell": list(cell), "seed": seed}
        self.log.append({**own, **found, **about})

    def config(self, cell: Cell, seed: int) -> TrainConfig | LotteryConfig:
        """Returns the configuration of a training."""
        return config(cell, seed, self.scale, self.runs / "runs", self._data_dir)

    def train(self, cell: Cell, seed: int) -> bool:
        """Trains, or goes on; returns False if interrupted."""
        made, display = self.config(cell, seed), Lines(60.0)
        given = _given(made, self.scale.examples)
        try:
            if isinstance(made, LotteryConfig):
                ended = lottery.run_lottery(made, display=display, dataset=given)
            else:
                ended = train.run(made, display=display, dataset=given)
        except Divergence:
            self.note(TRAINING, cell, seed, {"accuracy": None, "diverged": True})
            return True
        if ended.ended_early:
            return False
        self.note(TRAINING, cell, seed, _figures(_last(made)))
        return True

    def corrupt(self, cell: Cell, seed: int) -> bool:
        """Evaluates a training on corrupted images."""
        made = self.config(cell, seed)
        found = evaluate.evaluate(
            _last(made).folder,
            dataset=_given(made, self.scale.examples),
            **self.scale.corruptions,
        )
        names = found["corruptions"].values()
        values = [x for row in names for x in row["accuracy"]]
        clean = found["clean"]["accuracy"]
        figures = {"clean": clean, "corrupted": sum(values) / len(values)}
        self.note(CORRUPTED, cell, seed, figures)
        return True

    def time(self, network: str, labels: list[str]) -> dict[str, dict[str, float]]:
        """Returns images a second of each gradient, all timed in turn.

        Args:
          network: Label of the network.
          labels: Labels of gradients.
        """
        fields, (batch, side) = self.scale.networks[network], self.scale.speed
        problem = throughput.Problem(
            fields["model"], fields.get("width", 1.0), batch, side
        )
        steps = throughput.make_steps(problem, [*labels, "SGD"])
        seconds, passes = throughput.measure(steps, ROUNDS)
        rows = throughput.summarize(steps, seconds, passes, batch)
        return {
            row["step"]: {
                "speed": row["images_per_second"],
                "share": 100 * row["share_of_sgd"],
            }
            for row in rows
        }


def _given(
    made: TrainConfig | LotteryConfig, counts: tuple[int, int] | None
) -> data.Dataset | None:
    """The first examples of the data set; None: all, as the run reads them itself."""
    if counts is None:
        return None
    own = made.train if isinstance(made, LotteryConfig) else made
    return _first(own.dataset, own.data_dir, *counts)


@functools.cache
def _first(name: str, data_dir: str | None, train: int, test: int) -> data.Dataset:
    found = data.load(name, data_dir)
    if not isinstance(found, data.Dataset):
        raise TypeError(f"{name} is streamed: only a set in memory can be cut.")
    return dataclasses.replace(
        found,
        train_images=found.train_images[:train],
        train_labels=found.train_labels[:train],
        test_images=found.test_images[:test],
        test_labels=found.test_labels[:test],
    )


def _last(made: TrainConfig | LotteryConfig) -> TrainConfig:
    """The run whose figures count: of a search, that of the last round."""
    if isinstance(made, TrainConfig):
        return made
    last = made.folder / f"round-{made.total_rounds:02}"
    return dataclasses.replace(made.train, method="ticket", out=str(last))


def _figures(made: TrainConfig) -> dict[str, Any]:
    """What the log keeps of a finished run."""
    summary = folder.read_summary(made)
    assert summary is not None
    lines = metrics.read(made.folder / "metrics.jsonl")
    return {
        "accuracy": summary["test_accuracy"],
        "curve": [line["accuracy"] for line in lines if line["split"] == "test"],
        "diverged": False,
        "sparsity": summary["sparsity"],
        "parameters": summary["parameters"],
        "seconds": summary["seconds"],
    }


def jobs(
    names: Iterable[str], paper: Paper, seeds: int
) -> Iterator[tuple[str, Cell, int]]:
    """Yields what the tables need, each once: `(kind, cell, seed)`, first seeds first.

    Args:
      names: Tables.
      paper: The scale.
      seeds: Number of seeds.
    """
    seen = set()
    chosen = [TABLES[name] for name in names]
    for seed in range(seeds):
        for table in chosen:
            for cell in table.of(paper.name):
                kinds = [TRAINING]
                if "corrupted" in table.measures:
                    kinds.append(CORRUPTED)
                if "speed" in table.measures and seed == 0:
                    kinds.append(SPEED)
                for job in ((kind, cell, seed) for kind in kinds):
                    if job not in seen:
                        seen.add(job)
                        yield job


def execute(paper: Paper, names: list[str], seeds: int, part: str) -> bool:
    """Does what is left; returns False if interrupted.

    Args:
      paper: The scale.
      names: Tables.
      seeds: Number of seeds.
      part: "i/n". Only the first part times steps.
    """
    every = list(jobs(names, paper, seeds))
    trained = record.own_part((job for job in every if job[0] == TRAINING), part)
    own = {job[1:] for job in trained}
    done, known = paper.done(), paper.values()

    def is_left(kind: str, cell: Cell, seed: int) -> bool:
        return (kind, cell, seed) not in done and seed not in known.get(
            (cell, _TELLING[kind]), {}
        )

    left = [j for j in every if j[0] != SPEED and j[1:] in own and is_left(*j)]
    # What is left to be evaluated has to be trained, wherever its accuracy is known.
    again = [job[1:] for job in left if job[0] == CORRUPTED]
    needed = [(TRAINING, *job) for job in again if (TRAINING, *job) not in done]
    left = list(dict.fromkeys([*needed, *left]))
    for number, (kind, cell, seed) in enumerate(left, start=1):
        said = ", ".join(map(str, cell))
        print(f"{number} of {len(left)}: {kind}, {said}, seed {seed}", flush=True)
        trained = paper.done().get((TRAINING, cell, seed), {})
        if kind == CORRUPTED and trained["diverged"]:
            continue
        act = paper.train if kind == TRAINING else paper.corrupt
        if not act(cell, seed):
            return False
    if part.startswith("1/"):
        timed = [job for job in every if job[0] == SPEED and is_left(*job)]
        _time(paper, [job[1] for job in timed])
    return True


def _time(paper: Paper, cells: list[Cell]) -> None:
    """Times the steps of some cells, network by network."""
    for network in dict.fromkeys(cell.network for cell in cells):
        own = [cell for cell in cells if cell.network == network]
        print(f"timing the steps of {network}", flush=True)
        found = paper.time(network, [cell.gradient for cell in own])
        for cell in own:
            paper.note(SPEED, cell, 0, found[cell.gradient])


def measured(paper: Paper) -> list[dict[str, Any]]:
    """Returns a row for each cell, measure and table with at least one value."""
    return [
        {**cell._asdict(), "measure": measure, "values": found}
        for (cell, measure), found in paper.values().items()
    ]


def _values(kind: str, row: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The measures of a line of the log; a training that diverged has none."""
    if kind == SPEED:
        return {name: row[name] for name in ("speed", "share")}
    if kind == CORRUPTED:
        return {name: 100 * row[name] for name in ("clean", "corrupted")}
    if row["diverged"]:
        return {"accuracy": None, "epochs": None}
    reached = [i for i, x in enumerate(row["curve"], 1) if x >= scale.target]
    # A training that does not reach the target is not left out of the mean.
    return {
        "accuracy": 100 * row["accuracy"],
        "epochs": reached[0] if reached else None,
    }


def show(paper: Paper, names: Iterable[str]) -> None:
    """Prints the tables of a scale."""
    rows = measured(paper)
    for name in names:
        table = TABLES[name]
        print(f"\n{name}: {table.title}. Scale: {paper.name}.\n")
        cells = table.all_of(paper.name)
        print(tables.markdown(paper_tables.lines(table, cells, rows, paper.name)))
    print(f"\n{paper_tables.NOTES[paper.name]}")


def merge(paper: Paper) -> None:
    """Adds the log to the result file."""
    lines = paper.log.rows()
    if not lines:
        raise SystemExit(
            f"{paper.log.path} has no lines: run `python -m benchmarks.paper --scale "
            f"{paper.name}` first, or name its folder with --runs."
        )
    before = paper.recorded().get("settings", {})
    sessions = list(before.get("sessions", ()))
    for line in lines:
        about = {k: line[k] for k in ("commit", "versions", "device")}
        if about not in sessions:
            sessions.append(about)
    settings = {**paper.scale._asdict(), "scale": paper.name, "sessions": sessions}
    record.write(paper.result, {"settings": settings, "rows": measured(paper)})


def main() -> None:
    """Trains what the tables lack and prints them, or merges."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        default=list(TABLES),
        help=command_line.listed("tables", list(TABLES)),
    )
    parser.add_argument(
        "--scale", default="smoke", choices=list(SCALES), help="size of the trainings"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, help="number of seeds; default: the scale's"
    )
    parser.add_argument(
        "--part", metavar="I/N", default="1/1", help="the I-th of N processes"
    )
    parser.add_argument("--merge", action="store_true", help="write the result file")
    parser.add_argument("--show", action="store_true", help="print the tables alone")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="TFDS directory; default: TFDS_DATA_DIR"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        default=Path("runs/paper"),
        help="folder of the runs and of their log",
    )
    parser.add_argument(
        "--result",
        metavar="FILE",
        type=Path,
        help="result file; default: benchmarks/results/paper-SCALE.json",
    )
    args = parser.parse_args()
    if unknown := [name for name in args.tables if name not in TABLES]:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    if args.seeds is not None and args.seeds < 1:
        parser.error("--seeds must be at least 1")
    try:
        _run(args)
    except (RunError, data.DatasetError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error


def _run(args: argparse.Namespace) -> None:
    result = args.result or tables.RESULTS / f"paper-{args.scale}.json"
    paper = Paper(args.scale, args.runs, args.data_dir, result)
    if args.merge:
        merge(paper)
    elif not args.show:
        # The trainings of all seeds run the same programs.
        compilation_cache.use()
        seeds = args.seeds or paper.scale.seeds
        if not execute(paper, args.tables, seeds, args.part):
            raise SystemExit(130)
    show(paper, args.tables)
    if args.part != "1/1" and not args.merge:
        command = command_line.merging("benchmarks.paper", sys.argv[1:])
        print(f"this part is done; when all are: {command}", flush=True)


if __name__ == "__main__":
    main()
