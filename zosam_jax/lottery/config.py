"""The configuration of a search for lottery tickets."""

import dataclasses
from pathlib import Path

from zosam_jax import _check
from zosam_jax.runs.config import METHOD_FIELDS, TrainConfig, default, with_field_texts
from zosam_jax.runs.files import JSON

REWINDS = ("weights", "learning-rate")


def _dense() -> TrainConfig:
    return TrainConfig(method="dense")


@with_field_texts
@dataclasses.dataclass(frozen=True, kw_only=True)
class LotteryOptions:
    """The options of a search beside the training of each round."""

    rounds: int | None = None
    """Number of pruning rounds. Each prunes the same fraction of the remaining \
weights, and the last one ends at the sparsity exactly. The dense round 0 comes in \
addition. None: 10, or 1 for early_bird."""
    per_layer: bool = False
    """Prune the same fraction of every layer, instead of the smallest weights of all \
layers together."""
    rewind: str | None = None
    """weights: the surviving weights return to their values at the rewind epoch, with \
the batch statistics and the optimizer's state. learning-rate: weights stay as \
trained, and the optimizer's moments are reset. In both, the learning rate and the \
data order are rewound. None: weights; for early_bird, learning-rate."""
    rewind_epoch: int = 0
    """Epoch of the first round to rewind to. 0: the initial state."""
    early_bird: bool = False
    """End the first round as soon as the mask that pruning would give is stable, and \
train that ticket from there, without rewinding, for all epochs (arXiv:1909.11957)."""
    early_bird_window: int = 5
    """Number of consecutive mask distances that must be below the tolerance."""
    early_bird_tolerance: float = 0.1
    """Largest mask distance between consecutive epochs, as a fraction of the prunable \
weights. Two masks of sparsity s differ by 2(1-s) at most, so a high sparsity needs a \
smaller tolerance. lottery.json lists the distances."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LotteryConfig(LotteryOptions):
    """The configuration of a search for lottery tickets.

    Raises:
      ValueError: A value is unknown or out of range; the message names the field.
    """

    train: TrainConfig = dataclasses.field(default_factory=_dense)
    """How every round trains. Its method is dense, since the masks come from pruning; \
its sparsity applies to the last round. Its folder (None: \
runs/DATASET-MODEL-lottery-SPARSITY-GRADIENT-sSEED) holds the rounds. The same command \
with the same folder continues them."""

    def __post_init__(self):
        for name in (*METHOD_FIELDS, "compact_every"):
            own = "dense" if name == "method" else default(name)
            if getattr(self.train, name) != own:
                raise ValueError(
                    f"{name}={getattr(self.train, name)!r} has no meaning for lottery "
                    f"tickets, whose masks come from pruning. Say {name}={own!r}."
                )
        if self.rounds is not None:
            # Folders are numbered with two digits, after that of round 0.
            _check.whole("rounds", self.rounds, most=99)
        if self.rewind is not None:
            _check.one_of("rewind", self.rewind, REWINDS)
        _check.whole("rewind_epoch", self.rewind_epoch, least=0)
        if self.rewind_epoch >= self.train.epochs:
            raise ValueError(
                f"rewind_epoch={self.rewind_epoch} must be less than epochs="
                f"{self.train.epochs}: the state to go back to is one of the first "
                "round's."
            )
        _check.whole("early_bird_window", self.early_bird_window)
        _check.number(
            "early_bird_tolerance", self.early_bird_tolerance, above=0, most=1
        )
        if self.early_bird:
            self._check_early_bird()
            return
        for name in ("early_bird_window", "early_bird_tolerance"):
            usual = LotteryOptions.__dataclass_fields__[name].default
            if getattr(self, name) != usual:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no effect without early_bird. "
                    "Leave it out."
                )

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
        sparsity = self.train.sparsity
        most = 2 * min(sparsity, 1 - sparsity)
        if self.early_bird_tolerance >= most:
            raise ValueError(
                f"early_bird_tolerance={self.early_bird_tolerance:g} is met by any "
                f"two masks of sparsity {sparsity:g}: they differ by {most:g} at "
                f"most. Use a smaller one, as {most / 2:.2g}."
            )

    @property
    def total_rounds(self) -> int:
        """Number of pruning rounds."""
        return self.rounds or (1 if self.early_bird else 10)

    @property
    def rewinds(self) -> str:
        """What is rewound: "weights" or "learning-rate"."""
        return self.rewind or ("learning-rate" if self.early_bird else "weights")

    @property
    def folder(self) -> Path:
        """The absolute folder of all rounds."""
        return self.train.folder_of(f"lottery-{self.train.sparsity:g}")

    @property
    def keep(self) -> int:
        """Number of checkpoints that each round keeps."""
        return self.train.keep

    @property
    def overwrite(self) -> bool:
        """Whether to delete rounds that are already in the folder."""
        return self.train.overwrite

    def record(self) -> JSON:
        """Returns all fields as one flat dictionary, as `lottery.json` has them."""
        own = dataclasses.asdict(self)
        return own.pop("train") | own
