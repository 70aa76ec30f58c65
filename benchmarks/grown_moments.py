"""Compares what Adam's moments of grown weights start with, in paired trainings.

    python -m benchmarks.grown_moments
    python -m benchmarks.grown_moments --seeds 8 --log runs/grown-moments.jsonl

Small versions of the presets `imagenet-deit-quick` and `tinylm` train with the plain
gradient and AdamW under three rules: `grown_second_moment="fresh"` and `"mean"` of
`zs.sparsify`, and the control "keep", which resets no moments at all. The trainings of
one seed share initial weights, masks and batches. The results are the differences of
the last test loss and accuracy, with 95 % intervals over seeds. The same command goes
on after it was stopped.
"""

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import command_line, record, tables
from zosam_jax import data, models, sparsity
from zosam_jax._types import PyTree, Seed
from zosam_jax.runs import intervals
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.presets import preset
from zosam_jax.train import accuracy, batch, build, choices, optimizers
from zosam_jax.train import step as steps
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.objects import Objects

FRESH, MEAN, KEEP = RULES = ("fresh", "mean", "keep")
MEASURES = ("test_loss", "test_accuracy", "train_loss")


class Task(NamedTuple):
    """A training.

    Attributes:
      preset: The preset that it is a small version of.
      fields: Fields of its configuration that differ.
      train: Number of training examples.
      test: Number of test examples.
    """

    preset: str
    fields: dict[str, Any]
    train: int
    test: int


_PLAIN = {"gradient": "backprop"}
TASKS = {
    "vit": Task(
        "imagenet-deit-quick",
        {
            **_PLAIN,
            "model_options": ("stochastic_depth=0.1", "patch=8"),
            "batch_size": 32,
            "epochs": 1,
            "warmup_epochs": 0.1,
        },
        train=32_000,
        test=2_000,
    ),
    "tinylm": Task(
        "tinylm",
        {**_PLAIN, "width": 0.5, "batch_size": 8, "epochs": 2},
        train=2_700,
        test=360,
    ),
}


