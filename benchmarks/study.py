"""Which gradient pays: accuracy gained over SGD, at equal epochs and at equal time.

    python -m benchmarks.study --problems digits-noise40 --part 1/2
    python -m benchmarks.study --problems digits-noise40 --part 2/2
    python -m benchmarks.study --merge

The parts are processes side by side, and the same commands go on after they were
stopped. The study has four stages, each of which needs the one before it:

1. `prices`: the time of a step, in steps of SGD, all timed in turn in one process. Only
   part 1 does this.
2. `tune`: each method trains with as many radii as the others, on seeds of its own,
   and the radius with the best mean accuracy on held-out images wins.
3. `epochs`: trainings at that radius, of equal numbers of epochs.
4. `time`: trainings of equal time, that of SAM. A cheaper method gets more epochs.

`--merge` writes the result file: paired differences to SGD with 95 % intervals. The
accuracy is that after the last step. A training whose loss is not finite counts as the
accuracy of guessing.
"""

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import zosam_jax as zs
from benchmarks import intervals, record, side_by_side, tables
from benchmarks.side_by_side import Result
from zosam_jax import data
from zosam_jax.cli import compilation_cache
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.progress import Lines
from zosam_jax.train import build, choices, run
from zosam_jax.train import step as steps
from zosam_jax.train.objects import Objects

SGD, SAM = "SGD", "SAM"
TUNE_SEEDS = (1_000, 1_001)
HELD_OUT = 0.2
"""Fraction of the training images that the trainings of stage `tune` hold out."""

RADII = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
LARGE_RADII = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""For geometries that measure a perturbation relative to the weights."""
FILTER_RADII = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""For noise on every weight, relative to the norm of its filter."""

WINDOW = 0.05
"""Seconds for which SGD's steps are timed at once. Single steps are too short."""

Limit = Callable[[GradientEstimator, int], GradientEstimator]
"""`(gradient, optimizer steps of the training) -> gradient`, perturbed less often."""


class Contender(NamedTuple):
    """A method of the comparison.

    Attributes:
      make: Its constructor.
      options: Options of the constructor, without the radius.
      radii: The radii to try. All methods with a radius try equally many.
      limit: Which steps are perturbed; None for all.
      share: Fraction of the steps that are perturbed; the others cost one of SGD.
      period: Steps whose mean is one measurement of time, where steps differ.
      epochs: Fraction of the problem's epochs, for a control that stops early.
    """

    make: Callable[..., GradientEstimator]
    options: Mapping[str, Any] = {}
    radii: Sequence[float] = RADII
    limit: Limit | None = None
    share: float = 1.0
    period: int = 1
    epochs: float = 1.0

    def gradient(self, rho: float, total_steps: int | None) -> GradientEstimator:
        """Returns the gradient.

        Args:
          rho: Radius; not used by a method without radii.
          total_steps: Optimizer steps of the training; None: all steps are perturbed.
        """
        radius = {"rho": rho} if self.radii else {}
        made = self.make(**radius, **self.options)
        if self.limit is None or total_steps is None:
            return made
        return self.limit(made, total_steps)


def _late(fraction: float) -> Limit:
    return lambda gradient, total: zs.late(gradient, round((1 - fraction) * total))


