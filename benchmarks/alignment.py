"""Measures the alignment of ascent rules with the gradient in trainings on CIFAR-10.

    python -m benchmarks.alignment
    python -m benchmarks.alignment --steps 400 --points 2 --seeds 3

A sparse network trains with SGD, once for each seed. At some steps every rule computes
its perturbation from the same batch and weights. A rule with a memory builds it in the
steps just before. Each perturbation is scaled to the norm `RHO`. The results are its
cosines to the gradients of the batch and of a large batch, and the rise of the loss
along it: means over the steps of a training, then mean and standard deviation over the
seeds. The rules are SAM, the gradients that look uphill for less, and controls that do
not look.
"""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import zosam_jax as zs
from benchmarks import command_line, record
from zosam_jax import data, models
from zosam_jax.data import augment
from zosam_jax.gradients import Ascent, Look, Row, sharpness_aware
from zosam_jax.gradients.registry import METHODS

matplotlib.use("agg")
from matplotlib import pyplot as plt

MODEL, WIDTH = "resnet20", 0.25
RHO, SPARSITY, LEARNING_RATE, BATCH = 0.05, 0.9, 0.1, 128
LARGE_BATCHES, RISE_BATCHES, WINDOW = 32, 8, 24
FIELDS = ("cosine_batch", "cosine_large", "rise_batch", "rise_large")


def running_mean(
    decay: float, rho: float = 0.05, **options: Any
) -> zs.GradientEstimator:
    """Returns the control without a probe: perturbed along the mean of past gradients.

    Args:
      decay: Decay of the running mean of the gradients at the perturbed points.
      rho: Radius.
      **options: Options of `zs.gradients.sharpness_aware`.
    """

    def look(point: Any, mean: Any) -> Look:
        del point
        return Look(mean, memory=mean)

    def learn(point: Any, mean: Any, grad: Any) -> Any:
        del point
        return zs.tree.mix(decay, mean, 1 - decay, grad)

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    ascent = Ascent(look, Look, init, learn)
    return sharpness_aware("running_mean", Row(ascent), rho, **options)


CONTROLS = {"running_mean": running_mean}


class Rule(NamedTuple):
    """An ascent rule.

    Attributes:
      name: The constructor's name in the registry of gradients, or in `CONTROLS`.
      options: Options of the constructor.
      remembers: Whether the perturbation depends on earlier steps.
      draws: Number of keys to average over, for random rules.
      share: Share of the batch in the ascent pass.
      dtype: Dtype that the network computes in during the ascent pass.
    """

    name: str
    options: Mapping[str, Any] = {}
    remembers: bool = False
    draws: int = 1
    share: float = 1.0
    dtype: Any = jnp.float32


def _random(draws: int = 4, share: float = 1.0, **options: Any) -> Rule:
    dtype = options.pop("dtype", jnp.float32)
    return Rule("zosam", options, draws=draws, share=share, dtype=dtype)


def _guided(share: float = 1.0, dtype: Any = jnp.float32, **options: Any) -> Rule:
    options = {"directions": "guided", **options}
    return Rule("zosam", options, remembers=True, share=share, dtype=dtype)


RULES = {
    "SAM": Rule("sam"),
    "SAM, 1/16 of the batch": Rule("sam", share=1 / 16),
    "ASAM": Rule("asam"),
    "F-SAM": Rule("fsam", remembers=True),
    "VaSSO": Rule("vasso", {"theta": 0.4}, remembers=True),
    "S2-SAM": Rule("s2sam", remembers=True),
    "MSAM": Rule("msam", remembers=True),
    "no probe, mean of gradients": Rule("running_mean", {"decay": 0.9}, remembers=True),
    "RWP": Rule("rwp", draws=4),
    "random, random sign": Rule("random_sign", draws=4),
    "ZO-SAM, m=1": _random(),
    "ZO-SAM, m=1, quarter batch": _random(share=0.25),
    "ZO-SAM, m=1, bfloat16": _random(dtype=jnp.bfloat16),
    "ZO-SAM, m=16": _random(2, num_directions=16),
    "guided, m=1": _guided(),
    "guided, m=2": _guided(num_directions=2),
    "guided, m=1, quarter batch": _guided(share=0.25),
    "guided, m=1, bfloat16": _guided(dtype=jnp.bfloat16),
    "guided, m=1, every 5": _guided(every=5),
}
SHOWN = (
    "SAM",
    "VaSSO",
    "S2-SAM",
    "MSAM",
    "ZO-SAM, m=1",
    "ZO-SAM, m=16",
    "guided, m=1",
    "guided, m=2",
)