def without_paths(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer whose state is a tuple of arrays, without their paths.

    `zs.sparsify` finds moments by their paths, so that it resets none of these.

    Args:
      rule: The optimizer.
    """

    def init(params: PyTree) -> tuple[jax.Array, ...]:
        return tuple(jax.tree.leaves(rule.init(params)))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None
    ) -> tuple[PyTree, PyTree]:
        structure = jax.tree.structure(jax.eval_shape(rule.init, params))
        updates, new = rule.update(updates, structure.unflatten(state), params)
        return updates, tuple(jax.tree.leaves(new))

    return optax.GradientTransformation(init, update)


class Trainer:
    """The compiled programs of a task, which serve all seeds.

    Attributes:
      task: The task.
      dataset: Its examples.
    """

    def __init__(self, task: Task, data_dir: str | None):
        """Reads the examples; compiles nothing.

        Args:
          task: The task.
          data_dir: TFDS directory, or None.
        """
        found = data.load(preset(task.preset).config.dataset, data_dir)
        if not isinstance(found, data.Dataset):
            raise TypeError("these sets are read into memory, not streamed.")
        self.task = task
        self.dataset = dataclasses.replace(
            found,
            train_images=found.train_images[: task.train],
            train_labels=found.train_labels[: task.train],
            test_images=found.test_images[: task.test],
            test_labels=found.test_labels[: task.test],
        )
        self._examples = jax.device_put(
            (self.dataset.train_images, self.dataset.train_labels)
        )
        config, given = self.config(0), Objects(dataset=self.dataset)
        base = build.experiment(config, given, choices.choose(config))
        self._base = base
        self._advance = {rule: self._program(rule) for rule in RULES}
        self._order = jax.jit(
            lambda seed, epoch: batch.epoch_order(
                dataclasses.replace(base, seed=seed), epoch
            )
        )
        self._evaluate = jax.jit(lambda *values: accuracy.add_batch(base, *values))

    def config(self, seed: int) -> TrainConfig:
        """Returns the configuration for a seed."""
        base = preset(self.task.preset).config
        return dataclasses.replace(base, **self.task.fields, seed=seed)

    def _own(self, seed: Seed, rule: str) -> Experiment:
        """Returns the experiment of a seed, which may be traced, and of a rule."""
        own = self._base.with_seed(seed)
        return dataclasses.replace(own, optimizer=self._optimizer(own, rule))

    def _optimizer(
        self, experiment: Experiment, rule: str
    ) -> optax.GradientTransformationExtraArgs:
        config = self.config(0)
        assert experiment.learning_rate is not None
        assert experiment.method is not None
        inner = optimizers.update_rule(
            config, experiment.learning_rate, models.dense_paths(config.model)
        )
        return sparsity.sparsify(
            without_paths(inner) if rule == KEEP else inner,
            experiment.method,
            experiment.gradient,
            grown_second_moment=FRESH if rule == KEEP else rule,
        )

    def _program(self, rule: str) -> Callable[..., Any]:
        """Returns `(seed, state, order, images, labels) -> state`, jitted."""

        def advance(
            seed: jax.Array, state: PyTree, order: jax.Array, *examples: jax.Array
        ) -> PyTree:
            own = self._own(seed, rule)
            chosen = batch.gather(own, state.step, order, *examples)
            return steps.train_step(own, state, *chosen, None)

        # Otherwise the first state and later ones would each have a program.
        return jax.jit(advance, out_shardings=self._base.replicated())

    def train(self, seed: int, rule: str) -> dict[str, Any]:
        """Returns the figures of a training.

        Args:
          seed: Seed of weights, masks, batches and augmentation.
          rule: One of `RULES`.
        """
        started = time.perf_counter()
        own = self._own(seed, rule)
        state = steps.init(own, *(x[: own.batch_size] for x in self._examples))
        state = jax.device_put(state, own.replicated())
        for epoch in range(own.epochs):
            order = self._order(jnp.uint32(seed), jnp.int32(epoch))
            for _ in range(own.steps_per_epoch):
                state = self._advance[rule](
                    jnp.uint32(seed), state, order, *self._examples
                )
        loss, correct, count = self._test(own, state)
        return {
            "seed": seed,
            "rule": rule,
            "steps": int(state.step),
            "test_loss": loss,
            "test_accuracy": correct,
            "train_loss": float(state.totals.loss) / int(state.totals.steps),
            "predictions": count,
            "sparsity": float(steps.count_weights(own, state)["sparsity"]),
            "seconds": round(time.perf_counter() - started, 1),
        }

    def _test(self, experiment: Experiment, state: PyTree) -> tuple[float, float, int]:
        """Returns loss, accuracy and the number of predictions on the test set."""
        params, model_state = steps.evaluated(state)
        totals, examples, predictions = accuracy.no_totals(experiment), 0, 0
        for images, labels, count in accuracy.batches(experiment, "test"):
            totals = self._evaluate(
                params, model_state, images, labels, np.int32(count), totals
            )
            examples += count
            predictions += labels[:count].size
        loss, correct = float(totals.loss), int(totals.correct)
        return loss / examples, correct / predictions, predictions


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each task and measure: means, and paired differences.

    Args:
      rows: The trainings. Seeds without all three rules are left out.
    """
    found = []
    for task, measure in itertools.product(TASKS, MEASURES):
        values = {(r["seed"], r["rule"]): r[measure] for r in rows if r["task"] == task}
        seeds = sorted({s for s, _ in values if all((s, r) in values for r in RULES)})
        if len(seeds) < 2:
            continue
        means = {
            rule: statistics.fmean(values[seed, rule] for seed in seeds)
            for rule in RULES
        }
        differences = {
            f"{rule} - {FRESH}": intervals.paired(
                [values[seed, rule] for seed in seeds],
                [values[seed, FRESH] for seed in seeds],
            )._asdict()
            for rule in (MEAN, KEEP)
        }
        found.append(
            {
                "task": task,
                "measure": measure,
                "seeds": seeds,
                "means": means,
                "differences": differences,
            }
        )
    return found


def main() -> None:
    """Trains, or goes on, and writes the results."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=5, help="number of seeds, from 0"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        default=list(TASKS),
        choices=list(TASKS),
        help=command_line.listed("trainings", list(TASKS)),
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="TFDS directory; default: TFDS_DATA_DIR"
    )
    parser.add_argument(
        "--log",
        metavar="FILE",
        type=Path,
        default=Path("runs/grown-moments.jsonl"),
        help="log of the trainings",
    )
    parser.add_argument(
        "--result",
        metavar="FILE",
        type=Path,
        default=tables.RESULTS / "grown-moments.json",
        help="result file",
    )
    args = parser.parse_args()
    # As they are read back: JSON knows no tuples.
    settings = json.loads(json.dumps({n: t._asdict() for n, t in TASKS.items()}))
    log = record.Log(args.log, settings)
    done = {(r["task"], r["seed"], r["rule"]) for r in log.rows()}
    trainers = {name: Trainer(TASKS[name], args.data_dir) for name in args.tasks}
    for seed in range(args.seeds):
        for name, rule in itertools.product(args.tasks, RULES):
            if (name, seed, rule) in done:
                continue
            row = {"task": name, **trainers[name].train(seed, rule)}
            log.append(row)
            print(f"{name}, seed {seed}, {rule}: done", flush=True)
    rows = [{k: v for k, v in r.items() if k != "settings"} for r in log.rows()]
    summary = summarize(rows)
    print(tables.markdown(tables.grown_rows(summary)))
    record.write(
        args.result, {"settings": settings, "summary": summary, "trainings": rows}
    )


if __name__ == "__main__":
    main()
