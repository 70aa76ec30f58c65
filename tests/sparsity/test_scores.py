"""Scores of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax.sparsity import scores

PARAMS = {"w": jnp.array([-2.0, 0.5])}
GRADS = {"w": jnp.array([0.25, -3.0])}
# Computed by hand.
EXPECTED = {"magnitude": [2, 0.5], "gradient": [0.25, 3], "saliency": [0.5, 1.5]}


@pytest.mark.parametrize("name", sorted(scores.SCORES.keys() - {"random"}))
def test_scores_are_what_they_say(name):
    assert name in EXPECTED, f"add the values of the score {name} to EXPECTED"
    found = scores.SCORES[name](PARAMS, GRADS, jax.random.key(0))
    np.testing.assert_array_equal(found["w"], EXPECTED[name])


def test_random_scores_depend_on_the_key_alone():
    params = {"w": jnp.zeros(10_000)}
    first, again = (scores.random(params, None, jax.random.key(0)) for _ in range(2))
    np.testing.assert_array_equal(first["w"], again["w"])
    other = scores.random({"w": params["w"] + 1}, None, jax.random.key(0))
    np.testing.assert_array_equal(first["w"], other["w"])
    second = scores.random(params, None, jax.random.key(1))
    # The correlation of independent draws has a deviation of 1 / sqrt(n).
    assert abs(np.corrcoef(first["w"], second["w"])[0, 1]) < 0.05
