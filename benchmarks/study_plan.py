"""The plan of the study: its methods, its problems, and what a training is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import zosam_jax as zs
from zosam_jax.gradients.transformation import GradientEstimator

SGD, SAM = "SGD", "SAM"
RADII = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
LARGE_RADII = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""For geometries that measure a perturbation relative to the weights."""
FILTER_RADII = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""For noise on every weight, relative to the norm of its filter."""

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
      methods: The contenders where not all are trained; None for all.
    """

    fields: Mapping[str, Any]
    train: int | None = None
    side_by_side: bool = False
    methods: Sequence[str] | None = None


_MLP = {"dataset": "digits", "model": "mlp", "epochs": 60, "augment": ()}
_NARROW = {
    "dataset": "cifar10",
    "model": "resnet18",
    "width": 1 / 8,
    "batch_size": 64,
    "epochs": 15,
    "warmup_epochs": 1,
    "augment": (),
}
_FEW = (
    SGD,
    SAM,
    "SAM, 1/4 of the batch",
    "SAM, 1/16 of the batch",
    "SAM, last half",
    "S2-SAM",
    "F-SAM",
    "ZO-SAM",
    "guided ZO-SAM",
    "SGD, 1/2 of the epochs",
    "SGD, 1/4 of the epochs",
    "random, random sign",
)
_FEWEST = (
    SGD,
    SAM,
    "SAM, 1/16 of the batch",
    "S2-SAM",
    "F-SAM",
    "ZO-SAM",
    "guided ZO-SAM",
    "random, random sign",
)
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
        },
        methods=_FEW,
    ),
    "cifar-mlp-noise40": Problem(
        {
            "dataset": "cifar10",
            "model": "mlp",
            "model_options": ("hidden=(128, 64)",),
            "batch_size": 128,
            "epochs": 30,
            "augment": (),
            "label_noise": 0.4,
        },
        2_500,
        side_by_side=True,
        methods=_FEW,
    ),
    "cifar-noise20": Problem(
        {**_NARROW, "epochs": 30, "label_noise": 0.2}, 5_000, methods=_FEWEST
    ),
    "cifar-noise40": Problem(
        {**_NARROW, "epochs": 30, "label_noise": 0.4}, 5_000, methods=_FEWEST
    ),
    "cifar-sparse90": Problem({**_NARROW, "sparsity": 0.9}, 5_000, methods=_FEWEST),
    "cifar-sparse98": Problem({**_NARROW, "sparsity": 0.98}, 5_000, methods=_FEWEST),
    "cifar-vit": Problem(
        {
            "dataset": "cifar10",
            "model": "vit",
            "model_options": ("depth=3", "patch=8"),
            "width": 1 / 3,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "sparsity": 0.5,
            "batch_size": 64,
            "epochs": 20,
            "warmup_epochs": 1,
        },
        2_500,
        side_by_side=True,
        methods=_FEWEST,
    ),
    "tinylm": Problem(
        {
            "dataset": "pydoc",
            "model": "tinylm",
            "width": 1 / 4,
            "optimizer": "adamw",
            "learning_rate": 2e-3,
            "weight_decay": 0.1,
            "decay": "kernels",
            "sparsity": 0.8,
            "batch_size": 32,
            "epochs": 8,
            "warmup_epochs": 0.2,
        },
        1_024,
        side_by_side=True,
        methods=_FEWEST,
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
