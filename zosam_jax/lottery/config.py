"""The configuration of a search for lottery tickets: a run's, and a few fields more."""

import dataclasses

from zosam_jax import _check
from zosam_jax.runs.config import METHOD_FIELDS, TrainConfig

REWINDS = ("weights", "learning-rate")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LotteryConfig(TrainConfig):
    """A search for lottery tickets: how every round trains, and what is rewound.

    The masks come from the rounds themselves, so `method`, `budget` and what belongs to
    the other methods keep their defaults.

    Raises:
      ValueError: A value is unknown or out of range; the message names the field.
    """

    method: str = "dense"
    """The first round trains all weights."""

    out: str | None = None
    """Folder of the rounds. None: runs/DATASET-MODEL-lottery-SPARSITY-GRADIENT-sSEED. \
The same command with the same folder continues them."""
    rounds: int | None = None
    """How often weights are pruned: each round prunes the same share of those left, \
and the last one ends at the sparsity exactly. The dense round 0 comes besides. None: \
10, or 1 for early_bird."""
    per_layer: bool = False
    """Prune the same share of every layer, instead of the smallest weights of all \
layers together."""
    rewind: str | None = None
    """weights: what survives goes back to where it was at the rewind epoch, with the \
batch statistics and the optimizer's state. learning-rate: weights stay as trained, \
and the optimizer's moments start anew. In both, the learning rate and the order of \
the data go back. None: weights; for early_bird, learning-rate."""
    rewind_epoch: int = 0
    """Epochs of the first round after which the state to go back to is taken; 0: the \
initial one."""
    early_bird: bool = False
    """End the first round as soon as the mask that pruning would give has settled, \
and train that ticket from there, without going back, for all epochs \
(arXiv:1909.11957)."""
    early_bird_window: int = 5
    """Distances between the masks of consecutive epochs that must be small."""
    early_bird_tolerance: float = 0.1
    """What they must be below, as a share of the prunable weights. Masks of sparsity \
s differ by 2(1-s) at most, so that high sparsities need a smaller one; lottery.json \
lists the distances."""

    def __post_init__(self):
        TrainConfig.__post_init__(self)
        for field in dataclasses.fields(TrainConfig):
            own = "dense" if field.name == "method" else field.default
            if field.name in METHOD_FIELDS and getattr(self, field.name) != own:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)!r} has no meaning for "
                    "lottery tickets, whose masks come from pruning. Leave it out."
                )
        if self.rounds is not None:
            _check.whole("rounds", self.rounds)
        if self.rewind is not None:
            _check.one_of("rewind", self.rewind, REWINDS)
        _check.whole("rewind_epoch", self.rewind_epoch, least=0)
        if self.rewind_epoch >= self.epochs:
            raise ValueError(
                f"rewind_epoch={self.rewind_epoch} must be less than epochs="
                f"{self.epochs}: the state to go back to is one of the first round's."
            )
        _check.whole("early_bird_window", self.early_bird_window)
        _check.number(
            "early_bird_tolerance", self.early_bird_tolerance, above=0, most=1
        )
        if self.early_bird:
            self._check_early_bird()

    def _check_early_bird(self) -> None:
        for name, only in (("rounds", 1), ("rewind", "learning-rate")):
            if getattr(self, name) not in (None, only):
                raise ValueError(
                    f"early_bird prunes once and goes back to no earlier weights: "
                    f"{name}={getattr(self, name)!r} must be {only!r}. Leave it out."
                )
        if self.rewind_epoch:
            raise ValueError(
                f"early_bird trains its ticket for all epochs: rewind_epoch="
                f"{self.rewind_epoch} must be 0. Leave it out."
            )
        most = 2 * min(self.sparsity, 1 - self.sparsity)
        if self.early_bird_tolerance >= most:
            raise ValueError(
                f"early_bird_tolerance={self.early_bird_tolerance:g} is met by any "
                f"two masks of sparsity {self.sparsity:g}: they differ by {most:g} at "
                f"most. Use a smaller one, as {most / 2:.2g}."
            )

    @property
    def total_rounds(self) -> int:
        """How often weights are pruned."""
        return self.rounds or (1 if self.early_bird else 10)

    @property
    def rewinds(self) -> str:
        """What goes back: "weights" or "learning-rate"."""
        return self.rewind or ("learning-rate" if self.early_bird else "weights")

    @property
    def _sparse_name(self) -> str:
        return f"lottery-{self.sparsity:g}"
