"""Measures the alignment of ascent rules with the gradient in a CIFAR-10 training run.

    python -m benchmarks.alignment
    python -m benchmarks.alignment --steps 400 --points 4

A sparse network trains with SGD. At some steps every rule computes its perturbation
for the same radius, batch and weights. A rule with a memory builds it in the steps just
before. The results are the cosines of the perturbation to the gradients of the batch
and of a large batch, and the rise of the loss along it. Every gradient of
`zosam_jax.gradients.registry` is a rule, except those in `SHARED`; `SETTINGS` adds
others of interest.
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

RHO, SPARSITY, LEARNING_RATE, BATCH = 0.05, 0.9, 0.1, 128
LARGE_BATCHES, RISE_BATCHES, WINDOW = 32, 8, 32


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


# Gradients without an ascent of their own: none, that of SAM or RWP, or only descent;
# the point of CrAM is also compressed, and SAMPa looks uphill as S2-SAM does.
SHARED = ("backprop", "gsam", "wsam", "looksam", "aesam", "mrwp", "arwp")
SHARED += ("zeroth_order", "cram", "sampa")

# Settings of a gradient's plain rule, under the label that the results have.
PLAIN = {
    "ESAM, beta 0.6": Rule("esam", {"beta": 0.6, "gamma": 1.0}, draws=2),
    "SSAM-D, half": Rule("ssam", {"mask": "dynamic", "total_steps": 10_000}),
    "F-SAM": Rule("fsam", remembers=True),
    "VaSSO": Rule("vasso", {"theta": 0.4}, remembers=True),
    "S2-SAM": Rule("s2sam", remembers=True),
    "MSAM": Rule("msam", remembers=True),
    "RWP": Rule("rwp", draws=8),
    "random, random sign": Rule("random_sign", draws=8),
    "ZO-SAM, m=1": Rule("zosam", draws=8),
}


def _random(draws: int = 8, dtype: Any = jnp.float32, **options: Any) -> Rule:
    return Rule("zosam", options, draws=draws, dtype=dtype)


def _guided(share: float = 1.0, dtype: Any = jnp.float32, **options: Any) -> Rule:
    options = {"directions": "guided", **options}
    return Rule("zosam", options, remembers=True, share=share, dtype=dtype)


SETTINGS = {
    "SAM, 3 steps": Rule("sam", {"steps": 3}),
    "SAM, layer-wise": Rule("sam", {"layerwise": True}),
    "ZO-SAM, m=1, exact": _random(delta=None),
    "ZO-SAM, m=1, sphere": _random(directions="sphere"),
    "ZO-SAM, m=1, Rademacher": _random(directions="rademacher"),
    "ZO-SAM, m=1, one-sided": _random(two_sided=False),
    "ZO-SAM, m=1, quarter batch": Rule("zosam", draws=8, share=0.25),
    "ZO-SAM, m=1, bfloat16": _random(dtype=jnp.bfloat16),
    "ZO-SAM, m=16": _random(2, num_directions=16),
    "no probe, mean of gradients": Rule("running_mean", {"decay": 0.9}, remembers=True),
    "guided, m=1": _guided(),
    "guided, m=2": _guided(num_directions=2),
    "guided, m=1, one guide 0.9": _guided(guides=(0.9,)),
    "guided, m=1, one guide 0.5": _guided(guides=(0.5,)),
    "guided, m=1, three guides": _guided(guides=(0.0, 0.5, 0.9)),
    "guided, m=1, quarter batch": _guided(share=0.25),
    "guided, m=1, bfloat16": _guided(dtype=jnp.bfloat16),
    "guided, m=1, every 5": _guided(every=5),
}


def rules() -> dict[str, Rule]:
    """Returns every rule by its label."""
    known = {rule.name for rule in PLAIN.values()} | set(SHARED)
    plain = {
        row.label: Rule(name) for name, row in METHODS.items() if name not in known
    }
    return plain | PLAIN | SETTINGS


RULES = rules()
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
# Their rho is not the norm of the perturbation; these give about the norm of the rest.
OWN_RHO = {"ASAM": 0.5, "RWP": 0.01}


class Problem:
    """A network, its data, and functions of both."""

    def __init__(self, seed: int, data_dir: str | None):
        found = data.load("cifar10", data_dir)
        if not isinstance(found, data.Dataset):
            raise TypeError("CIFAR-10 is read into memory, not streamed.")
        self.data = found
        self.images = jnp.asarray(found.train_images)
        self.labels = jnp.asarray(found.train_labels)
        self.models = {
            dtype: models.create("resnet20", num_classes=10, width=0.5, dtype=dtype)
            for dtype in (jnp.float32, jnp.bfloat16)
        }
        self.params, self.model_state = models.initialize(
            self.models[jnp.float32], jax.random.key(seed), self.data.image_shape
        )
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.batch = jax.jit(self._batch)

    def draw(self) -> jax.Array:
        """Returns the indices of a random batch, [batch]."""
        return jnp.asarray(self.rng.integers(len(self.labels), size=BATCH))

    def _batch(self, key: jax.Array, indices: jax.Array) -> Any:
        images = augment.random_crop_flip(
            key, self.images[indices], self.data.crop_padding, self.data.flip
        )
        images = augment.normalize(images, self.data.mean, self.data.std)
        return images, self.labels[indices]

    def loss(self, params: Any, batch: Any, dtype: Any = jnp.float32) -> jax.Array:
        """Returns the mean cross-entropy in training mode, a float32 scalar."""
        images, labels = batch
        logits, _ = self.models[dtype].apply(
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


def make_asker(problem: Problem, name: str, rule: Rule) -> tuple[Any, Any]:
    """Returns the estimator and a function that computes its perturbation.

    The function is `(params, masks, memory, key, batch) -> (eps, memory)`, jitted. Its
    loss returns the parameters as aux, so that the aux of the descent pass shows where
    that pass was evaluated.

    Args:
      problem: The network and its data.
      name: Label of the rule.
      rule: The rule.
    """
    options = {"rho": OWN_RHO.get(name, RHO), **rule.options}
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
        return zs.tree.subtract(seen.aux, params), seen.memory

    return estimator, ask


def measure(problem: Problem, steps: int, points: list[int]) -> list[dict[str, Any]]:
    """Trains, and returns a row for each rule at each measured step.

    Args:
      problem: The network and its data.
      steps: Number of training steps.
      points: Steps at which to measure.
    """
    tx = zs.sparsify(
        optax.sgd(LEARNING_RATE, momentum=0.9),
        zs.sparsity.static(SPARSITY, "random", budget="erk", seed=problem.seed),
    )
    state = tx.init(problem.params)
    masks = zs.sparsity.masks(state)
    params = zs.sparsity.apply_masks(problem.params, masks)
    gradient = jax.jit(lambda p, b: jax.grad(problem.loss)(p, b))
    loss = jax.jit(problem.loss)
    cosine = jax.jit(lambda x, y: zs.tree.cosine(zs.tree.mask(x, masks), y))
    askers = {name: make_asker(problem, name, rule) for name, rule in RULES.items()}

    @jax.jit
    def train(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(problem.loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    memories: dict[str, Any] = {}
    rows = []
    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(problem.seed), step)
        batch = problem.batch(key, problem.draw())
        near = [point for point in points if 0 <= point - step <= WINDOW]
        if near:
            for name, (estimator, ask) in askers.items():
                if step == near[0] or not RULES[name].remembers:
                    continue
                if name not in memories:
                    memories[name] = estimator.init(params).memory
                _, memories[name] = ask(params, masks, memories[name], key, batch)
        if step in points:
            found = ask_all(askers, params, masks, memories, key, batch)
            rows += compare(problem, step, found, params, batch, gradient, loss, cosine)
            memories = {}
        params, state, value = train(params, state, batch)
        if step % 50 == 0:
            print(f"step {step}: loss {float(value):.3f}", flush=True)
    return rows


def ask_all(
    askers: Any,
    params: Any,
    masks: Any,
    memories: dict[str, Any],
    key: jax.Array,
    batch: Any,
) -> dict[str, list[Any]]:
    """Returns the perturbations of every rule, one for each draw.

    Args:
      askers: The functions from `make_asker`, by label.
      params: Parameters of the network.
      masks: Its masks.
      memories: Memories of the rules that have built one.
      key: PRNG key of the step.
      batch: Images and labels.
    """
    found: dict[str, list[Any]] = {}
    for name, (estimator, ask) in askers.items():
        memory = memories.get(name)
        if memory is None:
            memory = estimator.init(params).memory
        keys = jax.random.split(key, RULES[name].draws)
        found[name] = [ask(params, masks, memory, k, batch)[0] for k in keys]
    return found


def compare(
    problem: Problem,
    step: int,
    found: dict[str, list[Any]],
    params: Any,
    batch: Any,
    gradient: Any,
    loss: Any,
    cosine: Any,
) -> list[dict[str, Any]]:
    """Returns a row per rule: cosines and rises on the batch and on a large one.

    Args:
      problem: The network and its data.
      step: The training step.
      found: Perturbations of each rule.
      params: Parameters of the network.
      batch: Images and labels.
      gradient: `(params, batch) -> gradient`.
      loss: `(params, batch) -> loss`.
      cosine: `(x, y) -> cosine` over the live weights.
    """
    own = gradient(params, batch)
    key = jax.random.fold_in(jax.random.key(problem.seed + 1), step)
    large = [
        problem.batch(jax.random.fold_in(key, i), problem.draw())
        for i in range(LARGE_BATCHES)
    ]
    grads = [gradient(params, b) for b in large]
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *grads)
    clean = [float(loss(params, b)) for b in large[:RISE_BATCHES]]
    at = float(loss(params, batch))
    rows = []
    for name, perturbations in found.items():
        moved = [zs.tree.add_scaled(params, 1.0, eps) for eps in perturbations]
        few = moved[:2]
        rows.append(
            {
                "step": step,
                "rule": name,
                "norm": statistics.fmean(float(zs.tree.norm(e)) for e in perturbations),
                "cosine_batch": statistics.fmean(
                    float(cosine(own, e)) for e in perturbations
                ),
                "cosine_large": statistics.fmean(
                    float(cosine(mean, e)) for e in perturbations
                ),
                "rise_batch": statistics.fmean(
                    float(loss(p, batch)) - at for p in moved
                ),
                "rise_large": statistics.fmean(
                    float(loss(p, b)) - c
                    for p in few
                    for b, c in zip(large[:RISE_BATCHES], clean, strict=True)
                ),
            }
        )
    print(f"measured at step {step}, loss {at:.3f}", flush=True)
    return rows


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row per rule: means over the measured steps, and ratios to SAM's."""
    fields = ("norm", "cosine_batch", "cosine_large", "rise_batch", "rise_large")
    summary = []
    for name in RULES:
        own = [row for row in rows if row["rule"] == name]
        summary.append(
            {"rule": name}
            | {field: statistics.fmean(r[field] for r in own) for field in fields}
        )
    sam = next(row for row in summary if row["rule"] == "SAM")
    for row in summary:
        row["cosine_large_of_sam"] = row["cosine_large"] / sam["cosine_large"]
        row["rise_large_of_sam"] = row["rise_large"] / sam["rise_large"]
    return summary


