"""The loss over batches, and its derivatives in the coordinates of the live weights.

Each pass over the batches is a loop in Python around one compiled program for a batch:
derivatives of convolutions run much slower inside a compiled loop on a CPU, and the
batches need not be on the device together.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, PyTree
from zosam_jax.estimators.losses import check_function, scalar_loss
from zosam_jax.sparsity.mask_trees import filled
from zosam_jax.sparsity.packing import PackedMasks, unpack

BatchLoss = Callable[..., Any]
"""`params -> loss`; with batches, `(params, batch) -> loss`, the mean over a batch."""


class Objective:
    r"""The mean of a loss over batches, on the mask's subspace.

    .. math::
      L(w) = \frac{1}{B} \sum_{b=1}^B \ell(w, b)

    Batches of equal size make it the mean over all examples. A vector `v[size]` has one
    coordinate for every live weight. Sums and derivatives are in float32, or in float64
    if a parameter is.

    Attributes:
      params: The parameters, float32 or wider, zero off the mask.
      masks: The mask tree; None: all weights are live.
      live: Indices of the live weights in the flat parameters; None: all.
      batches: A tuple `(batch,)` for each batch; one `()` without batches.
      size: Number of live weights, d.
      dtype: Data type of the vectors.
    """

    def __init__(
        self,
        value_fn: BatchLoss,
        params: Params,
        masks: Masks | PackedMasks | None = None,
        batches: Iterable[PyTree] | None = None,
    ):
        """Returns the objective at the parameters.

        Args:
          value_fn: `(params, batch) -> scalar loss`; `params -> scalar loss` without
            batches. Its compiled programs are kept as long as the function is the same
            object.
          params: Pytree of floating point arrays.
          masks: Mask tree, perhaps packed; None: all weights are live.
          batches: Batches of one structure and shape, such as `(images, labels)`.

        Raises:
          ValueError: The masks do not fit, no weight is live, or there is no batch.
          TypeError: A leaf is no array of real floats, or `value_fn` is no function.
        """
        batches = [()] if batches is None else [(batch,) for batch in batches]
        if not batches:
            raise ValueError("batches is empty: the mean over no batch is undefined.")
        _check_loss(value_fn, batches[0])
        _check.trainable(params)
        params = jax.tree.map(
            lambda x: jnp.asarray(x, tree.wide_dtype(jnp.result_type(x))), params
        )
        self.live = None
        if masks is not None:
            masks = filled(unpack(masks), params)
            tree.check_masks(masks, params)
            params = tree.mask(params, masks)
            live = np.concatenate(
                [
                    np.broadcast_to(np.asarray(m, bool), jnp.shape(x)).reshape(-1)
                    for m, x in zip(
                        jax.tree.leaves(masks), jax.tree.leaves(params), strict=True
                    )
                ]
            )
            self.live = jnp.asarray(np.flatnonzero(live))
        self.value_fn, self.params, self.masks = value_fn, params, masks
        self.batches = batches
        self.size = tree.size(params) if self.live is None else len(self.live)
        self.dtype = np.dtype(
            jnp.result_type(jnp.float32, *(x.dtype for x in jax.tree.leaves(params)))
        )
        if not self.size:
            raise ValueError("no weight is live, so there is nothing to analyse.")

    def value(self, vector: np.ndarray | None = None) -> float:
        """Returns L(w + v), or L(w)."""
        params = self.params if vector is None else self.moved(vector)
        losses = [_value(self.value_fn, params, batch) for batch in self.batches]
        return float(np.mean([np.float64(loss) for loss in losses]))

    def moved(self, vector: np.ndarray) -> Params:
        """Returns w + v, as a tree."""
        return jax.tree.map(jnp.add, self.params, self.tree(vector))

    def gradient(self, vector: np.ndarray | None = None) -> np.ndarray:
        """Returns the gradient at w + v, or at w, `[size]`."""
        params = self.params if vector is None else self.moved(vector)
        return self._mean(
            lambda batch: _gradient(self.value_fn, params, self.live, batch)
        )

    def product(self, vector: np.ndarray) -> np.ndarray:
        """Returns the Hessian at w times v, `[size]`."""
        v = jnp.asarray(vector, self.dtype)
        return self._mean(
            lambda batch: _product(self.value_fn, self.params, self.live, v, batch)
        )

    def tree(self, vector: np.ndarray) -> Params:
        """Returns a vector as a tree like the parameters, zero off the mask."""
        return _embedded(jnp.asarray(vector, self.dtype), self.params, self.live)

    def vector(self, tree: Params) -> np.ndarray:
        """Returns the live coordinates of a tree like the parameters, `[size]`.

        Raises:
          ValueError: The tree is not like the parameters.
        """
        both = tree, self.params
        given, own = ([jnp.shape(x) for x in jax.tree.leaves(each)] for each in both)
        if given != own:
            raise ValueError(
                f"a tree of {len(given)} leaves does not have the shapes of params, "
                f"which has {len(own)}."
            )
        return np.asarray(restricted(tree, self.live), self.dtype)

    def _mean(self, function: Callable[[PyTree], jax.Array]) -> np.ndarray:
        total = functools.reduce(jnp.add, map(function, self.batches))
        return np.asarray(total) / self.dtype.type(len(self.batches))


def _check_loss(value_fn: BatchLoss, batch: PyTree) -> None:
    """Raises `TypeError` unless the loss is a function of parameters and batch."""
    if not batch:
        check_function(value_fn)
        return
    wanted = "value_fn must be a function (params, batch) -> loss"
    if not callable(value_fn):
        raise TypeError(f"{wanted}; got {type(value_fn).__name__}.")
    taken = _check.signature_of(value_fn)
    try:
        if taken is not None:
            taken.bind(None, None)
    except TypeError:
        raise TypeError(
            f"{wanted}; it takes {taken}. Without batches it takes params alone."
        ) from None


def batch_loss(value_fn: BatchLoss, batch: PyTree) -> Callable[[Params], jax.Array]:
    """Returns the loss on a batch, float32 or wider; errors name what is wrong.

    Args:
      value_fn: As in `Objective`.
      batch: `(batch,)`, or `()` without batches.
    """
    loss = scalar_loss(lambda params: value_fn(params, *batch), has_aux=False)
    return lambda params: loss(params)[0]


def _embedded(vector: jax.Array, params: Params, live: jax.Array | None) -> Params:
    flat, unravel = ravel_pytree(params)
    if live is not None:
        vector = jnp.zeros_like(flat).at[live].set(vector, unique_indices=True)
    return unravel(vector)


def restricted(tree: Params, live: jax.Array | None) -> jax.Array:
    """Returns the live coordinates of a tree, `[size]`.

    Args:
      tree: Tree like the parameters.
      live: Indices of the live weights in the flat parameters; None: all.
    """
    flat, _ = ravel_pytree(tree)
    return flat if live is None else flat[live]


# Keyed by the function itself: calls for other batches, vectors and masks of the same
# number of live weights use one program.
@functools.partial(jax.jit, static_argnums=0)
def _value(value_fn: BatchLoss, params: Params, batch: PyTree) -> jax.Array:
    return batch_loss(value_fn, batch)(params)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(
    value_fn: BatchLoss, params: Params, live: jax.Array | None, batch: PyTree
) -> jax.Array:
    return restricted(jax.grad(batch_loss(value_fn, batch))(params), live)


@functools.partial(jax.jit, static_argnums=0)
def _product(
    value_fn: BatchLoss,
    params: Params,
    live: jax.Array | None,
    vector: jax.Array,
    batch: PyTree,
) -> jax.Array:
    # Forward over reverse: about the time of two gradients.
    gradient = jax.grad(batch_loss(value_fn, batch))
    _, product = jax.jvp(gradient, (params,), (_embedded(vector, params, live),))
    return restricted(product, live)
