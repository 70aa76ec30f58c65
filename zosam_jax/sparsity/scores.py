"""Scores that rank weights.

A score is a function `(params, grads, key) -> tree of float arrays`, higher for better
weights. A method drops the live weights with the lowest drop scores and grows the
pruned weights with the highest grow scores. A new score is a function and a row of
`SCORES`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._types import Grads, Key, Params, PyTree

SIGNATURE = "(params, grads, key) -> scores"
Score = Callable[[Params, Grads | None, Key], PyTree]
"""`(params, grads, key) -> scores`, all trees like the parameters."""


def magnitude(params: Params, grads: Grads | None, key: Key) -> PyTree:
    """Returns |w|.

    Args:
      params: Pytree of arrays, w.
      grads: Not used.
      key: Not used.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> print(zs.sparsity.scores.magnitude(jnp.array([-2.0, 1.0]), None, None))
      [2. 1.]
    """
    del grads, key
    return jax.tree.map(jnp.abs, params)


def gradient(params: Params, grads: Grads | None, key: Key) -> PyTree:
    """Returns |dL/dw|, for pruned weights too; RigL grows by it (arXiv:1911.11134).

    Args:
      params: Not used.
      grads: Tree like the parameters, dL/dw.
      key: Not used.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> print(zs.sparsity.scores.gradient(None, jnp.array([0.5, -3.0]), None))
      [0.5 3. ]
    """
    del params, key
    return jax.tree.map(jnp.abs, grads)


def saliency(params: Params, grads: Grads | None, key: Key) -> PyTree:
    """Returns |w dL/dw|, SNIP's connection sensitivity (arXiv:1810.02340, eq. 4).

    Args:
      params: Pytree of arrays, w.
      grads: Tree like `params`, dL/dw.
      key: Not used.

    Returns:
      A tree like `params`, float32.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> w, g = jnp.array([-2.0, 1.0]), jnp.array([0.5, -3.0])
      >>> print(zs.sparsity.scores.saliency(w, g, None))
      [1. 3.]
    """
    del key
    # In float32: products of bfloat16 numbers often tie, and ties are cut by the index.
    return jax.tree.map(
        lambda w, g: jnp.abs(w.astype(jnp.float32) * g.astype(jnp.float32)),
        params,
        grads,
    )


def random(params: Params, grads: Grads | None, key: Key) -> PyTree:
    """Returns independent numbers, uniform in [0, 1).

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      grads: Not used.
      key: PRNG key of the draw.

    Returns:
      A tree like `params`, float32.
    """
    del grads
    return tree.uniform_like(key, params)


def of_layers(
    score: Score,
    params: Params,
    grads: Grads | None,
    key: Key,
    layers: Callable[[PyTree], list[jax.Array]],
) -> list[jax.Array]:
    """Returns the scores of every sparse layer.

    `random` numbers are drawn layer by layer, so that a stack of layers has those of a
    list of them.

    Args:
      score: The score.
      params: Pytree of arrays, w.
      grads: Tree like `params`, dL/dw; None if the score does not read it.
      key: PRNG key of a draw.
      layers: `tree -> its sparse layers`, as `SparseLeaves.of`.
    """
    if score is random:
        return tree.uniform_like(key, layers(params))
    return layers(score(params, grads, key))


SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "gradient": gradient,
    "saliency": saliency,
    "random": random,
}
"""The scores by name; an argument that takes a score takes its name too."""


def named(argument: str, score: str | Score) -> Score:
    """Returns the score with a name; a function is returned unchanged.

    Args:
      argument: The argument's name, for the error.
      score: A name in `SCORES`, or a function.

    Raises:
      ValueError: The name is unknown.
    """
    if callable(score):
        _check.callable_as(argument, score, SIGNATURE)
        return score
    _check.one_of(argument, score, SCORES)
    return SCORES[score]
