"""Eigenvalues, density, trace and sharpness against dense float64 Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.analysis.small_networks import BATCHES, CASES, PARAMS, Dense, loss
from zosam_jax import analysis
from zosam_jax.analysis import hessian, lanczos

KEY = jax.random.key(0)
NOTHING = jax.tree.map(lambda x: np.zeros(x.shape, bool), PARAMS)
NAMES = ("dense", "sparse")
SPECTRUM = np.array([5.0, 2.0, 2.0, 2.0] + [0.0] * 36, np.float32)


def quadratic(w):
    """Four eigenvalues above 0, of three different values."""
    return jnp.sum(SPECTRUM * w**2) / 2


@pytest.fixture(scope="module", params=range(2), ids=NAMES)
def case(request):
    """Parameters, masks, and what they are in float64."""
    params, masks = CASES[request.param]
    return params, masks, Dense(params, masks)


@pytest.mark.quick
def test_eigenvalues_are_those_of_the_dense_hessian(case):
    params, masks, dense = case
    values, vectors = np.linalg.eigh(dense.hessian)
    on = {"masks": masks, "batches": BATCHES, "tolerance": 1e-6}
    top = analysis.hessian_eigenvalues(loss, params, KEY, k=3, **on)
    low = analysis.hessian_eigenvalues(loss, params, KEY, k=2, which="smallest", **on)
    np.testing.assert_allclose(top.values, values[::-1][:3], rtol=1e-5)
    np.testing.assert_allclose(low.values, values[:2], atol=1e-5 * values[-1])
    for found, wanted in zip(top.vectors, vectors.T[::-1], strict=False):
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])
        assert not flat[~dense.live].any()
        np.testing.assert_allclose(abs(flat[dense.live] @ wanted), 1, rtol=1e-5)


def test_residuals_bound_the_error_after_few_products(case):
    params, masks, dense = case
    found = analysis.hessian_eigenvalues(
        loss, params, KEY, k=2, max_products=5, masks=masks, batches=BATCHES
    )
    values = np.linalg.eigvalsh(dense.hessian)
    nearest = np.min(np.abs(found.values[:, None] - values), 1)
    assert found.products == 5
    assert np.all(nearest <= found.residuals + 1e-5)
    assert found.residuals[1] > 1e-3


@pytest.mark.quick
def test_an_exhausted_krylov_space_gives_no_eigenvalue_beyond_the_spectrum():
    """Three different eigenvalues end it after three steps; the rest is rounding."""
    w = jnp.ones(40)
    top = analysis.hessian_eigenvalues(quadratic, w, KEY, k=4, max_products=30)
    np.testing.assert_allclose(top.values, SPECTRUM[:4], rtol=1e-5)
    density = analysis.spectral_density(quadratic, w, KEY, steps=30)
    assert density.nodes.min() > -1e-4
    assert density.nodes.max() < 5.0001
    assert density.weights[density.nodes > 5.5].sum() == 0


def test_a_mini_batch_has_its_own_hessian():
    tops = [
        analysis.hessian_eigenvalues(loss, PARAMS, KEY, tolerance=1e-6, batches=[batch])
        for batch in BATCHES
    ]
    wanted = [Dense(PARAMS, None, [batch]).hessian for batch in BATCHES]
    np.testing.assert_allclose(
        [top.values[0] for top in tops],
        [np.linalg.eigvalsh(h)[-1] for h in wanted],
        rtol=1e-5,
    )


def test_the_quadrature_has_the_moments_of_the_dense_hessian(case):
    """Of m steps, moments up to 2m - 1 are exact: v'H^p v = sum of w theta^p."""
    params, masks, dense = case
    found = analysis.spectral_density(
        loss, params, KEY, steps=4, probes=1, masks=masks, batches=BATCHES
    )
    v = hessian.generator(KEY).standard_normal(len(dense.hessian))
    v /= np.linalg.norm(v)
    for power in range(8):
        wanted = v @ np.linalg.matrix_power(dense.hessian, power) @ v
        moment = np.sum(found.weights * found.nodes**power)
        np.testing.assert_allclose(moment, wanted, rtol=1e-4)
    area = np.sum(found.density) * (found.grid[1] - found.grid[0])
    np.testing.assert_allclose(area, 1, rtol=1e-5)
    assert found.dimension == len(dense.hessian)


def test_the_mixture_is_the_normal_density():
    grid = np.linspace(-3, 3, 7)
    found = hessian.gaussian_mixture(grid, np.array([[1.0]]), np.array([[0.5]]), 2.0)
    wanted = 0.5 * np.exp(-((grid - 1) ** 2) / 8) / np.sqrt(8 * np.pi)
    np.testing.assert_allclose(found, wanted)