_GUIDED = {"directions": "guided"}
CONTENDERS: dict[str, Contender] = {
    SGD: Contender(zs.backprop, radii=()),
    SAM: Contender(zs.sam),
    "SAM, 1/4 of the batch": Contender(zs.sam, {"ascent_fraction": 1 / 4}),
    "SAM, 1/8 of the batch": Contender(zs.sam, {"ascent_fraction": 1 / 8}),
    "SAM, 1/16 of the batch": Contender(zs.sam, {"ascent_fraction": 1 / 16}),
    "SAM, last half": Contender(zs.sam, limit=_late(1 / 2), share=1 / 2),
    "SAM, last quarter": Contender(zs.sam, limit=_late(1 / 4), share=1 / 4),
    "SAM, every second step": Contender(
        zs.sam, limit=lambda g, _: zs.every(g, 2), share=1 / 2
    ),
    "RST, 1/2": Contender(
        zs.sam, limit=lambda g, _: zs.randomly(g, 1 / 2), share=1 / 2
    ),
    "ASAM": Contender(zs.asam, radii=LARGE_RADII),
    "S2-SAM": Contender(zs.s2sam),
    "VaSSO": Contender(zs.vasso),
    "F-SAM": Contender(zs.fsam),
    "ESAM": Contender(zs.esam),
    "LookSAM, k=5": Contender(zs.looksam, {"every": 5}, period=5),
    "ZO-SAM": Contender(zs.zosam),
    "guided ZO-SAM": Contender(zs.zosam, _GUIDED),
    "guided ZO-SAM, 1/4 of the batch": Contender(
        zs.zosam, {**_GUIDED, "ascent_fraction": 1 / 4}
    ),
    "SGD, 1/2 of the epochs": Contender(zs.backprop, radii=(), epochs=1 / 2),
    "SGD, 1/4 of the epochs": Contender(zs.backprop, radii=(), epochs=1 / 4),
    "RWP": Contender(zs.rwp, radii=FILTER_RADII),
    "random, random sign": Contender(zs.random_sign),
}
"""SGD is what gains are over, and SAM the full-price method. The last four rows are
controls: a shorter training, which remembers fewer wrong labels, and perturbations
without a look at the loss."""


class Problem(NamedTuple):
    """A training on which the methods are compared.

    Attributes:
      fields: Its configuration, without seed and gradient.
      train: Number of training examples, from the front; None for all.
      side_by_side: Whether the network is so small that many of them train in one
        program. Otherwise each training is a run of `zosam_jax.train`.
    """

    fields: Mapping[str, Any]
    train: int | None = None
    side_by_side: bool = False


_MLP = {"dataset": "digits", "model": "mlp", "epochs": 60, "augment": ()}
_CIFAR = {
    "dataset": "cifar10",
    "model": "resnet20",
    "width": 0.5,
    "batch_size": 128,
    "warmup_epochs": 1,
}
PROBLEMS: dict[str, Problem] = {
    "digits-noise20": Problem({**_MLP, "label_noise": 0.2}, side_by_side=True),
    "digits-noise40": Problem({**_MLP, "label_noise": 0.4}, side_by_side=True),
    "digits-resnet-noise40": Problem(
        {
            "dataset": "digits",
            "model": "resnet20",
            "width": 0.25,
            "batch_size": 64,
            "epochs": 40,
            "augment": (),
            "label_noise": 0.4,
        }
    ),
    "cifar-noise20": Problem({**_CIFAR, "epochs": 30, "label_noise": 0.2}, 10_000),
    "cifar-noise40": Problem({**_CIFAR, "epochs": 30, "label_noise": 0.4}, 10_000),
    "cifar-sparse90": Problem({**_CIFAR, "epochs": 30}),
    "cifar-sparse98": Problem({**_CIFAR, "epochs": 30, "sparsity": 0.98}),
    "cifar-vit": Problem(
        {
            **_CIFAR,
            "model": "vit",
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "sparsity": 0.5,
            "epochs": 30,
        }
    ),
    "cifar-resnet32": Problem(
        {"dataset": "cifar10", "model": "resnet32", "width": 2.0, "epochs": 160}
    ),
}
"""The last is that of the papers, in full, for an accelerator."""


class Training(NamedTuple):
    """A training of the study.

    Attributes:
      problem: Its problem.
      stage: "tune", "epochs" or "time".
      method: Label of the contender.
      rho: Radius.
      seed: Seed.
      epochs: Number of epochs.
    """

    problem: str
    stage: str
    method: str
    rho: float
    seed: int
    epochs: int