class Problem:
    """A network, its data, and functions of both.

    Attributes:
      data: CIFAR-10.
      images: Its training images, [N, 32, 32, 3], uint8.
      labels: Their classes, [N].
      model_state: Batch statistics of the untrained network.
      batch: `(key, indices) -> (images, labels)`, augmented, jitted.
    """

    def __init__(self, data_dir: str | None):
        """Reads the data.

        Args:
          data_dir: TFDS directory.
        """
        found = data.load("cifar10", data_dir)
        if not isinstance(found, data.Dataset):
            raise TypeError("CIFAR-10 is read into memory, not streamed.")
        self.data = found
        self.images = jnp.asarray(found.train_images)
        self.labels = jnp.asarray(found.train_labels)
        self._models = {
            dtype: models.create(MODEL, num_classes=10, width=WIDTH, dtype=dtype)
            for dtype in (jnp.float32, jnp.bfloat16)
        }
        _, self.model_state = self.initialize(0)
        self.batch = jax.jit(self._batch)

    def initialize(self, seed: int) -> tuple[Any, Any]:
        """Returns parameters and batch statistics of an untrained network."""
        shape = self.data.image_shape
        return models.initialize(self._models[jnp.float32], jax.random.key(seed), shape)

    def draw(self, rng: np.random.Generator) -> jax.Array:
        """Returns the indices of a random batch, [batch]."""
        return jnp.asarray(rng.integers(len(self.labels), size=BATCH))

    def _batch(self, key: jax.Array, indices: jax.Array) -> Any:
        images = augment.random_crop_flip(
            key, self.images[indices], self.data.crop_padding, self.data.flip
        )
        images = augment.normalize(images, self.data.mean, self.data.std)
        return images, self.labels[indices]

    def loss(self, params: Any, batch: Any, dtype: Any = jnp.float32) -> jax.Array:
        """Returns the mean cross-entropy in training mode, a float32 scalar."""
        images, labels = batch
        logits, _ = self._models[dtype].apply(
            {"params": params, **self.model_state},
            images.astype(dtype),
            train=True,
            mutable=list(self.model_state),
        )
        return optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), labels
        ).mean()


def constructor(rule: Rule) -> Any:
    """Returns the constructor of a rule's gradient."""
    return CONTROLS.get(rule.name) or METHODS[rule.name].make


def make_asker(problem: Problem, rule: Rule) -> tuple[Any, Any]:
    """Returns the estimator and a function that computes its perturbation.

    The function is `(params, masks, memory, key, batch) -> (eps, memory)`, jitted; eps
    has norm `RHO`. Its loss returns the parameters as aux, so that the aux of the
    descent pass shows where that pass was evaluated.

    Args:
      problem: The network and its data.
      rule: The rule.
    """
    # RWP's rho is relative to the norm of each filter, and 0.05 is far from the rest.
    rho = 0.01 if rule.name == "rwp" else RHO
    options = {"rho": rho, **rule.options}
    estimator = constructor(rule)(**options, has_aux=True, aux_from="descent")
    part = round(rule.share * BATCH)

    @jax.jit
    def ask(params: Any, masks: Any, memory: Any, key: Any, batch: Any) -> Any:
        few = jax.tree.map(lambda x: x[:part], batch)
        seen = estimator.gradient(
            lambda p: (problem.loss(p, batch), p),
            params,
            key=key,
            step=jnp.zeros((), jnp.int32),
            masks=masks,
            memory=memory,
            ascent_value_fn=lambda p: (problem.loss(p, few, rule.dtype), p),
        )
        eps = zs.tree.subtract(seen.aux, params)
        unit, _ = zs.tree.normalize(eps)
        return jax.tree.map(lambda u: RHO * u, unit), seen.memory

    return estimator, ask