@pytest.mark.quick
def test_the_trace_is_that_of_the_dense_hessian(case):
    params, masks, dense = case
    on = {"masks": masks, "batches": BATCHES}
    exact = analysis.hessian_trace(loss, params, KEY, **on)
    np.testing.assert_allclose(exact.value, np.trace(dense.hessian), rtol=1e-5)
    assert (exact.error, exact.products) == (0, len(dense.hessian))
    found = analysis.hessian_trace(loss, params, KEY, products=12, **on)
    assert found.products == 12
    assert 0 < abs(found.value - np.trace(dense.hessian)) < 5 * found.error


def test_hutch_plus_plus_is_exact_below_its_rank():
    found = analysis.hessian_trace(quadratic, jnp.ones(40), KEY, products=15)
    np.testing.assert_allclose(found.value, SPECTRUM.sum(), rtol=1e-5)
    assert found.error < 1e-4


@pytest.mark.quick
@pytest.mark.parametrize("adaptive", [False, True])
def test_one_step_is_that_of_sam(case, adaptive):
    params, masks, dense = case
    scale = np.abs(dense.w[dense.live]) if adaptive else 1.0
    uphill = scale * dense.gradient
    step = 0.3 * scale * uphill / np.linalg.norm(uphill)
    found = analysis.worst_case_sharpness(
        loss, params, rho=0.3, steps=1, adaptive=adaptive, masks=masks, batches=BATCHES
    )
    wanted = dense.value(step) - dense.value()
    np.testing.assert_allclose(found.one_step, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.value, dense.value(), rtol=1e-6)
    assert found.best == found.one_step == found.rises[0]


def test_the_best_step_is_the_maximum_of_a_convex_quadratic():
    """On the boundary, (mu - A) step = gradient with mu above A's eigenvalues."""
    curvature = np.array([4.0, 1.0, 0.5])
    w = np.array([0.2, 1.0, -1.0])
    gradient = curvature * w

    def step(mu):
        return gradient / (mu - curvature)

    low, high = 4.0 + 1e-9, 100.0
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(step(mu)) > 2 else (low, mu)
    wanted = gradient @ step(mu) + curvature @ step(mu) ** 2 / 2
    found = analysis.worst_case_sharpness(
        lambda p: jnp.sum(curvature.astype(np.float32) * p**2) / 2,
        jnp.float32(w),
        rho=2.0,
        steps=60,
    )
    assert found.one_step < 0.98 * wanted
    np.testing.assert_allclose(found.best, wanted, rtol=1e-5)
    assert np.all(np.diff(found.rises) > -1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_average_sharpness_is_the_mean_over_its_sphere(case, adaptive):
    params, masks, dense = case
    scale = np.abs(dense.w[dense.live]) if adaptive else 1.0
    found = analysis.average_sharpness(
        loss, params, KEY, rho=0.5, pairs=3, adaptive=adaptive, masks=masks,
        batches=BATCHES,
    )  # fmt: skip
    draws, wanted = hessian.generator(KEY), []
    for _ in range(3):
        u = draws.standard_normal(len(dense.hessian))
        u *= 0.5 * scale / np.linalg.norm(u)
        wanted.append((dense.value(u) + dense.value(-u)) / 2 - dense.value())
    np.testing.assert_allclose(found.rises, wanted, atol=3e-6)
    np.testing.assert_allclose(found.mean, np.mean(wanted), atol=3e-6)
    np.testing.assert_allclose(found.error, np.std(wanted) / np.sqrt(2), atol=3e-6)


def test_average_sharpness_tends_to_the_trace():
    found = analysis.average_sharpness(quadratic, jnp.ones(40), KEY, rho=2.0, pairs=200)
    assert abs(found.mean - 2.0**2 / 2 * SPECTRUM.mean()) < 4 * found.error


def test_lanczos_vectors_are_orthonormal():
    matrix = np.diag(SPECTRUM)
    found = lanczos.lanczos(
        lambda v: matrix @ v,
        np.ones(40, np.float32),
        40,
        np.random.default_rng(0),
    )
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(40), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "batches is empty"),
        ({"masks": NOTHING}, "no weight is live"),
        ({"k": 27}, "k=27 must be an integer >= 1 and <= 26"),
        ({"which": "large"}, "Did you mean 'largest'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        analysis.hessian_eigenvalues(
            loss, PARAMS, KEY, **{"batches": BATCHES, **arguments}
        )


@pytest.mark.quick
def test_losses_of_other_arguments_are_named():
    with pytest.raises(TypeError, match=r"\(params, batch\) -> loss; it takes \(w\)"):
        analysis.hessian_trace(quadratic, jnp.ones(40), KEY, batches=BATCHES)
    with pytest.raises(TypeError, match=r"lambda p: loss\(p, batch\); it takes"):
        analysis.hessian_trace(loss, PARAMS, KEY)
