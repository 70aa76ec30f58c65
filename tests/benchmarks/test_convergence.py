"""The closed forms of `benchmarks.convergence`, and a small run of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks import convergence, convergence_report
from benchmarks import convergence_theory as theory

SHARP, FLAT = theory.minima()
WELLS = jax.jit(theory.wells)
SLOPE, BEND = jax.jit(jax.grad(theory.wells)), jax.jit(jax.hessian(theory.wells))


def test_the_minimum_of_the_convex_function():
    h = theory.curvatures(7)
    w = np.linspace(-1.5, 1.0, 7).astype(np.float32)
    assert theory.bowl(jnp.zeros(7), h) == 0
    np.testing.assert_array_equal(theory.bowl_gradient(np.zeros(7), h), 0)
    grad = jax.jit(jax.grad(theory.bowl))(jnp.asarray(w), h)
    np.testing.assert_allclose(grad, theory.bowl_gradient(w, h), rtol=1e-5)
    hessian = jax.jit(jax.hessian(theory.bowl))(jnp.zeros(7), h)
    np.testing.assert_allclose(hessian, np.diag(h), rtol=1e-5)
    assert (h[0], h[-1]) == (theory.LEAST_CURVATURE, 1.0)


def test_small_values_of_the_convex_function_are_exact():
    w = np.array([0.0099, 0.0101, -1e-5])
    exact = np.sum(np.expm1(w) - w)
    found = theory.bowl(jnp.asarray(w, jnp.float32), jnp.ones(3))
    np.testing.assert_allclose(found, exact, rtol=2e-5)


def test_batches_average_to_the_convex_function():
    """Gradient by gradient: also where the minimum of each batch lies elsewhere."""
    h, w, s = theory.curvatures(3), jnp.array([-0.5, 0.2, 0.6]), 0.4
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    gradient = jax.jit(jax.grad(theory.batch_bowl))
    grads = [gradient(w, h, jnp.full(3, 0.3 * x), jnp.full(3, s * x), s) for x in nodes]
    mean = np.average(grads, axis=0, weights=weights)
    np.testing.assert_allclose(mean, theory.bowl_gradient(w, h), rtol=1e-4)


@pytest.mark.parametrize(("minimum", "y"), [(SHARP, -1), (FLAT, 1)])
def test_the_minima_of_the_two_wells(minimum, y):
    w = jnp.array([minimum.place, 0.0])
    assert theory.stretch(w[0]) == pytest.approx(y, abs=1e-6)
    assert theory.wells(w) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(SLOPE(w), 0, atol=1e-6)
    np.testing.assert_allclose(BEND(w), np.diag([minimum.curvature, 1]), atol=1e-5)
    around = minimum.place + np.linspace(-0.5, 0.5, 101)
    values = [WELLS(jnp.array([x, 0.0])) for x in around]
    assert np.argmin(values) == 50


def test_the_flat_well_is_flat_and_the_barrier_lies_between():
    assert SHARP.place < 0 < FLAT.place
    assert SHARP.curvature > 20 * FLAT.curvature
    assert WELLS(jnp.zeros(2)) == pytest.approx(0.25)
    assert SLOPE(jnp.zeros(2))[0] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("m", "dim", "tolerance"), [(1, 5, 0.01), (4, 200, 0.02)])
def test_the_alignment_is_that_of_drawn_directions(m, dim, tolerance):
    draws = 40_000 if m == 1 else 2_000
    u = np.random.default_rng(0).standard_normal((draws, m, dim))
    estimate = np.einsum("nm,nmd->nd", u[:, :, 0], u)
    cosine = estimate[:, 0] / np.linalg.norm(estimate, axis=1)
    assert theory.alignment(m, dim) == pytest.approx(cosine.mean(), rel=tolerance)


def test_the_floor_of_sgd_is_that_of_a_random_walk_in_a_parabola():
    """w' = (1 - eta h) w + eta z: a series whose variance is known."""
    setting, rate = theory.Setting(6, 0.0, 0.0, added=0.5), 0.1
    h = theory.curvatures(6).astype(float)
    variance = rate**2 * (0.25 / 6) / (1 - (1 - rate * h) ** 2)
    found = theory.stationary(setting, rate)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-6)
    assert found.excess() == pytest.approx(np.sum(h * variance) / 2)


