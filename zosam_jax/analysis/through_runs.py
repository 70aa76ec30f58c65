"""The loss on the plane through three trained networks of one model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import Params, PyTree
from zosam_jax.analysis.landscape import loss_landscape, plane_through
from zosam_jax.analysis.network_figures import Network, Report
from zosam_jax.analysis.objective import BatchLoss
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.train.experiment import Loss, Model

COUNT = 3
"""Points that a plane goes through."""


def check(params: Sequence[Params]) -> None:
    """Raises `RunError` unless one plane goes through the networks.

    Args:
      params: The parameters of each run of an analysis.
    """
    if len(params) != COUNT:
        raise RunError(
            f"directions=runs is the plane through {COUNT} runs; {len(params)} are "
            "given."
        )
    shapes = [jax.tree.map(np.shape, each) for each in params]
    if any(found != shapes[0] for found in shapes):
        raise RunError(
            "directions=runs needs three runs of one model: their parameters differ in "
            "their names or shapes."
        )


def landscape(
    networks: Sequence[Network], loss: Loss, report: Report
) -> tuple[JSON, dict[str, np.ndarray]]:
    """Returns the figures and heights of the plane through three networks.

    The networks between have the live weights of all three. BatchNorm takes the
    statistics of each batch, since these networks have none of their own. Where a model
    with BatchNorm also drops activations in training, it does so here, with one key.

    Args:
      networks: Three networks of one model, and the batches of the first.
      loss: The loss of every example.
      report: Told the share that is done.

    Raises:
      RunError: The three networks lie on a line.
    """
    first = networks[0]
    try:
        plane = plane_through(*(network.params for network in networks))
    except ValueError as error:
        raise RunError(f"directions=runs: {error}") from error
    grid = [_axis(x, first.extent, first.points) for x in plane.points.T]
    found = loss_landscape(
        _loss_of_batch(first.model, loss),
        plane.origin,
        plane.directions,
        axes=grid,
        batches=first.batches,
        on_progress=lambda done, total: report(done / total),
    )
    figures = {
        "points": plane.points.tolist(),
        "roughness": found.roughness if np.isfinite(found.roughness) else None,
    }
    arrays = {"plane_x": grid[0], "plane_y": grid[1], "plane_heights": found.heights}
    return figures, arrays


def _axis(points: np.ndarray, extent: float, count: int) -> np.ndarray:
    low, high = float(points.min()), float(points.max())
    beyond = extent * (high - low)
    return np.linspace(low - beyond, high + beyond, count)


def _loss_of_batch(model: Model, loss: Loss) -> BatchLoss:
    """`(params, batch) -> loss`, with BatchNorm at the statistics of the batch."""

    def value_fn(params: Params, batch: PyTree) -> jax.Array:
        inputs, targets, model_state = batch
        variables = {"params": params, **model_state}
        if not model_state:
            logits = model.apply(variables, inputs, train=False)
        else:
            # A key for models that drop activations in training.
            logits, _ = model.apply(
                variables,
                inputs,
                train=True,
                mutable=list(model_state),
                rngs={"dropout": jax.random.key(0)},
            )
        return jnp.mean(loss(logits, targets))

    return value_fn