def show(summary: list[dict[str, Any]], title: str) -> None:
    """Prints the summary."""
    table = Table(title=title)
    table.add_column("rule", no_wrap=True)
    columns = {
        "radius": ("norm", ".3f"),
        "cos batch": ("cosine_batch", ".3f"),
        "cos large": ("cosine_large", ".3f"),
        "of SAM": ("cosine_large_of_sam", ".2f"),
        "rise batch": ("rise_batch", ".4f"),
        "rise large": ("rise_large", ".4f"),
    }
    for column in columns:
        table.add_column(column, justify="right")
    for row in summary:
        cells = [format(row[field], form) for field, form in columns.values()]
        table.add_row(row["rule"], *cells)
    Console().print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots the cosine to the large-batch gradient and the rise, by step."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    labels = {
        "cosine_large": "cosine to the large-batch gradient",
        "rise_large": "rise of the large-batch loss",
    }
    colors = plt.get_cmap("tab10").colors  # pyright: ignore[reportAttributeAccessIssue]
    for axis, (field, label) in zip(axes, labels.items(), strict=True):
        for name, color in zip(SHOWN, colors, strict=False):
            own = [row for row in rows if row["rule"] == name]
            style = "-" if name.startswith("guided") else "--"
            axis.plot(
                [row["step"] for row in own],
                [row[field] for row in own],
                style,
                marker="o",
                markersize=3,
                color=color,
                label=name,
            )
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
        "--steps", metavar="N", type=int, default=1200, help="training steps"
    )
    parser.add_argument(
        "--points", metavar="N", type=int, default=8, help="steps that are measured"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of the training"
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
    problem = Problem(args.seed, args.data_dir)
    points = [round(args.steps * (i + 1) / args.points) - 1 for i in range(args.points)]
    rows = measure(problem, args.steps, points)
    summary = summarize(rows)
    title = (
        f"half-wide ResNet-20 at {SPARSITY:.0%} sparsity, CIFAR-10, batch {BATCH}, "
        f"radius {RHO}: means over {len(points)} steps of the first {args.steps}"
    )
    show(summary, title)
    draw(rows, args.out.with_suffix(".png"))
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "data_dir")}
    record.write(
        args.out,
        {
            "settings": settings
            | {
                "model": "resnet20 at width 0.5",
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


if __name__ == "__main__":
    main()
