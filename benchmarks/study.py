"""Which gradient pays: accuracy gained over SGD, at equal epochs and at equal time.

    python -m benchmarks.study --problems digits-noise40 --part 1/2
    python -m benchmarks.study --problems digits-noise40 --part 2/2
    python -m benchmarks.study --problems digits-noise40 --merge

The parts are processes side by side, and the same commands go on after they were
stopped, from the line that each training leaves in `--results`. The study has four
stages, each of which needs the one before it:

1. `tune`: each method trains with as many radii as the others, on seeds of its own,
   and the radius with the best mean accuracy on held-out images wins.
2. `prices`: the time of a step, in steps of SGD, all timed in turn in one process. Only
   part 1 does this, again and again until the machine is quiet enough.
3. `epochs`: trainings at that radius, of equal numbers of epochs.
4. `time`: trainings of equal time, that of SAM. A cheaper method gets more epochs.

`--merge` writes the result of each problem: paired differences to SGD with 95 %
intervals. The accuracy is that after the last step. A training whose loss is not finite
counts as the accuracy of guessing.
"""

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import command_line, record, side_by_side, study_report, tables
from benchmarks.side_by_side import Result
from benchmarks.study_plan import CONTENDERS, PROBLEMS, RADII, SAM, SGD, Training
from zosam_jax import data
from zosam_jax.cli import compilation_cache
from zosam_jax.gradients.transformation import estimate
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.progress import Lines
from zosam_jax.train import Divergence, build, choices, run
from zosam_jax.train import step as steps
from zosam_jax.train.objects import Objects

TUNE_SEEDS = (1_000, 1_001)
HELD_OUT = 0.2
"""Fraction of the training images that the trainings of stage `tune` hold out."""
WINDOW = 0.05
"""Seconds for which SGD's steps are timed at once. Single steps are too short."""
AGAIN = "SGD, again"
TOLERANCE = 0.1
"""Largest deviation of SGD from itself at which times are kept."""