class Study:
    """The trainings of a problem, and the log of those that are done.

    Attributes:
      name: The problem.
      args: The command line.
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
        self.log = record.Log(args.runs / name / "trainings.jsonl", settings)
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
        print(f"{left[0]} and {len(left) - 1} others", flush=True)
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
            result = self._run(training)
            if result is None:
                return False
            self._note([training], [result])
        return True

    def _note(self, trainings: Sequence[Training], results: Sequence[Result]) -> None:
        about = {k: record.environment()[k] for k in ("commit", "versions", "device")}
        for training, result in zip(trainings, results, strict=True):
            self.log.append({**training._asdict(), **result._asdict(), **about})

    def _run(self, training: Training) -> Result | None:
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
        except RunError as error:
            if "not finite" not in str(error):
                raise
            return Result(1 / dataset.num_classes, diverged=True)
        if ended.ended_early:
            return None
        assert ended.summary is not None
        on = "validation_accuracy" if training.stage == "tune" else "test_accuracy"
        return Result(ended.summary[on], diverged=False)

    def tuning(self) -> Iterator[list[Training]]:
        """Yields the trainings that choose the radii, method by method."""
        epochs = PROBLEMS[self.name].fields["epochs"]
        for label in self.args.methods:
            if radii := CONTENDERS[label].radii:
                yield [
                    Training(self.name, "tune", label, rho, seed, epochs)
                    for seed in TUNE_SEEDS
                    for rho in radii
                ]

    def radii(self) -> dict[str, float]:
        """Returns the best radius of each method whose tuning is done; 0 for none."""
        done = self.done()
        best = {m: 0.0 for m in self.args.methods if not CONTENDERS[m].radii}
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
        path = self._prices_file()
        if not path.exists():
            return None
        timed = json.loads(path.read_text())
        return {
            label: 1 + row.share * (statistics.median(timed[label]) - 1)
            for label, row in CONTENDERS.items()
            if label in timed
        }

    def measure(self) -> None:
        """Times the steps of all methods, in turn, and writes the ratios to SGD's."""
        path = self._prices_file()
        if path.exists():
            return
        ratios = time_steps(self, self.args.methods, self.args.rounds)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ratios))

    def _prices_file(self) -> Path:
        return self.args.runs / self.name / "prices.json"


