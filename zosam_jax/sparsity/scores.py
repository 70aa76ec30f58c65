"""Scores that rank weights.

A score is a function `(params, grads, key) -> tree of float arrays`, the higher the
better; what drops is what scores lowest. A new method is a new function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree

Score = Callable[[Any, Any, jax.Array], Any]
"""`(params, grads, key) -> scores`, all trees like the parameters."""


def magnitude(params: Any, grads: Any, key: jax.Array) -> Any:
    """|w|."""
    del grads, key
    return jax.tree.map(jnp.abs, params)


def gradient(params: Any, grads: Any, key: jax.Array) -> Any:
    """|dL/dw|, at pruned weights too: what RigL grows by (arXiv:1911.11134)."""
    del params, key
    return jax.tree.map(jnp.abs, grads)


def saliency(params: Any, grads: Any, key: jax.Array) -> Any:
    """|w dL/dw|, SNIP's connection sensitivity (arXiv:1810.02340, equation 4)."""
    del key
    return jax.tree.map(
        lambda w, g: jnp.abs(w.astype(jnp.float32) * g.astype(jnp.float32)),
        params,
        grads,
    )


def random(params: Any, grads: Any, key: jax.Array) -> Any:
    """Independent uniform numbers."""
    del grads
    return tree.uniform_like(key, params)


SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "gradient": gradient,
    "saliency": saliency,
    "random": random,
}
"""The scores by name; an argument that takes a score takes its name too."""


def named(argument: str, score: str | Score) -> Score:
    """Returns the score of a name; a function is returned unchanged.

    Raises:
      ValueError: The name is unknown; the message names the argument.
    """
    if callable(score):
        return score
    _check.one_of(argument, score, SCORES)
    return SCORES[score]
