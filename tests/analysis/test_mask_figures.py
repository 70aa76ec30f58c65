"""Densities, churn and overlap of masks, counted by hand."""

import jax
import numpy as np
import pytest

from zosam_jax import analysis, sparsity

A = {"a": np.array([1, 1, 0, 0], bool), "b": np.ones((2, 3), bool), "bias": True}
B = {"a": np.array([1, 0, 1, 0], bool), "b": np.eye(2, 3, dtype=bool), "bias": True}


@pytest.mark.quick
def test_densities_leave_dense_leaves_out():
    found = analysis.layer_densities(B)
    assert found == {"a": (2, 4, 0.5), "b": (2, 6, 2 / 6)}
    assert analysis.layer_densities(sparsity.pack(B)) == found


@pytest.mark.quick
def test_overlap_counts_shared_weights():
    found = analysis.mask_overlap(A, B)
    # a: one shared of three; by chance 2 * 2 / 4 = 1 shared. b: B lies within A.
    assert found["a"] == (1, 2, 2, 1 / 3, 1 / 3, 0.5)
    assert found["b"] == (2, 6, 2, 2 / 6, 2 / 6, 0.0)
    assert found["all"] == (3, 8, 4, 3 / 9, 3 / 9, 0.25)
    np.testing.assert_allclose(
        analysis.overlap_matrix({"a": A, "b": B, "c": A}),
        [[1, 1 / 3, 1], [1 / 3, 1, 1 / 3], [1, 1 / 3, 1]],
    )


def test_random_masks_overlap_by_chance():
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = ({"w": jax.random.bernoulli(k, 0.3, (400, 500))} for k in keys)
    found = analysis.mask_overlap(a, b)["all"]
    np.testing.assert_allclose(found.jaccard, found.chance, rtol=0.02)


def test_masks_of_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"cannot be compared: b\."):
        analysis.mask_overlap(A, {**B, "b": np.eye(3, dtype=bool)})
