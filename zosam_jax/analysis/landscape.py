"""Loss landscapes: the loss on a line or a plane through parameters."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Key, Masks, Params, PyTree
from zosam_jax.analysis.objective import BatchLoss, Objective, batch_loss
from zosam_jax.sparsity.mask_trees import filled
from zosam_jax.sparsity.packing import PackedMasks, unpack

# Points that one call of the compiled program evaluates, one after another.
_CHUNK = 16


class Landscape(NamedTuple):
    """The loss on a grid.

    Attributes:
      axes: Coordinates along each direction, one or two arrays, ascending.
      heights: The loss at every point, `[n]` or `[n, m]`, float64: `heights[i, j]` is
        at `axes[0][i]` and `axes[1][j]`.
      roughness: Ra of the heights; see `roughness`.
    """

    axes: tuple[np.ndarray, ...]
    heights: np.ndarray
    roughness: float


class Plane(NamedTuple):
    """The plane through three points of parameter space.

    Attributes:
      origin: The first point, w1.
      directions: Two orthogonal directions of length 1, trees like the parameters.
      points: Coordinates of the three points, `[3, 2]`.
    """

    origin: Params
    directions: tuple[Params, Params]
    points: np.ndarray


def loss_landscape(
    value_fn: BatchLoss,
    params: Params,
    directions: Sequence[Params],
    *,
    axes: Sequence[np.ndarray | Sequence[float]] | None = None,
    masks: Masks | PackedMasks | None = None,
    batches: Iterable[PyTree] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Landscape:
    r"""Returns the loss on a line or a plane through the parameters.

    .. math::
      h_{ij} = L(w + x_i d_1 + y_j d_2)

    One program is compiled. Each call evaluates some points on one batch.

    Args:
      value_fn: `(params, batch) -> loss`, a scalar; `params -> loss` without batches.
      params: Pytree of floating point arrays, w.
      directions: One or two trees like the parameters: of `random_direction`,
        eigenvectors of `hessian_eigenvalues`, or those of `plane_through`.
      axes: Coordinates x, and y. Default: 25 from -1 to 1 along each direction.
      masks: Mask tree: parameters and directions are zero off it.
      batches: Batches of one shape; the loss is its mean over them.
      on_progress: Called with the number of evaluations made, points times batches,
        and of all.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> found = zs.analysis.loss_landscape(
      ...     lambda w: w @ w, jnp.zeros(2), [jnp.array([0.0, 2.0])], axes=[[-1, 0, 1]]
      ... )
      >>> print(found.heights, round(found.roughness, 3))
      [4. 0. 4.] 1.778
    """
    if len(directions) not in (1, 2):
        raise ValueError(f"directions has {len(directions)} trees; give one or two.")
    objective = Objective(value_fn, params, masks, batches)
    moves = [objective.tree(objective.vector(d)) for d in directions]
    axes = [np.linspace(-1, 1, 25)] * len(moves) if axes is None else axes
    grid = tuple(np.asarray(axis, np.float64) for axis in axes)
    if len(grid) != len(moves):
        raise ValueError(f"axes has {len(grid)} arrays for {len(moves)} directions.")
    points = np.stack([x.reshape(-1) for x in np.meshgrid(*grid, indexing="ij")], 1)
    count, parts = len(points), len(objective.batches)
    sums = np.zeros(count)
    for start in range(0, count, _CHUNK):
        chosen = points[start : start + _CHUNK]
        # The last call repeats its last point, so that all have one shape.
        rows = np.pad(chosen, ((0, _CHUNK - len(chosen)), (0, 0)), mode="edge")
        rows = jnp.asarray(rows, objective.dtype)
        for number, batch in enumerate(objective.batches):
            found = _heights(value_fn, objective.params, moves, rows, batch)
            sums[start : start + _CHUNK] += np.asarray(found)[: len(chosen)]
            if on_progress is not None:
                done = start * parts + len(chosen) * (number + 1)
                on_progress(done, count * parts)
    heights = (sums / parts).reshape([len(axis) for axis in grid])
    return Landscape(grid, heights, roughness(heights))


@functools.partial(jax.jit, static_argnums=0)
def _heights(
    value_fn: BatchLoss,
    params: Params,
    directions: list[Params],
    points: jax.Array,
    batch: PyTree,
) -> jax.Array:
    loss = batch_loss(value_fn, batch)

    def height(point: jax.Array) -> jax.Array:
        moved = params
        for x, direction in zip(point, directions, strict=True):
            moved = jax.tree.map(lambda w, d, x=x: w + x * d, moved, direction)
        return loss(moved)

    # Forward passes are as fast inside a compiled loop as outside; vmap over weights
    # would turn convolutions into grouped ones.
    return jax.lax.map(height, points)


def roughness(heights: np.ndarray) -> float:
    r"""Returns Ra, the mean absolute deviation of the heights from their mean.

    .. math::
      R_a = \frac{1}{n} \sum_{i=1}^n |h_i - \bar h|, \qquad
      \bar h = \frac{1}{n} \sum_{i=1}^n h_i

    Ra as surface metrology defines it (ISO 21920-2), on the points of the grid, without
    a form removed first. It depends on the extent of the grid and the directions:
    compare surfaces on the same axes. NaN if a height is not finite.

    Args:
      heights: Heights, of any shape.

    Example:
      >>> import numpy as np, zosam_jax as zs
      >>> zs.analysis.roughness(np.array([1.0, 3.0, 1.0, 3.0]))
      1.0
    """
    heights = np.asarray(heights, np.float64)
    if not np.all(np.isfinite(heights)):
        return float("nan")
    return float(np.mean(np.abs(heights - np.mean(heights))))


def random_direction(
    key: Key,
    params: Params,
    *,
    masks: Masks | PackedMasks | None = None,
    filter_axis: int = -1,
) -> Params:
    r"""Returns a filter-normalised random direction, zero off the mask.

    .. math::
      d_{l,j} \leftarrow \frac{d_{l,j}}{|d_{l,j}|} |w_{l,j}|, \qquad d \sim N(0, I)

    for filter j of layer l (Li et al., 2018, arXiv:1712.09913). Vectors and scalars,
    such as biases and the scales of a normalization, do not move, as in the authors'
    experiments. With masks, d and the norms are of the live weights of a filter.

    Args:
      key: One PRNG key.
      params: Pytree of floating point arrays, w.
      masks: Mask tree; None: all weights are live.
      filter_axis: Axis of a kernel that counts its filters: -1 for Flax and Haiku, 0
        for Equinox and PyTorch.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> w = {"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]]), "bias": jnp.ones(2)}
      >>> d = zs.analysis.random_direction(jax.random.key(0), w)
      >>> print(jnp.linalg.norm(d["kernel"], axis=0).round(3), d["bias"])
      [5. 1.] [0. 0.]
    """
    if masks is not None:
        masks = filled(unpack(masks), params)
        tree.check_masks(masks, params)
    drawn = tree.mask(tree.normal_like(key, params), masks)

    def leaf(d: jax.Array, w: jax.Array) -> jax.Array:
        if jnp.ndim(w) < 2:
            return jnp.zeros_like(d)
        wide = jnp.asarray(w, d.dtype)
        axes = tuple(i for i in range(d.ndim) if i != filter_axis % d.ndim)
        old, new = (jnp.sqrt(jnp.sum(x**2, axes, keepdims=True)) for x in (d, wide))
        # A filter without a live weight has no direction.
        return d * (new / jnp.where(old > 0, old, 1))

    return jax.tree.map(leaf, drawn, tree.mask(params, masks))


def plane_through(first: Params, second: Params, third: Params) -> Plane:
    r"""Returns the plane through the parameters of three networks of one model.

    .. math::
      d_1 = \frac{w_2 - w_1}{|w_2 - w_1|}, \qquad
      d_2 = \frac{v - \langle v, d_1 \rangle d_1}{|v - \langle v, d_1 \rangle d_1|},
      \quad v = w_3 - w_1

    (Garipov et al., 2018, arXiv:1802.10026). `loss_landscape` of `origin` and
    `directions`, without masks, contains the three networks at `points`; the networks
    between them have the live weights of all three.

    Args:
      first: Parameters w1.
      second: Parameters w2.
      third: Parameters w3.

    Raises:
      ValueError: The three points lie on a line, so that there is no one plane.
    """
    w1, w2, w3 = (_float64(x) for x in (first, second, third))
    u, v = (jax.tree.map(np.subtract, w, w1) for w in (w2, w3))
    length = _norm(u)
    d1 = jax.tree.map(lambda x: x / (length or 1), u)
    along = sum(np.vdot(a, b) for a, b in _pairs(v, d1))
    rest = jax.tree.map(lambda x, d: x - along * d, v, d1)
    height = _norm(rest)
    if not length or height <= 1e-6 * _norm(v):
        raise ValueError(
            "the three networks lie on a line, so that many planes contain them. Pass "
            "loss_landscape one direction, or choose another network."
        )
    d2 = jax.tree.map(lambda x: x / height, rest)
    points = np.array([[0.0, 0.0], [length, 0.0], [float(along), height]])
    return Plane(first, (_float32(d1), _float32(d2)), points)


def _float64(params: Params) -> Params:
    _check.trainable(params)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def _float32(params: Params) -> Params:
    return jax.tree.map(np.float32, params)


def _pairs(x: Params, y: Params) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def _norm(params: Params) -> float:
    return float(np.sqrt(sum(np.vdot(x, x) for x in jax.tree.leaves(params))))
