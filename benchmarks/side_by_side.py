"""Trains a small network many times in one program, side by side.

Seeds and radii are data, so that trainings that differ in nothing else share one
compiled program, and `jax.vmap` runs them together.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from zosam_jax import data
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import build, choices
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.lanes import Lanes
from zosam_jax.train.objects import Objects


class Lane(NamedTuple):
    """A training.

    Attributes:
      rho: Radius.
      seed: Seed.
    """

    rho: float
    seed: int


class Result(NamedTuple):
    """How a training ended.

    Attributes:
      accuracy: Top-1 accuracy after the last step, on the held-out images if there are
        any, else on the test images. Of a training that diverged, that of guessing.
      diverged: Whether its loss became infinite or NaN.
    """

    accuracy: float
    diverged: bool


def train(
    config: TrainConfig,
    dataset: data.Dataset,
    make: Callable[[Any, int], GradientEstimator],
    lanes: Sequence[Lane],
    model: nn.Module | None = None,
) -> list[Result]:
    """Returns the ends of trainings that differ in radius and seed alone.

    Each is the training of `zosam_jax.train.run` with that radius and seed, but for
    rounding.

    Args:
      config: The configuration; its seed is not used. Its gradient is a label.
      dataset: The examples.
      make: `(rho, optimizer steps) -> gradient`; rho is traced.
      lanes: The trainings.
      model: The network; None: the one that the configuration names.
    """
    # Their steps are too short to be called one by one.
    config = dataclasses.replace(config, loop="scan")
    own = [_experiment(config, dataset, make, lane, model) for lane in lanes]
    base, total = own[0], own[0].optimizer_steps
    chosen = choices.choose(config, gradient=make(lanes[0].rho, total))

    def vary(lane: tuple[jax.Array, jax.Array]) -> Experiment:
        rho, seed = lane
        given = Objects(dataset=dataset, model=model, gradient=make(rho, total))
        return build.experiment(config, given, chosen).with_seed(seed)

    rhos = np.array([lane.rho for lane in lanes], np.float32)
    seeds = np.array([lane.seed for lane in lanes], np.int32)
    programs = Lanes(own, vary, (rhos, seeds))
    programs.compile()
    state = programs.init()
    for number in range(base.epochs):
        state = programs.epoch(state, number)
    split = "test" if base.validation is None else "validation"
    guessing = 1 / base.facts.num_classes
    ends = zip(programs.evaluate(state, split), programs.totals(state), strict=True)
    return [
        Result(
            guessing if sums.bad_step >= 0 else found["accuracy"],
            bool(sums.bad_step >= 0),
        )
        for found, sums in ends
    ]


def _experiment(
    config: TrainConfig,
    dataset: data.Dataset,
    make: Callable[[Any, int], GradientEstimator],
    lane: Lane,
    model: nn.Module | None,
) -> Experiment:
    """The experiment of a training, whose labels depend on its seed."""
    config = dataclasses.replace(config, seed=lane.seed)
    gradient = make(lane.rho, 1)
    given = Objects(dataset=dataset, model=model, gradient=gradient)
    return build.experiment(config, given, choices.choose(config, gradient=gradient))
