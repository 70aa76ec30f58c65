"""Trains a small network many times in one program, side by side.

Seeds and radii are data, so that trainings that differ in nothing else share one
compiled program, and `jax.vmap` runs them together.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import data
from zosam_jax._types import PyTree
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import accuracy, batch, build, choices
from zosam_jax.train import step as steps
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.objects import Objects

COUNTERS = ("step", "steps", "count", "gradient_step", "mini_step")
"""Names of the fields of a state that all trainings have in common.

A schedule that branches on them takes one branch for all, instead of both.
"""


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
    own = [_experiment(config, dataset, make, lane, model) for lane in lanes]
    base, total = own[0], own[0].optimizer_steps
    chosen = choices.choose(config, gradient=make(lanes[0].rho, total))
    images = jnp.asarray(_examples(base)[0])
    labels = jnp.asarray(np.stack([_examples(each)[1] for each in own]))
    rhos = jnp.asarray([lane.rho for lane in lanes], jnp.float32)
    seeds = jnp.asarray([lane.seed for lane in lanes], jnp.uint32)

    def experiment(rho: jax.Array, seed: jax.Array) -> Experiment:
        given = Objects(dataset=dataset, model=model, gradient=make(rho, total))
        return build.experiment(config, given, chosen).with_seed(seed)

    def begin(rho: jax.Array, seed: jax.Array, labels: jax.Array) -> PyTree:
        made, zero = experiment(rho, seed), jnp.int32(0)
        order = batch.epoch_order(made, zero)
        return steps.init(made, *batch.gather(made, zero, order, images, labels))

    # Initial values come from keys of the kind rbg, which `vmap` would draw from once.
    starts = rhos, seeds, labels
    state = jax.jit(lambda starts: jax.lax.map(lambda x: begin(*x), starts))(starts)
    leaves, structure = jax.tree.flatten(state)
    shared = [_is_counter(path) for path, _ in jax.tree.leaves_with_path(state)]
    split = _Split(shared, structure)

    def advance(
        rho: jax.Array, seed: jax.Array, labels: jax.Array, common: Any, own: Any
    ) -> tuple[Any, Any]:
        made, state = experiment(rho, seed), split.join(common, own)
        order = batch.epoch_order(made, state.step // made.steps_per_epoch)

        def body(parts: Any, _: None) -> tuple[Any, None]:
            state = split.join(*parts)
            raw = batch.gather(made, state.step, order, images, labels)
            return split.apart(steps.train_step(made, state, *raw, None)), None

        parts, _ = jax.lax.scan(body, (common, own), length=made.steps_per_epoch)
        return parts

    epoch = jax.jit(
        jax.vmap(advance, in_axes=(0, 0, 0, None, 0), out_axes=(None, 0)),
        donate_argnums=(4,),
    )
    common = [x[0] for x, same in zip(leaves, shared, strict=True) if same]
    rest = [x for x, same in zip(leaves, shared, strict=True) if not same]
    for _ in range(base.epochs):
        common, rest = epoch(rhos, seeds, labels, common, rest)
    return _evaluated(base, split.join(common, rest), len(lanes))


class _Split(NamedTuple):
    """Takes a state apart: the counters that all trainings share, and the rest."""

    shared: Sequence[bool]
    structure: Any

    def apart(self, state: PyTree) -> tuple[list[jax.Array], list[jax.Array]]:
        leaves = list(zip(jax.tree.leaves(state), self.shared, strict=True))
        common = [x for x, same in leaves if same]
        return common, [x for x, same in leaves if not same]

    def join(self, common: Sequence[jax.Array], own: Sequence[jax.Array]) -> PyTree:
        parts = iter(common), iter(own)
        leaves = [next(parts[0] if same else parts[1]) for same in self.shared]
        return jax.tree.unflatten(self.structure, leaves)


def _is_counter(path: Sequence[Any]) -> bool:
    return getattr(path[-1], "name", None) in COUNTERS


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


def _examples(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    found = experiment.dataset
    assert isinstance(found, data.Dataset)
    return found.train_images, found.train_labels


def _evaluated(experiment: Experiment, state: PyTree, lanes: int) -> list[Result]:
    """Returns the ends of trainings whose states are stacked."""
    if experiment.holds_pruned:
        raise TypeError(
            "methods that keep the values of pruned weights do not train side by side."
        )
    params, model_state = steps.evaluated(state)
    split = "test" if experiment.validation is None else "validation"
    add = jax.jit(
        jax.vmap(
            lambda params, model_state, totals, images, labels, count: (
                accuracy.add_batch(
                    experiment, params, model_state, images, labels, count, totals
                )
            ),
            in_axes=(0, 0, 0, None, None, None),
        )
    )
    totals = jax.tree.map(
        lambda x: jnp.zeros(lanes, x.dtype), accuracy.no_totals(experiment)
    )
    predictions = 0
    for images, labels, count in accuracy.batches(experiment, split):
        totals = add(params, model_state, totals, images, labels, np.int32(count))
        predictions += labels[:count].size
    correct, bad = jax.device_get((totals.correct, state.totals.bad_step))
    guessing = 1 / experiment.facts.num_classes
    return [
        Result(guessing if b >= 0 else int(c) / predictions, bool(b >= 0))
        for c, b in zip(correct, bad, strict=True)
    ]