def optimizer(seed: int) -> optax.GradientTransformationExtraArgs:
    """Returns SGD with fixed random masks.

    Args:
      seed: Seed of the masks.
    """
    return zs.sparsify(
        optax.sgd(LEARNING_RATE, momentum=0.9),
        zs.sparsity.static(SPARSITY, "random", budget="erk", seed=seed),
    )


class Measurement:
    """The compiled programs of a problem, which all seeds share."""

    def __init__(self, problem: Problem):
        """Compiles nothing yet.

        Args:
          problem: The network and its data.
        """
        self._problem = problem
        self._gradient = jax.jit(jax.grad(problem.loss))
        self._loss = jax.jit(problem.loss)
        self._cosine = jax.jit(
            lambda x, y, masks: zs.tree.cosine(zs.tree.mask(x, masks), y)
        )
        self._askers = {name: make_asker(problem, r) for name, r in RULES.items()}
        self._train = jax.jit(self._step)

    def _step(self, params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(self._problem.loss)(params, batch)
        # The seed of the masks is used when they are drawn, and not here.
        updates, state = optimizer(0).update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def run(self, seed: int, steps: int, points: list[int]) -> list[dict[str, Any]]:
        """Trains, and returns a row for each rule at each measured step.

        Args:
          seed: Seed of the network, its masks and its batches.
          steps: Number of training steps.
          points: Steps at which to measure.
        """
        problem, rng = self._problem, np.random.default_rng(seed)
        params, _ = problem.initialize(seed)
        state = optimizer(seed).init(params)
        masks = zs.sparsity.masks(state)
        params = zs.sparsity.apply_masks(params, masks)
        memories: dict[str, Any] = {}
        rows = []
        for step in range(steps):
            key = jax.random.fold_in(jax.random.key(seed), step)
            batch = problem.batch(key, problem.draw(rng))
            near = [point for point in points if 0 <= point - step <= WINDOW]
            for name in RULES if near and step != near[0] else ():
                if RULES[name].remembers:
                    _, memories[name] = self._ask(
                        name, params, masks, memories, key, batch
                    )
            if step in points:
                found = {
                    name: [
                        self._ask(name, params, masks, memories, k, batch)[0]
                        for k in jax.random.split(key, rule.draws)
                    ]
                    for name, rule in RULES.items()
                }
                keys = jax.random.split(jax.random.fold_in(key, 1), LARGE_BATCHES)
                large = [problem.batch(k, problem.draw(rng)) for k in keys]
                about = {"seed": seed, "step": step}
                for row in self._compare(found, params, masks, batch, large):
                    rows.append(about | row)
                memories = {}
                print(f"seed {seed}: measured at step {step}", flush=True)
            params, state, value = self._train(params, state, batch)
            if step % 100 == 0:
                print(f"seed {seed}, step {step}: loss {float(value):.3f}", flush=True)
        return rows

    def _ask(
        self,
        name: str,
        params: Any,
        masks: Any,
        memories: dict[str, Any],
        key: jax.Array,
        batch: Any,
    ) -> tuple[Any, Any]:
        """Returns a rule's perturbation and its new memory."""
        estimator, ask = self._askers[name]
        memory = memories.get(name)
        if memory is None:
            memory = estimator.init(params).memory
        return ask(params, masks, memory, key, batch)

    def _compare(
        self,
        found: dict[str, list[Any]],
        params: Any,
        masks: Any,
        batch: Any,
        large: list[Any],
    ) -> list[dict[str, Any]]:
        """Returns a row per rule: cosines and rises on the batch and on a large one.

        Args:
          found: Perturbations of each rule.
          params: Parameters of the network.
          masks: Its masks.
          batch: Images and labels.
          large: The batches of the large batch.
        """
        own = self._gradient(params, batch)
        grads = [self._gradient(params, b) for b in large]
        mean = jax.tree.map(lambda *x: sum(x) / len(x), *grads)
        few = large[:RISE_BATCHES]
        clean = [float(self._loss(params, b)) for b in few]
        at = float(self._loss(params, batch))
        rows = []
        for name, perturbations in found.items():
            moved = [zs.tree.add_scaled(params, 1.0, eps) for eps in perturbations]
            values = {
                "cosine_batch": [self._cosine(own, e, masks) for e in perturbations],
                "cosine_large": [self._cosine(mean, e, masks) for e in perturbations],
                "rise_batch": [self._loss(p, batch) - at for p in moved],
                "rise_large": [
                    self._loss(p, b) - c
                    for p in moved[:2]
                    for b, c in zip(few, clean, strict=True)
                ],
            }
            means = {k: statistics.fmean(map(float, v)) for k, v in values.items()}
            rows.append({"rule": name} | means)
        return rows


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row per rule: mean and deviation, over seeds, of the means over steps.

    `downhill` is the share of the measured steps in which the large batch's loss has a
    negative slope along the perturbation.
    """
    seeds = sorted({row["seed"] for row in rows})
    summary = []
    for name in RULES:
        own = [row for row in rows if row["rule"] == name]
        line: dict[str, Any] = {"rule": name}
        for field in FIELDS:
            means = [
                statistics.fmean(row[field] for row in own if row["seed"] == seed)
                for seed in seeds
            ]
            line[field] = statistics.fmean(means)
            line[f"{field}_std"] = statistics.stdev(means) if len(means) > 1 else None
        line["downhill"] = statistics.fmean(row["cosine_large"] < 0 for row in own)
        summary.append(line)
    return summary


def show(summary: list[dict[str, Any]], title: str) -> None:
    """Prints the summary."""
    table = Table(title=title)
    table.add_column("rule", no_wrap=True)
    for field in FIELDS:
        table.add_column(field.replace("_", " "), justify="right")
    for row in summary:
        cells = [
            f"{row[field]:.4f} ± {row[f'{field}_std'] or 0:.4f}" for field in FIELDS
        ]
        table.add_row(row["rule"], *cells)
    Console().print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots the cosine to the large-batch gradient and the rise, by step.

    The lines are means over the seeds, the marks single trainings.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    labels = {
        "cosine_large": "cosine to the large-batch gradient",
        "rise_large": "rise of the large-batch loss",
    }
    colors = plt.get_cmap("tab10").colors  # pyright: ignore[reportAttributeAccessIssue]
    for axis, (field, label) in zip(axes, labels.items(), strict=True):
        for name, color in zip(SHOWN, colors, strict=False):
            own = [row for row in rows if row["rule"] == name]
            by_step: dict[int, list[float]] = {}
            for row in own:
                by_step.setdefault(row["step"] + 1, []).append(row[field])
            style = "-" if name.startswith("guided") else "--"
            means = [statistics.fmean(values) for values in by_step.values()]
            axis.plot(list(by_step), means, style, color=color, label=name)
            single = [(step, v) for step, values in by_step.items() for v in values]
            steps, values = zip(*single, strict=True)
            axis.plot(steps, values, "o", color=color, markersize=3, alpha=0.5)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xlabel("training step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"written: {path}")


def main() -> None:
    """Runs the benchmark and writes its results."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--steps", metavar="N", type=int, default=800, help="training steps"
    )
    parser.add_argument(
        "--points", metavar="N", type=int, default=4, help="steps that are measured"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=5, help="trainings, from seed 0"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="TFDS directory; default: TFDS_DATA_DIR"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("benchmarks/results/alignment-cifar10.json"),
        help="result file",
    )
    args = parser.parse_args()

    start = time.perf_counter()
    measurement = Measurement(Problem(args.data_dir))
    points = [round(args.steps * (i + 1) / args.points) - 1 for i in range(args.points)]
    rows = []
    for seed in range(args.seeds):
        rows += measurement.run(seed, args.steps, points)
    summary = summarize(rows)
    title = (
        f"{MODEL} at width {WIDTH} and {SPARSITY:.0%} sparsity, CIFAR-10, batch "
        f"{BATCH}, radius {RHO}: means over {len(points)} of the first {args.steps} "
        f"steps, {args.seeds} seeds"
    )
    show(summary, title)
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "data_dir")}
    record.write(
        args.out,
        {
            "settings": settings
            | {
                "model": f"{MODEL} at width {WIDTH}",
                "rho": RHO,
                "sparsity": SPARSITY,
                "learning_rate": LEARNING_RATE,
                "batch": BATCH,
                "large_batch": LARGE_BATCHES * BATCH,
                "window": WINDOW,
                "seconds": round(time.perf_counter() - start),
            },
            "rules": summary,
            "points": rows,
        },
    )
    draw(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