def time_steps(
    study: Study, labels: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """Returns the time of a perturbed step over that of SGD's, round by round.

    Args:
      study: Gives model and examples.
      labels: The methods, SGD among them.
      rounds: Number of ratios; two further rounds warm up.
    """
    programs, states = {}, {}
    for label in labels:
        programs[label], states[label] = _program(study, label)
    ratios: dict[str, list[float]] = {label: [] for label in labels}
    periods = 1
    for turn in range(rounds + 2):
        seconds = {}
        for label in labels:
            count = periods * CONTENDERS[label].period
            start = time.perf_counter()
            for _ in range(count):
                states[label] = programs[label](states[label])
            jax.block_until_ready(states[label])
            seconds[label] = (time.perf_counter() - start) / count
        if turn < 2:
            periods = math.ceil(WINDOW / seconds[SGD])
            continue
        for label in labels:
            ratios[label].append(seconds[label] / seconds[SGD])
    return ratios


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


def summarize(study: Study) -> list[dict[str, Any]]:
    """Returns a row for each method and stage with a finished training."""
    done, prices = study.done(), study.prices() or {}
    groups: dict[tuple[str, str], dict[int, Training]] = {}
    for trainings in study.finals(study.args.methods):
        own = {each.seed: each for each in trainings if each in done}
        if own:
            groups[trainings[0].stage, trainings[0].method] = own
    values = {
        key: {seed: done[each].accuracy for seed, each in own.items()}
        for key, own in groups.items()
    }
    rows = []
    for (stage, label), own in groups.items():
        found = values[stage, label]
        first = next(iter(own.values()))
        row = {
            "problem": study.name,
            "stage": stage,
            "method": label,
            "rho": first.rho,
            "epochs": first.epochs,
            "price": prices.get(label),
            "seeds": list(found),
            "accuracies": list(found.values()),
            "diverged": sum(done[each].diverged for each in own.values()),
            "mean": statistics.fmean(found.values()),
        }
        row |= compare("gain", found, values.get(("epochs", SGD), {}))
        row |= compare("to_sam", found, values.get(("epochs", SAM), {}))
        rows.append(row)
    return rows


def compare(
    name: str, found: Mapping[int, float], base: Mapping[int, float]
) -> dict[str, Any]:
    """Returns a paired difference over the seeds that both have, as a field.

    Args:
      name: Name of the field.
      found: Accuracy by seed.
      base: Accuracy by seed of what it is compared to.
    """
    seeds = sorted(found.keys() & base.keys())
    if len(seeds) < 2:
        return {}
    difference = intervals.paired([found[s] for s in seeds], [base[s] for s in seeds])
    return {name: difference._asdict()}


def train(study: Study, args: argparse.Namespace) -> bool:
    """Trains this part of a study; returns False if interrupted."""
    if args.part.startswith("1/"):
        study.measure()
    if not all(map(study.execute, record.own_part(study.tuning(), args.part))):
        return False
    # The methods are dealt out, not their trainings: which of these are known changes.
    methods = record.own_part(args.methods, args.part)
    while True:
        # Other parts may still tune, or time the steps.
        radii, prices = study.radii(), study.prices()
        if not all(map(study.execute, study.finals(methods))):
            return False
        if len(radii) == len(args.methods) and prices is not None:
            return True
        time.sleep(10)


def merge(args: argparse.Namespace) -> None:
    """Writes the result file from the finished trainings, and prints the table."""
    for name in args.problems:
        study = Study(name, args)
        planned = [*study.tuning(), *study.finals(args.methods)]
        known = study.radii() if study.prices() else {}
        wanted, done = set(itertools.chain(*planned)), study.done()
        missing = [m for m in args.methods if m not in known]
        if missing or not wanted <= done.keys():
            lacking = f", and none to compare of {', '.join(missing)}"
            raise SystemExit(
                f"{name}: {len(wanted & done.keys())} of {len(wanted)} trainings are "
                f"done{lacking if missing else ''}. Run the study to its end with "
                "these --methods and --seeds."
            )
    rows = [row for name in args.problems for row in summarize(Study(name, args))]
    settings = {
        "problems": {n: PROBLEMS[n]._asdict() for n in args.problems},
        "radii": {label: list(CONTENDERS[label].radii) for label in args.methods},
        "tune_seeds": TUNE_SEEDS,
        "held_out": HELD_OUT,
        "trained": _sessions(args),
    }
    record.write(args.result, {"settings": settings, "rows": rows})
    print(tables.markdown(table(rows)))


def _sessions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns commit, versions and device of the trainings, each combination once."""
    found = []
    for name in args.problems:
        for row in Study(name, args).log.rows():
            kept = {k: row[k] for k in ("commit", "versions", "device")}
            if kept not in found:
                found.append(kept)
    return found


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table of a study: a line for each problem, stage and method."""
    lines = [
        [
            "problem",
            "at equal",
            "method",
            "rho",
            "step time",
            "epochs",
            "seeds",
            "top-1, %",
            "gain over SGD",
            "against SAM",
        ]
    ]
    for row in rows:
        price = row["price"]
        lines.append(
            [
                row["problem"],
                row["stage"],
                row["method"],
                f"{row['rho']:g}" if row["rho"] else "",
                "" if price is None else f"{price:.2f}",
                f"{row['epochs']}",
                f"{len(row['seeds'])}",
                f"{100 * row['mean']:.2f}",
                *(_points(row.get(name)) for name in ("gain", "to_sam")),
            ]
        )
    return lines


def _points(found: Mapping[str, float] | None) -> str:
    """A difference in percentage points, with its interval."""
    if found is None or math.isnan(found["mean"]):
        return ""
    return f"{100 * found['mean']:+.2f} ± {100 * found['half_width']:.2f}"


def main() -> None:
    """Trains a part, or merges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    names, methods = list(PROBLEMS), list(CONTENDERS)
    parser.add_argument("--problems", nargs="+", default=names[:2], choices=names)
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--part", default="1/1", help="i/n: the i-th of n processes")
    parser.add_argument("--merge", action="store_true", help="write the result file")
    parser.add_argument("--seeds", type=int, default=5, help="their number, from 0")
    parser.add_argument("--rounds", type=int, default=15, help="of timed steps")
    parser.add_argument("--data-dir", help="TFDS directory; default: TFDS_DATA_DIR")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--result", type=Path, default=tables.RESULTS / "study.json")
    args = parser.parse_args()
    if not {SGD, SAM} <= set(args.methods):
        parser.error(f"--methods: {SGD} and {SAM} are what the others are compared to")
    # The trainings of all seeds run the same programs.
    compilation_cache.use()
    if args.merge:
        merge(args)
    elif not all(train(Study(name, args), args) for name in args.problems):
        raise SystemExit(130)


if __name__ == "__main__":
    main()
