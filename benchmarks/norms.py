"""Measures two uses of normalisation layers in the ascent step, on digits.

    python -m benchmarks.norms

A small residual network with BatchNorm trains on digits with 40 % wrong labels.

1. SAM whose first pass sees a part of the batch: BatchNorm with the statistics of the
   part, or with running ones.
2. Perturbations of the normalisation layers alone: SAM (SAM-ON, arXiv:2306.04226),
   ZO-SAM, and the control with a random sign.

Each method has the radius with the best accuracy on held-out images, of seeds of its
own. All trainings of a method are one program. A second call goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import zosam_jax as zs
from benchmarks import command_line, record
from benchmarks.side_by_side import Lane, Result, train
from zosam_jax import data
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.intervals import paired

RADII = (0.1, 0.3, 1.0, 3.0)
TUNE_SEEDS, HELD_OUT = (1_000, 1_001), 0.2
FIELDS: dict[str, Any] = {
    "dataset": "digits",
    "epochs": 30,
    "batch_size": 64,
    "augment": (),
    "label_noise": 0.4,
}


class Residual(nn.Module):
    """Dense layers with BatchNorm and skip connections, on flattened images.

    Attributes:
      blocks: Number of blocks, of two layers each.
      size: Units of each layer.
    """

    blocks: int = 2
    size: int = 64

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits `[N, 10]`."""

        def norm(x: jax.Array, name: str) -> jax.Array:
            return nn.relu(nn.BatchNorm(not train, momentum=0.9, name=name)(x))

        x = nn.Dense(self.size, name="stem")(images.reshape(len(images), -1))
        for i in range(self.blocks):
            y = nn.Dense(self.size, name=f"first{i}")(norm(x, f"norm_a{i}"))
            x += nn.Dense(self.size, name=f"second{i}")(norm(y, f"norm_b{i}"))
        return nn.Dense(10, name="head")(norm(x, "norm"))


class Rule(NamedTuple):
    """A gradient and the way it is trained.

    Attributes:
      make: Its constructor.
      options: Its options, without the radius.
      fields: Fields of the configuration.
      radii: The radii to try; () if it has none.
    """

    make: Callable[..., GradientEstimator]
    options: Mapping[str, Any] = {}
    fields: Mapping[str, Any] = {}
    radii: Sequence[float] = RADII


_NORMS = {"include": "norm*"}
_SIGNS = {**_NORMS, "directions": "rademacher"}


def _part(share: int, norm: str) -> Rule:
    return Rule(zs.sam, {"ascent_fraction": 1 / share}, {"probe_norm": norm})


RULES: Mapping[str, Rule] = {
    "SGD": Rule(zs.backprop, radii=()),
    "SAM": Rule(zs.sam),
    "SAM, 8 images, their statistics": _part(8, "batch"),
    "SAM, 8 images, running statistics": _part(8, "running"),
    "SAM, 4 images, their statistics": _part(16, "batch"),
    "SAM, 4 images, running statistics": _part(16, "running"),
    "random sign": Rule(zs.random_sign),
    "SAM, norms alone": Rule(zs.sam, _NORMS),
    "random sign, norms alone": Rule(zs.random_sign, _NORMS),
    "ZO-SAM, m=1, norms alone": Rule(zs.zosam, _SIGNS),
    "ZO-SAM, m=4, norms alone": Rule(zs.zosam, {**_SIGNS, "num_directions": 4}),
}


def trained(rule: Rule, lanes: Sequence[Lane], validation: float) -> list[Result]:
    """Returns the ends of trainings with a rule.

    Args:
      rule: The rule.
      lanes: Radii and seeds.
      validation: Fraction of the training images to hold out and to measure on; 0: the
        test images.
    """
    found = data.load("digits", None)
    assert isinstance(found, data.Dataset)
    fields = FIELDS | {"validation": validation, "gradient": "given", **rule.fields}

    def make(rho: Any, total: int) -> GradientEstimator:
        del total
        radius = {"rho": rho} if rule.radii else {}
        return rule.make(**radius, **rule.options)

    return train(TrainConfig(**fields), found, make, lanes, Residual())


def tuned(rule: Rule) -> tuple[float, dict[str, float]]:
    """Returns the best radius, and the held-out accuracy of each."""
    if not rule.radii:
        return 0.0, {}
    lanes = [Lane(rho, seed) for rho in rule.radii for seed in TUNE_SEEDS]
    ends = trained(rule, lanes, HELD_OUT)
    scores = np.array([end.accuracy for end in ends]).reshape(len(rule.radii), -1)
    means = dict(zip(rule.radii, scores.mean(1).tolist(), strict=True))
    best = max(means, key=means.__getitem__)
    return best, {f"{rho:g}": round(mean, 4) for rho, mean in means.items()}


def measured(name: str, seeds: int) -> dict[str, Any]:
    """Returns the row of a rule: its radius, and an accuracy for each seed."""
    rule = RULES[name]
    rho, held_out = tuned(rule)
    ends = trained(rule, [Lane(rho, seed) for seed in range(seeds)], 0.0)
    return {
        "rule": name,
        "rho": rho,
        "held_out": held_out,
        "accuracies": [end.accuracy for end in ends],
        "diverged": sum(end.diverged for end in ends),
    }


def summarized(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows with means, and gains over SGD and over SAM, seed by seed."""
    by_name = {row["rule"]: row["accuracies"] for row in rows}
    return [
        {
            **row,
            "mean": float(np.mean(row["accuracies"])),
            "gain": paired(row["accuracies"], by_name["SGD"])._asdict(),
            "to_sam": paired(row["accuracies"], by_name["SAM"])._asdict(),
        }
        for row in rows
    ]


def main() -> None:
    """Runs the benchmark and writes its results."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=5, help="number of seeds, from 0"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        default=Path("runs/norms"),
        help="folder of the log",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("benchmarks/results/norms-digits.json"),
        help="result file",
    )
    args = parser.parse_args()
    settings = {**FIELDS, "seeds": args.seeds, "radii": list(RADII), "augment": []}
    settings |= {"blocks": Residual().blocks, "size": Residual().size}
    log = record.Log(args.runs / "rules.jsonl", settings)
    done = {row["rule"] for row in log.rows()}
    for name in RULES:
        if name not in done:
            row = measured(name, args.seeds)
            log.append(row)
            print(f"{name}, rho {row['rho']}: {np.mean(row['accuracies']):.4f}")
    rows = sorted(log.rows(), key=lambda row: list(RULES).index(row["rule"]))
    record.write(args.out, {"settings": settings, "rules": summarized(rows)})


if __name__ == "__main__":
    main()
