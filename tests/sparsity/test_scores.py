"""Scores of weights."""

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.sparsity import scores


def test_scores_are_what_they_say():
    params = {"w": jnp.array([-2.0, 0.5])}
    grads = {"w": jnp.array([0.25, -3.0])}
    key = jax.random.key(0)
    for score, expected in (
        (scores.magnitude, [2, 0.5]),
        (scores.gradient, [0.25, 3]),
        (scores.saliency, [0.5, 1.5]),
    ):
        np.testing.assert_array_equal(score(params, grads, key)["w"], expected)
