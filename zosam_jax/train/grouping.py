"""Which runs of a sweep train in one program."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from zosam_jax.runs.config import TrainConfig, differences
from zosam_jax.runs.sweep import Planned


class _Obstacle(NamedTuple):
    """What keeps a run from training in one program with others.

    Attributes:
      is_met: Whether a configuration has it.
      text: It as a clause, to stand behind "trains alone:".
    """

    is_met: Callable[[TrainConfig], bool]
    text: str


_OBSTACLES = (
    _Obstacle(lambda c: c.teacher is not None, "it learns from a teacher"),
    _Obstacle(lambda c: c.from_ is not None, "it starts from trained weights"),
    _Obstacle(lambda c: bool(c.all_trackers), "a tracker follows one run at a time"),
    _Obstacle(
        lambda c: c.time_limit is not None,
        "after --time-limit it goes on from a checkpoint",
    ),
    _Obstacle(
        lambda c: c.label_noise > 0 and c.score_images > 0,
        "with --label-noise, each seed has other classes to score images of",
    ),
    _Obstacle(lambda c: c.fsdp != 1, "--fsdp shares its state between devices"),
    _Obstacle(lambda c: _has_checkpoint(c), "it goes on from its checkpoint"),
)


def _has_checkpoint(config: TrainConfig) -> bool:
    place = config.folder / "checkpoints"
    return place.is_dir() and any(place.iterdir())


def obstacle(config: TrainConfig) -> str | None:
    """Returns why a run trains alone, as a clause; None if nothing forbids company.

    What only its data set and its devices tell, `together.train` finds.

    Args:
      config: The configuration.

    >>> obstacle(TrainConfig(time_limit=5.0))
    'after --time-limit it goes on from a checkpoint'
    """
    return next((row.text for row in _OBSTACLES if row.is_met(config)), None)


def groups(plan: Sequence[Planned], most: int) -> list[tuple[Planned, ...]]:
    """Returns runs in groups, each of which trains in one program.

    The runs of a group differ in their seed and in a given rho alone.

    Args:
      plan: The runs.
      most: Most runs of a group. With 1, each run is a group.
    """
    found: list[list[Planned]] = []
    for planned in plan:
        is_open = most > 1 and obstacle(planned.config) is None
        fitting = (
            group
            for group in found
            if is_open and len(group) < most and _fit(group[0], planned)
        )
        group = next(fitting, None)
        if group is None:
            found.append([planned])
        else:
            group.append(planned)
    return [tuple(group) for group in found]


def _fit(one: Planned, other: Planned) -> bool:
    """Whether the values that two configurations do not share can be data."""
    if obstacle(one.config) is not None:
        return False
    changed = differences(one.config.record(), other.config.record())
    is_constant = None in changed.get("rho", ()) or _ties_radius(one.config)
    return set(changed) <= ({"seed"} if is_constant else {"seed", "rho"})


def _ties_radius(config: TrainConfig) -> bool:
    """Whether rho is the largest value of a schedule, which is no data."""
    return any(option.startswith("rho_min") for option in config.gradient_options)
