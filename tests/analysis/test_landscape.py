"""Landscapes against direct evaluation in float64, and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.analysis.small_networks import BATCHES, CASES, PARAMS, SPARSE, Dense, loss
from zosam_jax import analysis

KEY = jax.random.key(3)
AXES = (np.linspace(-1, 1, 5), np.linspace(-0.5, 1, 4))


@pytest.mark.quick
@pytest.mark.parametrize("case", range(2), ids=["dense", "sparse"])
def test_heights_are_the_loss_at_every_point(case):
    params, masks = CASES[case]
    # Without masks, so that those of the landscape restrict them.
    keys = jax.random.split(KEY, 2)
    directions = [analysis.random_direction(keys[i], PARAMS) for i in range(2)]
    seen = []
    found = analysis.loss_landscape(
        loss,
        params,
        directions,
        axes=AXES,
        masks=masks,
        batches=BATCHES,
        on_progress=lambda *done: seen.append(done),
    )
    dense = Dense(params, masks)
    flat = [np.asarray(ravel_pytree(x)[0]) for x in directions]
    d, e = (x[np.flatnonzero(dense.live)] for x in flat)
    wanted = [[dense.value(x * d + y * e) for y in AXES[1]] for x in AXES[0]]
    np.testing.assert_allclose(found.heights, wanted, rtol=1e-5)
    assert seen == [(16, 40), (32, 40), (36, 40), (40, 40)]
    assert found.roughness == analysis.roughness(found.heights)


@pytest.mark.quick
@pytest.mark.parametrize("axis", [-1, 0])
def test_directions_have_the_norms_of_the_filters(axis):
    """Li et al.: each filter of d has the norm of that filter of w."""
    params = {"conv": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 4)))}
    found = analysis.random_direction(KEY, params, filter_axis=axis)["conv"]
    filters = (np.moveaxis(np.asarray(x), axis, 0) for x in (found, params["conv"]))
    for d, w in zip(*filters, strict=True):
        np.testing.assert_allclose(np.linalg.norm(d), np.linalg.norm(w), rtol=1e-5)


def test_sparse_directions_lie_on_the_mask_and_vectors_do_not_move():
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    live = np.array([[1, 0], [1, 0], [0, 0]], bool)
    masks = {"kernel": live, "bias": True}
    found = analysis.random_direction(KEY, params, masks=masks)
    assert not np.asarray(found["kernel"])[~live].any()
    norms = np.linalg.norm(found["kernel"], axis=0)
    # The first filter has two live weights of 1; the second has none.
    np.testing.assert_allclose(norms, [np.sqrt(2), 0], rtol=1e-6)
    np.testing.assert_array_equal(found["bias"], 0)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("heights", "wanted"),
    [
        (np.full((4, 4), 7.0), 0.0),
        (np.indices((4, 6)).sum(0) % 2 * 2.0, 1.0),  # a chessboard of 0 and 2
        (np.linspace(-1, 1, 5), 0.6),  # (1 + 0.5 + 0 + 0.5 + 1) / 5
        (np.linspace(-3, 3, 100_001), 1.5),  # a slope: half its height
        (np.cos(np.linspace(0, 2 * np.pi, 100_000)), 2 / np.pi),
    ],
)
def test_roughness_of_known_surfaces(heights, wanted):
    np.testing.assert_allclose(analysis.roughness(heights), wanted, rtol=1e-4)


def test_roughness_of_an_infinite_height_is_nan():
    assert np.isnan(analysis.roughness(np.array([1.0, np.inf])))


def test_the_plane_contains_its_three_networks():
    runs = [PARAMS, SPARSE, jax.tree.map(lambda x: x[..., ::-1] / 2, PARAMS)]
    plane = analysis.plane_through(*runs)
    for x, y in plane.points:
        found = analysis.loss_landscape(
            loss, plane.origin, plane.directions, axes=[[x], [y]], batches=BATCHES
        )
        wanted = Dense(runs.pop(0), None).value()
        np.testing.assert_allclose(found.heights, [[wanted]], rtol=1e-5)
    d, e = (np.asarray(ravel_pytree(x)[0], np.float64) for x in plane.directions)
    np.testing.assert_allclose([d @ d, e @ e, d @ e], [1, 1, 0], atol=1e-6)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="lie on a line"):
        analysis.plane_through(PARAMS, SPARSE, PARAMS)
    with pytest.raises(ValueError, match="directions has 0 trees"):
        analysis.loss_landscape(loss, PARAMS, [], batches=BATCHES)
    with pytest.raises(ValueError, match="does not have the shapes of params"):
        analysis.loss_landscape(loss, PARAMS, [PARAMS["out"]], batches=BATCHES)
    with pytest.raises(ValueError, match="axes has 2 arrays for 1 direction"):
        analysis.loss_landscape(loss, PARAMS, [PARAMS], batches=BATCHES, axes=AXES)
    with pytest.raises(
        TypeError, match=r"value_fn must be .* it takes \(params, batch"
    ):
        analysis.loss_landscape(loss, PARAMS, [PARAMS])
