"""Recipes by name. Each says what it claims, what it costs and where that is shown."""

import dataclasses

from zosam_jax import _check
from zosam_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """A recipe.

    Attributes:
      config: The configuration; flags on the command line override its fields.
      claim: What it trains and what that gives.
      cost: What it takes, and on which machine.
      evidence: The file that shows it, or "not run".
    """

    config: TrainConfig
    claim: str
    cost: str
    evidence: str


PRESETS = {
    "digits": Preset(
        config=TrainConfig(),
        claim="ResNet-20 with 90 % of its weights at zero (RigL, ERK) and ZO-SAM on "
        "scikit-learn's 8x8 digits: test accuracy of at least 96 %.",
        cost="Less than two minutes on 2 CPU cores, compilation included.",
        evidence="benchmarks/results/digits",
    ),
    "cifar10-quick": Preset(
        config=TrainConfig(
            dataset="cifar10",
            width=0.5,
            batch_size=128,
            epochs=8,
            warmup_epochs=1,
            checkpoint_every=1,
        ),
        claim="A half-wide ResNet-20 at 90 % sparsity on CIFAR-10: shows the path on "
        "real photographs without an accelerator; no figure to compare with papers.",
        cost="3,120 steps: 12 minutes on 2 CPU cores.",
        evidence="benchmarks/results/cifar10-quick",
    ),
    "cifar10-resnet32": Preset(
        config=TrainConfig(
            dataset="cifar10",
            model="resnet32",
            width=2.0,
            batch_size=64,
            epochs=160,
            checkpoint_every=10,
        ),
        claim="ResNet-32 of twice the width (1.86 M parameters) at 90 % sparsity on "
        "CIFAR-10 with the schedule of MEST (arXiv:2110.14032) and S2-SAM: 160 epochs "
        "at batch 64, cosine from 0.1, momentum 0.9, weight decay 5e-4; RigL with an "
        "ERK budget, and ZO-SAM.",
        cost="124,960 steps; for an accelerator.",
        evidence="not run",
    ),
}


def preset(name: str) -> Preset:
    """Returns the recipe of that name.

    >>> preset("cifar10-resnet32").config.epochs
    160

    Raises:
      ValueError: The name is unknown; the message gives the nearest.
    """
    _check.one_of("preset", name, PRESETS)
    return PRESETS[name]
