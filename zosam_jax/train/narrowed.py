"""A training that goes on with a smaller network: experiment and shapes of the state.

A checkpoint says of such a network `{"widths": ..., "masks_fixed": ...}`: the widths of
the model, and whether its masks change no more. With the experiment that the run began
with, all else follows from that.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from zosam_jax import models
from zosam_jax._types import PyTree, Seed, Shape
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.files import JSON
from zosam_jax.sparsity.lasting import after_cut, cut_topology
from zosam_jax.sparsity.method import Topology
from zosam_jax.train import scores
from zosam_jax.train.experiment import Experiment, Optimization

if TYPE_CHECKING:
    from zosam_jax.train.step import TrainState

KeyPath = tuple[Any, ...]


def of(whole: Experiment, network: JSON) -> Experiment:
    """Returns the experiment of a smaller network.

    Args:
      whole: The experiment that the run began with; its model has a field `widths`.
      network: What a checkpoint says of the smaller network.
    """
    model = whole.model.clone(widths=network["widths"])
    initialize = functools.partial(
        models.initialize, model, image_shape=whole.facts.image_shape
    )
    before, _ = whole.shapes
    _, model_state = jax.eval_shape(initialize, jax.random.key(0))
    aux_like = model_state, scores.no_sums(whole.facts, np.float32)

    def optimization(seed: Seed) -> Optimization:
        parts = whole.optimization(seed)
        assert parts.method is not None
        method = after_cut(parts.method, before, is_fixed=network["masks_fixed"])
        gradient = parts.gradient.with_options(aux_like=aux_like)
        return parts._replace(
            gradient=gradient,
            method=method,
            criterion=None,
            optimizer=parts.optimizer_of(method, gradient),
        )

    probe_model = model
    if whole.probe_model is not whole.model:
        probe_model = model.clone(dtype=whole.probe_model.dtype)
    return dataclasses.replace(
        whole,
        whole=whole,
        network=network,
        model=model,
        probe_model=probe_model,
        initialize=initialize,
        optimization=optimization,
        **optimization(whole.seed)._asdict(),
    )


def with_widths(config: TrainConfig, widths: Mapping[str, int]) -> TrainConfig:
    """Returns a configuration whose named model has other widths.

    Args:
      config: The configuration. A model that was given has its widths itself.
      widths: The widths; {}: the usual ones.

    >>> with_widths(TrainConfig(model="mlp"), {"hidden1": 40}).model_options
    ("widths={'hidden1': 40}",)
    """
    if config.model not in models.names():
        return config
    options = [x for x in config.model_options if x.split("=")[0] != "widths"]
    options += [f"widths={dict(widths)!r}"] if widths else []
    return dataclasses.replace(config, model_options=tuple(options))


def state_like(state: "TrainState", experiment: Experiment) -> "TrainState":
    """Returns the shapes of the state of a smaller network.

    Args:
      state: The state that the run began with, or its shapes.
      experiment: The experiment of the smaller network.
    """
    assert experiment.whole is not None
    pairs = list(map(_by_path, (experiment.whole.shapes, experiment.shapes)))

    def leaf(path: KeyPath, x: Any) -> jax.ShapeDtypeStruct:
        old, new = (_of(path, shapes) for shapes in pairs)
        shape = np.shape(x)
        if old is not None and new is not None and _is_like(x, old):
            shape = (*shape[: len(shape) - len(old)], *new)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    like = jax.tree_util.tree_map_with_path(leaf, state)
    return cut_memory(like, experiment, abstract=True)


def cut_memory(
    state: "TrainState", experiment: Experiment, *, abstract: bool = False
) -> "TrainState":
    """Returns a state that was cut, with the memory of its method cut too.

    Args:
      state: The state, or its shapes.
      experiment: The experiment of the smaller network.
      abstract: Whether these are shapes.
    """
    assert experiment.whole is not None
    assert experiment.whole.method is not None
    params, _ = experiment.shapes
    cut = functools.partial(cut_topology, experiment.whole.method, params=params)
    held = state.opt_state
    topology = Topology(held.masks, held.memory)
    if abstract:
        memory = jax.eval_shape(cut, topology).memory
    else:
        memory = jax.tree.map(np.asarray, cut(topology).memory)
    return state._replace(opt_state=held._replace(memory=memory))


def misfits(state: "TrainState", experiment: Experiment) -> list[str]:
    """Returns the arrays of an optimizer's state that no parameter's cut would fit.

    They have another shape than the parameter that they belong to, or belong to none.

    Args:
      state: The state, or its shapes.
      experiment: The experiment.
    """
    shapes = _by_path(experiment.shapes)
    held = state.opt_state
    # The sums of the score beside the model's state are of no parameter.
    model_state, _ = held.gradient.aux
    gradient = held.gradient._replace(aux=model_state)
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        (held.inner, gradient, held.accumulated)
    )
    found = []
    for path, x in leaves:
        shape = _of(tuple(path), shapes)
        if math.prod(np.shape(x)) > 1 and not (shape and _is_like(x, shape)):
            found.append(jax.tree_util.keystr(path[1:], simple=True, separator="/"))
    return found


def _by_path(trees: tuple[PyTree, PyTree]) -> dict[KeyPath, Shape]:
    """Returns the shapes of parameters and other collections by key path."""
    return {
        tuple(path): tuple(x.shape)
        for tree in trees
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _of(path: KeyPath, shapes: Mapping[KeyPath, Shape]) -> Shape | None:
    """Returns the shape of the leaf, of the longest path, that a path ends in."""
    for start in range(len(path) + 1):
        shape = shapes.get(tuple(path[start:]))
        if shape is not None:
            return shape
    return None


def _is_like(x: Any, shape: Shape) -> bool:
    """Whether the trailing axes of an array are those of a leaf."""
    return np.shape(x)[np.ndim(x) - len(shape) :] == shape
