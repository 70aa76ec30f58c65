"""Noise of gradients against float64 gradients of single batches, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import zosam_jax as zs
from tests.analysis.small_networks import BATCHES, CASES, LIVE, PARAMS, Dense, loss
from zosam_jax import analysis

KEY = jax.random.key(0)
MANY = [jax.tree.map(lambda x, i=i: x[i : i + 4], b) for b in BATCHES for i in (0, 4)]


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


@pytest.mark.quick
@pytest.mark.parametrize("case", range(2), ids=["dense", "sparse"])
def test_noise_is_that_of_the_batches(case):
    params, masks = CASES[case]
    found = analysis.gradient_noise(loss, params, MANY, masks=masks)
    grads = np.stack([Dense(params, masks, [batch]).gradient for batch in MANY])
    variance = np.trace(np.cov(grads.T))
    mean = grads.mean(0)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(found.signal, mean @ mean - variance / 4, rtol=1e-4)
    np.testing.assert_allclose(found.ratio, found.signal / found.variance)
    wanted = [cosine(*grads[i : i + 2]) for i in range(3)]
    np.testing.assert_allclose(found.successive_cosine, np.mean(wanted), rtol=1e-4)
    wanted = [cosine(grad, mean) for grad in grads]
    np.testing.assert_allclose(found.cosine, np.mean(wanted), rtol=1e-5)
    np.testing.assert_allclose(found.exact_norm, np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_allclose(found.norm, np.linalg.norm(grads, axis=1).mean(), 1e-5)


def test_an_estimator_keeps_its_memory_from_batch_to_batch():
    """S2-SAM perturbs along the last gradient: at the first batch not at all."""
    params, masks = CASES[1]
    tx = zs.s2sam(rho=0.3)

    @jax.jit
    def estimate(state, batch):
        def value_fn(p):
            return loss(p, batch)

        return tx.update(None, state, params, value_fn=value_fn, masks=masks)

    state, grads = tx.init(params), []
    for batch in MANY:
        grad, state = estimate(state, batch)
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grad)])
        grads.append(flat[np.flatnonzero(LIVE)])
    variance = np.trace(np.cov(np.stack(grads).T))
    found = analysis.gradient_noise(loss, params, MANY, estimator=tx, masks=masks)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-4)
    plain = analysis.gradient_noise(loss, params, MANY, masks=masks)
    assert abs(found.variance / plain.variance - 1) > 0.01


def test_estimators_that_choose_examples_get_them():
    def by_example(w, batch, **asked):
        losses = jnp.square(w - batch)
        if not asked:
            return jnp.mean(losses)
        examples = asked["examples"]
        return losses if examples is None else losses[examples]

    batches = [jnp.arange(8.0) + i for i in range(3)]
    esam = zs.esam(rho=0.05, beta=1.0, gamma=0.5)
    found = analysis.gradient_noise(by_example, jnp.zeros(()), batches, estimator=esam)
    assert found.norm > 0


@pytest.mark.quick
@pytest.mark.parametrize(("m", "d"), [(1, 2), (1, 1000), (3, 7), (50, 20)])
def test_the_expected_cosine_is_the_mean_of_its_distribution(m, d):
    wanted = stats.beta(m / 2, (d - 1) / 2).expect(np.sqrt)
    np.testing.assert_allclose(analysis.expected_cosine(m, d), wanted, rtol=1e-4)


def test_the_expected_cosine_has_its_limits():
    d = 100_000
    law = np.sqrt(2 / (np.pi * d))
    np.testing.assert_allclose(analysis.expected_cosine(1, d), law, rtol=1e-4)
    law = np.sqrt(1000 / (1000 + d))
    np.testing.assert_allclose(analysis.expected_cosine(1000, d), law, rtol=1e-2)
    np.testing.assert_allclose(analysis.expected_cosine(5, 1), 1)


@pytest.mark.parametrize("case", range(2), ids=["dense", "sparse"])
def test_estimates_have_the_expected_cosine_and_variance(case):
    params, masks = CASES[case]
    rows = analysis.zeroth_order_error(
        loss,
        params,
        KEY,
        num_directions=(1, 5),
        deltas=(1e-2,),
        samples=150,
        masks=masks,
        batches=BATCHES[:1],
    )
    for row in rows:
        assert row.dimension == len(Dense(params, masks).gradient)
        assert abs(row.cosine - row.expected_cosine) < 4 * row.cosine_error
        np.testing.assert_allclose(row.variance, row.expected_variance, rtol=0.5)
    assert [row.num_directions for row in rows] == [1, 5]


def test_the_bias_is_that_of_the_third_derivative():
    """Of sum(w^3), a central difference has the mean 3 w^2 + 3 delta^2."""
    w = jnp.ones(4)
    rows = analysis.zeroth_order_error(
        lambda w: jnp.sum(w**3),
        w,
        KEY,
        num_directions=(8,),
        deltas=(0.02, 0.5),
        samples=200,
    )
    # slope = 3 w^2 u + delta^2 sum(u^3), and E u^4 = 3.
    for row in rows:
        np.testing.assert_allclose(row.bias, row.delta**2, rtol=0.2)


def test_batches_share_their_directions():
    row, other = (
        analysis.zeroth_order_error(
            loss, PARAMS, KEY, num_directions=(2,), samples=3, batches=batches
        )[0]
        for batches in (BATCHES, [BATCHES[0]] * 2)
    )
    assert row.delta == other.delta == 1e-3
    assert row.cosine != other.cosine


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="at least two batches"):
        analysis.gradient_noise(loss, PARAMS, BATCHES[:1])
    with pytest.raises(TypeError, match=r"zs\.zosam\(rho=0\.05\); got str"):
        analysis.gradient_noise(loss, PARAMS, MANY, estimator="sam")
    with pytest.raises(ValueError, match="the gradient is zero"):
        analysis.zeroth_order_error(lambda w: w @ w, jnp.zeros(2), KEY)