class Study:
    """The trainings of a problem, and the log of those that are done.

    Attributes:
      name: The problem.
      args: The command line.
      methods: Those of the command line that the problem compares.
      log: A line for each finished training.
    """

    def __init__(self, name: str, args: argparse.Namespace):
        """Reads nothing yet.

        Args:
          name: The problem.
          args: The command line.
        """
        self.name, self.args = name, args
        # As they are read back: JSON knows no tuples.
        settings = json.loads(json.dumps(PROBLEMS[name]._asdict()))
        own = settings.pop("methods")
        self.methods = [m for m in args.methods if own is None or m in own]
        self.folder = args.results / name
        self.log = record.Log(self.folder / "trainings.jsonl", settings)
        self._dataset: data.Dataset | None = None

    def dataset(self) -> data.Dataset:
        """Returns the examples."""
        if self._dataset is None:
            problem = PROBLEMS[self.name]
            found = data.load(problem.fields["dataset"], self.args.data_dir)
            if not isinstance(found, data.Dataset):
                raise TypeError("the study needs a data set in memory.")
            self._dataset = dataclasses.replace(
                found,
                train_images=found.train_images[: problem.train],
                train_labels=found.train_labels[: problem.train],
            )
        return self._dataset

    def config(self, training: Training) -> TrainConfig:
        """Returns the configuration of a training."""
        label = training.method.replace(", ", "-").replace(" ", "-").replace("/", "of")
        name = f"{label}-r{training.rho:g}-s{training.seed}-e{training.epochs}"
        return TrainConfig(
            **dict(PROBLEMS[self.name].fields)
            | {
                "gradient": training.method,
                "seed": training.seed,
                "epochs": training.epochs,
                "validation": HELD_OUT if training.stage == "tune" else 0.0,
                "checkpoint_every": training.epochs,
                "data_dir": self.args.data_dir,
                "out": str(self.args.runs / self.name / training.stage / name),
            }
        )

    def done(self) -> dict[Training, Result]:
        """Returns the results of the finished trainings."""
        rows = self.log.rows()
        return {
            Training(*(row[name] for name in Training._fields)): Result(
                row["accuracy"], row["diverged"]
            )
            for row in rows
        }

    def execute(self, trainings: Sequence[Training]) -> bool:
        """Trains what is not done; returns False if interrupted.

        Args:
          trainings: They differ in radius and seed alone.
        """
        done = self.done()
        left = [training for training in trainings if training not in done]
        if not left:
            return True
        print(_announced(left), flush=True)
        if PROBLEMS[self.name].side_by_side:
            results = side_by_side.train(
                self.config(left[0]),
                self.dataset(),
                CONTENDERS[left[0].method].gradient,
                [side_by_side.Lane(each.rho, each.seed) for each in left],
            )
            self._note(left, results)
            return True
        for training in left:
            result = self.run(training)
            if result is None:
                return False
            self._note([training], [result])
        return True

    def _note(self, trainings: Sequence[Training], results: Sequence[Result]) -> None:
        about = {k: record.environment()[k] for k in ("commit", "versions", "device")}
        for training, result in zip(trainings, results, strict=True):
            self.log.append({**training._asdict(), **result._asdict(), **about})

    def run(self, training: Training) -> Result | None:
        """Trains, or goes on; returns None if interrupted."""
        config, dataset = self.config(training), self.dataset()
        contender = CONTENDERS[training.method]
        gradient = contender.gradient(training.rho, None)
        chosen = choices.choose(config, gradient=gradient)
        given = Objects(dataset=dataset, gradient=gradient)
        total = build.experiment(config, given, chosen).optimizer_steps
        gradient = contender.gradient(training.rho, total)
        try:
            ended = run(config, gradient=gradient, dataset=dataset, display=Lines(60.0))
        except Divergence:
            return Result(1 / dataset.num_classes, diverged=True)
        if ended.ended_early:
            return None
        assert ended.summary is not None
        on = "validation_accuracy" if training.stage == "tune" else "test_accuracy"
        return Result(ended.summary[on], diverged=False)

    def tuning(self) -> Iterator[list[Training]]:
        """Yields the trainings that choose the radii, method by method."""
        epochs = PROBLEMS[self.name].fields["epochs"]
        for label in self.methods:
            if radii := CONTENDERS[label].radii:
                yield [
                    Training(self.name, "tune", label, rho, seed, epochs)
                    for seed in TUNE_SEEDS
                    for rho in radii
                ]

    def radii(self) -> dict[str, float]:
        """Returns the best radius of each method whose tuning is done; 0 for none."""
        done = self.done()
        best = {m: 0.0 for m in self.methods if not CONTENDERS[m].radii}
        for trainings in self.tuning():
            if not all(training in done for training in trainings):
                continue
            found: dict[float, list[float]] = {}
            for training in trainings:
                found.setdefault(training.rho, []).append(done[training].accuracy)
            best[trainings[0].method] = max(
                found, key=lambda rho, found=found: statistics.fmean(found[rho])
            )
        return best

    def finals(self, methods: Sequence[str]) -> Iterator[list[Training]]:
        """Yields the trainings of the comparison whose radius and length are known.

        Args:
          methods: Labels of the methods.
        """
        epochs, prices = PROBLEMS[self.name].fields["epochs"], self.prices()
        for label, rho in self.radii().items():
            for stage in ("epochs", "time") if label in methods else ():
                count = round(epochs * CONTENDERS[label].epochs)
                if stage == "time":
                    if prices is None or count != epochs:
                        continue
                    count = round(epochs * prices[SAM] / prices[label])
                    if count == epochs:
                        continue
                yield [
                    Training(self.name, stage, label, rho, seed, count)
                    for seed in range(self.args.seeds)
                ]

    def prices(self) -> dict[str, float] | None:
        """Returns the time of a step of each method, in steps of SGD; None: not yet."""
        path = self._file("prices")
        if not path.exists():
            return None
        timed = json.loads(path.read_text())
        return _whole(
            {label: statistics.median(ratios) for label, ratios in timed.items()}
        )

    def passes(self) -> dict[str, float]:
        """Returns the gradients of a step of each method, as far as they are counted.

        A loss without its gradient counts as a third of a gradient.
        """
        path = self._file("passes")
        return _whole(json.loads(path.read_text()) if path.exists() else {})

    def measure(self) -> None:
        """Times and counts the steps of all methods, unless that is done.

        Times are not kept where SGD differs from itself: the machine was busy.
        """
        methods = [m for m in self.methods if CONTENDERS[m].epochs == 1]
        if not (path := self._file("passes")).exists():
            self._write(path, count_passes(self, methods))
        if not (path := self._file("prices")).exists():
            found = time_steps(self, methods, self.args.rounds)
            again = statistics.median(found[AGAIN])
            if abs(again - 1) <= TOLERANCE:
                self._write(path, found)
                return
            print(
                f"{self.name}: SGD took {again:.2f} times as long as SGD. The machine "
                "is busy, and the times are not kept.",
                flush=True,
            )

    def sessions(self) -> list[dict[str, Any]]:
        """Returns each combination of commit, versions and device that trained."""
        found = []
        for row in self.log.rows():
            kept = {k: row[k] for k in ("commit", "versions", "device")}
            if kept not in found:
                found.append(kept)
        return found

    def _write(self, path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _whole(perturbed: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean price of a step of a whole training, in steps of SGD.

    Args:
      perturbed: The price of a perturbed step by method.
    """
    # A shorter training takes the steps of SGD.
    shorter = {m: 1.0 for m, row in CONTENDERS.items() if row.epochs != 1}
    known = {**perturbed, **shorter} if perturbed else {}
    return {
        label: 1 + row.share * (known[label] - 1)
        for label, row in CONTENDERS.items()
        if label in known
    }


def time_steps(
    study: Study, labels: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """Returns the time of a perturbed step over that of SGD's, round by round.

    SGD's second measurement is among them, as `AGAIN`.

    Args:
      study: Gives model and examples.
      labels: The methods, SGD among them.
      rounds: Number of ratios; two further rounds warm up.
    """
    programs, states = {}, {}
    for label in labels:
        programs[label], states[label] = _program(study, label)
    programs[AGAIN], states[AGAIN] = programs[SGD], states[SGD]
    timed = [*labels, AGAIN]
    ratios: dict[str, list[float]] = {label: [] for label in timed}
    periodic = {label: CONTENDERS[label].period for label in labels} | {AGAIN: 1}
    periods = 1
    for turn in range(rounds + 2):
        seconds = {}
        for label in timed:
            count = periods * periodic[label]
            start = time.perf_counter()
            for _ in range(count):
                states[label] = programs[label](states[label])
            jax.block_until_ready(states[label])
            seconds[label] = (time.perf_counter() - start) / count
        if turn < 2:
            periods = math.ceil(WINDOW / seconds[SGD])
            continue
        for label in timed:
            ratios[label].append(seconds[label] / seconds[SGD])
    return ratios


def count_passes(study: Study, labels: Sequence[str]) -> dict[str, float]:
    """Returns the gradients of a perturbed step; a loss alone is a third of one.

    Args:
      study: Gives model and examples.
      labels: The methods.
    """
    counts = {}
    for label in labels:
        program, state = _program(study, label)
        found, period = 0.0, CONTENDERS[label].period
        for _ in range(period):
            state = program(state)
            info = estimate(state.opt_state).info
            found += float(info.backward_evaluations + info.forward_evaluations / 3)
        counts[label] = found / period
    return counts


def _program(study: Study, label: str) -> tuple[Callable[[Any], Any], Any]:
    """Returns the compiled step of a method on one batch, and its first state."""
    row, epochs = CONTENDERS[label], PROBLEMS[study.name].fields["epochs"]
    config = study.config(Training(study.name, "epochs", label, 0.0, 0, epochs))
    # Every step is perturbed: `prices` knows the share of those that would be.
    gradient = row.gradient(RADII[0], None)
    given = Objects(dataset=study.dataset(), gradient=gradient)
    chosen = choices.choose(config, gradient=gradient)
    experiment = build.experiment(config, given, chosen)
    size = experiment.batch_size
    images = jnp.asarray(study.dataset().train_images[:size])
    labels = jnp.asarray(study.dataset().train_labels[:size])
    state = jax.jit(lambda x, y: steps.init(experiment, x, y))(images, labels)
    compiled = jax.jit(
        lambda state: steps.train_step(experiment, state, images, labels, None)
    )
    return compiled, compiled(state)


def train(study: Study, args: argparse.Namespace) -> bool:
    """Trains this part of a study; returns False if interrupted."""
    if not all(map(study.execute, record.own_part(study.tuning(), args.part))):
        return False
    # The methods are dealt out, not their trainings: which of these are known changes.
    methods = record.own_part(study.methods, args.part)
    while True:
        if args.part.startswith("1/"):
            study.measure()
        # Other parts may still tune, or time the steps.
        radii, prices = study.radii(), study.prices()
        if not all(map(study.execute, study.finals(methods))):
            return False
        if len(radii) == len(study.methods) and prices is not None:
            return True
        time.sleep(10)


def _announced(trainings: Sequence[Training]) -> str:
    """Returns a line on trainings that differ in radius and seed alone.

    >>> _announced([Training("digits", "time", "SAM", r, 3, 60) for r in (0.05, 0.1)])
    'digits, time: SAM, rho 0.05 0.1, seeds 3, 60 epochs: 2 trainings'
    """
    first = trainings[0]
    radii = " ".join(f"{rho:g}" for rho in sorted({each.rho for each in trainings}))
    seeds = " ".join(str(seed) for seed in sorted({each.seed for each in trainings}))
    return (
        f"{first.problem}, {first.stage}: {first.method}, rho {radii}, seeds {seeds}, "
        f"{first.epochs} epochs: {len(trainings)} trainings"
    )


def merge(args: argparse.Namespace) -> None:
    """Writes the result file from the finished trainings, and prints the table."""
    for name in args.problems:
        study = Study(name, args)
        planned = [*study.tuning(), *study.finals(study.methods)]
        known = study.radii() if study.prices() else {}
        wanted, done = set(itertools.chain(*planned)), study.done()
        missing = [m for m in study.methods if m not in known]
        if missing or not wanted <= done.keys():
            lacking = f", and none to compare of {', '.join(missing)}"
            raise SystemExit(
                f"{name}: {len(wanted & done.keys())} of {len(wanted)} trainings are "
                f"done{lacking if missing else ''}. Run the study to its end with "
                "these --methods and --seeds."
            )
    for name in args.problems:
        study = Study(name, args)
        rows = _rows(study)
        settings = {
            "problem": PROBLEMS[name]._asdict(),
            "radii": {label: list(CONTENDERS[label].radii) for label in study.methods},
            "tune_seeds": TUNE_SEEDS,
            "held_out": HELD_OUT,
            "trained": study.sessions(),
        }
        path = study.folder / study_report.RESULT
        record.write(path, {"settings": settings, "rows": rows})
        print(f"\n{name}\n\n{tables.markdown(study_report.table(rows))}\n")
    known = study_report.results(args.results).values()
    study_report.draw(list(itertools.chain(*known)), args.results / "gains.png")


def _rows(study: Study) -> list[dict[str, Any]]:
    groups = study.finals(study.methods)
    costs = {"time": study.prices() or {}, "passes": study.passes()}
    return study_report.summarize(groups, study.done(), costs)


def main() -> None:
    """Trains a part, or merges."""
    parser = command_line.parser(__doc__)
    names, methods = list(PROBLEMS), list(CONTENDERS)
    parser.add_argument(
        "--problems",
        nargs="+",
        metavar="NAME",
        default=names[:2],
        choices=names,
        help=command_line.listed("problems", names),
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="LABEL",
        default=methods,
        choices=methods,
        help=command_line.listed("methods", methods),
    )
    parser.add_argument(
        "--part", metavar="I/N", default="1/1", help="the I-th of N processes"
    )
    parser.add_argument("--merge", action="store_true", help="write the result file")
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=5, help="number of seeds, from 0"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=15, help="rounds of stage prices"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="TFDS directory; default: TFDS_DATA_DIR"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        default=Path("runs/study"),
        help="folder of the runs that go on when interrupted",
    )
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=tables.RESULTS / "study",
        help="a folder for each problem: its finished trainings, and what they say",
    )
    args = parser.parse_args()
    if not {SGD, SAM} <= set(args.methods):
        parser.error(f"--methods: {SGD} and {SAM} are what the others are compared to")
    # The trainings of all seeds run the same programs.
    compilation_cache.use()
    if args.merge:
        merge(args)
    elif not all(train(Study(name, args), args) for name in args.problems):
        raise SystemExit(130)
    else:
        merge_command = command_line.merging("benchmarks.study", sys.argv[1:])
        print(f"this part is done; when all are: {merge_command}", flush=True)


if __name__ == "__main__":
    main()