def test_a_perturbed_step_comes_nearer_but_for_the_radius():
    """The bound that holds for every method, on the box of these points."""
    rng, h, rho = np.random.default_rng(0), theory.curvatures(5), 0.3
    steepest, flattest = np.exp(1.0), theory.LEAST_CURVATURE * np.exp(-1.0)
    rate = 1 / steepest
    for _ in range(200):
        w, u = rng.uniform(-0.7, 0.7, 5), rng.standard_normal(5)
        eps = rho * u / np.linalg.norm(u)
        moved = np.linalg.norm(w - rate * theory.bowl_gradient(w + eps, h))
        bound = (1 - rate * flattest) * np.linalg.norm(w) + rate * steepest * rho
        assert moved <= bound


def test_sam_bounces_as_the_theory_says():
    """On a parabola the iterates of SAM are x and -x in turn."""
    rate, rho = 0.1, 0.3
    x = math.sqrt(theory.stationary(theory.Setting(3, rho, 1.0), rate).variance[-1])
    assert x - rate * (x + rho) == pytest.approx(-x)


def test_the_bias_is_where_the_mean_gradient_is_zero():
    """The random sign: E e^{w + eps} = 1 for normal eps of this variance."""
    found = theory.stationary(theory.Setting(100, 0.5, 0.0), 0.1)
    np.testing.assert_allclose(np.exp(found.bias + 0.5**2 / 200), 1, rtol=1e-9)


@pytest.mark.parametrize("exponent", [-2.0, -1.0, 0.5])
def test_the_slope_is_the_exponent_of_made_up_data(exponent):
    times = np.arange(1, 5_001)
    values = 3.0 * times**exponent
    assert theory.slope(times, values) == pytest.approx(exponent)
    noisy = values * np.random.default_rng(0).lognormal(0, 0.3, len(values))
    assert theory.slope(*theory.binned(noisy, 250)) == pytest.approx(exponent, abs=0.03)


def test_bins_hold_every_value_once():
    times, means = theory.binned(np.arange(1, 101, dtype=float))
    assert (times[0], means[0]) == (1, 1)
    assert times == sorted(times)
    ones = theory.binned(np.ones(100), first=10, bins=3)
    assert ones[1] == [1, 1, 1]
    assert theory.binned([2.0, 4.0], bins=1)[1] == [3.0]


@pytest.mark.parametrize(("hits", "trials"), [(0, 32), (1, 5), (20, 64), (64, 64)])
def test_the_intervals_of_shares_are_scipys(hits, trials):
    exact = scipy.stats.binomtest(hits, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(theory.wilson(hits, trials), exact, atol=1e-9)


@pytest.fixture(scope="module")
def rows():
    """SAM and its control on the convex function, with noise of the data."""
    kept = {name: convergence.CONTENDERS[name] for name in ("SAM", "random sign")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convergence, "STEPS", 400)
        patch.setattr(convergence, "NOISE", {"none": (0.0, 0.0), "data": (0.0, 1.0)})
        patch.setattr(convergence, "CONTENDERS", kept)
        return convergence.bowl_rows(20, 3)


def test_noise_of_the_data_drives_sam_from_the_minimum(rows):
    """A wrong sign of the bias, or of the perturbation, shows here."""
    (line,) = convergence.paired_bias(rows)
    assert line["method"] == "SAM"
    assert line["bias"]["mean"] == pytest.approx(line["theory"], rel=0.35)


def test_a_row_holds_what_was_measured(rows):
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["curve"][0] > 2 * row["curve"][-1] > 0
        assert row["floor"]["mean"] > 0
        assert ("slope" in row) == (row["schedule"] == "falling")
    rates = [row["rate"]["mean"] for row in rows if "rate" in row]
    # Faster than the slowest direction, slower than the fastest.
    assert all(0.9**2 < rate < 0.975**2 + 0.01 for rate in rates)


def test_sam_leaves_the_sharp_well_and_stays_in_the_flat_one(monkeypatch):
    monkeypatch.setattr(convergence, "WELL_STEPS", 300)
    monkeypatch.setattr(convergence, "WELL_RADII", (0.2, 1.0))
    kept = {name: convergence.CONTENDERS[name] for name in ("SGD", "SAM")}
    monkeypatch.setattr(convergence, "CONTENDERS", kept)
    found = {
        (row["method"], row["start"], row["rho"]): row["flat"]
        for row in convergence.well_rows(2, 4)
    }
    assert found["SGD", "sharp", 0.0] == found["SAM", "sharp", 0.2] == 0
    assert found["SAM", "sharp", 1.0] == 4
    assert {found[key] for key in found if key[1] == "flat"} == {4}


def test_every_contender_has_a_color():
    assert list(convergence_report.COLORS) == list(convergence.CONTENDERS)
    assert list(convergence_report.NOISES) == list(convergence.NOISE)
