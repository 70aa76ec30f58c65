"""Random gradient estimation: unbiased, its variance as the theory has it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import Quadratic, flat

import zosam_jax as zs
from zosam_jax import estimators, tree
from zosam_jax.estimators import guided_directions, rge_random_directions


def samples(problem, num_directions, masks=None, count=20_000, **options):
    """Independent estimates, `[count, 12]`, and the exact gradient."""
    params = tree.mask(problem.params, masks)

    @jax.jit
    @jax.vmap
    def draw(key):
        grad = estimators.rge(
            problem.loss,
            params,
            key,
            delta=0.01,
            num_directions=num_directions,
            masks=masks,
            **options,
        )[0].grad
        return jnp.concatenate([grad["kernel"].reshape(-1), grad["bias"]])

    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), count)), np.float64)
    return drawn, problem.gradient(params)


@pytest.mark.parametrize("two_sided", [True, False])
def test_the_mean_is_the_gradient_within_five_standard_errors(two_sided):
    drawn, true = samples(Quadratic(), 1, two_sided=two_sided)
    error = drawn.std(0) / np.sqrt(len(drawn))
    # One-sided differences carry delta/2 * E[(u'Au) u] = 0 of bias on a quadratic.
    assert np.all(np.abs(drawn.mean(0) - true) < 5 * error)


def test_on_a_mask_the_mean_is_the_masked_gradient():
    problem = Quadratic()
    kernel = jnp.asarray(np.arange(9).reshape(3, 3) % 2 == 0)
    masks = {"kernel": kernel, "bias": jnp.asarray(True)}
    live = np.concatenate([np.asarray(kernel).reshape(-1), np.ones(3, bool)])
    drawn, true = samples(problem, 1, masks)
    error = drawn.std(0) / np.sqrt(len(drawn))
    assert np.all(drawn[:, ~live] == 0)
    assert np.all(np.abs(drawn.mean(0) - true)[live] < 5 * error[live])


def test_the_variance_is_the_closed_form_and_falls_as_one_over_m():
    problem = Quadratic()
    variances = {}
    for m in (1, 16):
        # The fewer, the farther from a normal distribution, the more samples.
        drawn, true = samples(problem, m, count=20_000 if m == 1 else 5_000)
        variances[m] = drawn.var(0).sum()
        # Var[(u'g) u] summed over coordinates is (d + 1) |g|^2 for Gaussian u.
        assert variances[m] == pytest.approx(13 * (true @ true) / m, rel=0.05)


@pytest.mark.parametrize("num_directions", [1, 4, 16, 64])
def test_the_cosine_law(num_directions):
    """cos(g, gradient) is about sqrt(m / (m + d)); sqrt(2 / (pi d)) at m = 1."""
    d = 2_000
    direction = jax.random.normal(jax.random.key(1), (d,))

    @jax.jit
    @jax.vmap
    def cosine(key):
        grad = estimators.rge(
            lambda w: w @ direction,
            jnp.zeros(d),
            key,
            num_directions=num_directions,
        )[0].grad
        return grad @ direction / jnp.linalg.norm(grad) / jnp.linalg.norm(direction)

    mean = float(cosine(jax.random.split(jax.random.key(2), 400)).mean())
    m = num_directions
    law = np.sqrt(2 / (np.pi * d)) if m == 1 else np.sqrt(m / (m + d))
    assert mean == pytest.approx(law, rel=0.12)


def test_more_directions_add_to_the_fewer():
    problem = Quadratic()
    key = jax.random.key(5)

    def total(m):
        grad = estimators.rge(problem.loss, problem.params, key, num_directions=m)[0]
        return m * flat(grad.grad)

    u = flat(tree.normal_like(jax.random.fold_in(key, 2), problem.params))
    added = total(3) - total(2)
    cosine = added @ u / np.linalg.norm(added) / np.linalg.norm(u)
    assert abs(cosine) == pytest.approx(1, abs=1e-3)


def test_a_traced_number_of_directions_agrees():
    problem = Quadratic()

    def grad(m):
        return estimators.rge(
            problem.loss, problem.params, jax.random.key(1), num_directions=m
        )[0].grad

    traced = jax.jit(grad)
    for m in (1, 3):
        np.testing.assert_allclose(flat(traced(m)), flat(grad(m)), rtol=2e-3, atol=1e-3)


@pytest.mark.quick
def test_backprop_is_jax_grad():
    problem = Quadratic()
    estimate = estimators.backprop(problem.loss, problem.params)
    np.testing.assert_allclose(
        flat(estimate.grad), problem.gradient(problem.params), rtol=1e-5
    )
    assert int(estimate.info.backward_evaluations) == 1


@jax.custom_vjp
def activation(x):
    return jnp.tanh(x)


activation.defvjp(
    lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),)
)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_an_exact_derivative_through_a_custom_vjp_is_refused_at_once(wrap):
    """Under jit, JAX itself refuses only when the program is compiled."""
    inner, w, key = wrap(activation), jnp.ones(3), jax.random.key(0)
    loss = lambda w: jnp.sum(inner(w))  # noqa: E731
    for estimator in (estimators.rge, estimators.slopes):
        run = functools.partial(estimator, loss, key=key, delta=None)
        for call in (run, functools.partial(jax.eval_shape, run)):
            with pytest.raises(TypeError, match=r"delta=None takes .* jax\.custom_vjp"):
                call(w)
    estimators.rge(loss, w, key)
    # On what does not depend on the parameters, it is harmless.
    data = lambda w: jnp.sum(w * inner(jnp.ones(3)))  # noqa: E731
    estimators.rge(data, w, key, delta=None)


@pytest.mark.parametrize(
    "key",
    [np.int64(3), np.uint32(3), jnp.asarray(3), 3, 3.0, "3", None, np.zeros((2, 2))],
    ids=str,
)
def test_what_is_no_key_is_answered_with_one(key):
    w = jnp.ones(2)
    guides = jnp.eye(2)
    calls = [
        lambda: estimators.rge(jnp.sum, w, key),
        lambda: estimators.guided(jnp.sum, w, key, guides, jnp.zeros(2), 0),
        lambda: tree.normal_like(key, w),
    ]
    if key is not None:  # SAM draws nothing, and needs no key.
        calls += [lambda: zs.sam_gradient(jnp.sum, w, key)]
    for call in calls:
        with pytest.raises(TypeError, match=r"must be a PRNG key, such as jax\.random"):
            call()


def test_losses_of_disjoint_parts_are_as_many_as_the_slopes():
    key, losses = jax.random.key(0), [jnp.sum, jnp.max]
    for number, guides in ((1, 2), (2, 3)):
        with pytest.raises(ValueError, match="2 losses measure 2 slopes"):
            estimators.guided(
                losses,
                jnp.ones(4),
                key,
                jnp.eye(4)[:guides],
                jnp.zeros(guides),
                0,
                num_directions=number,
            )


def test_axes_are_combined_without_a_reduction():
    """XLA:CPU is very slow at one over the first axis."""
    rng = np.random.default_rng(0)
    axes = {"w": rng.normal(size=(4, 3, 5)), "b": rng.normal(size=(4, 5))}
    coefficients = rng.normal(size=4)
    found = guided_directions._combine(jnp.asarray(coefficients), axes)
    for name, x in axes.items():
        expected = np.einsum("a,a...->...", coefficients, x)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    program = jax.make_jaxpr(guided_directions._combine)(jnp.ones(4), axes)
    assert "reduce" not in str(program)


def test_the_directions_of_a_chunk_are_added_in_float32_without_a_reduction():
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    add = rge_random_directions._sum_of_first_axis
    np.testing.assert_allclose(add(jnp.asarray(x)), x.sum(0), rtol=1e-6, atol=1e-6)
    assert "reduce" not in str(jax.make_jaxpr(add)(x))


def test_a_batch_of_keys_is_answered_with_vmap():
    keys, w = jax.random.split(jax.random.key(0)), jnp.ones(2)
    with pytest.raises(TypeError, match=r"key<fry>\[2\].*jax\.vmap"):
        tree.normal_like(keys, w)
    jax.vmap(lambda key: tree.normal_like(key, w))(keys)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_another_implementation_reuse_their_directions(impl):
    """`every` draws the directions of the last probes again, from remembered data."""
    key = jax.random.key(7, impl=impl)
    w, loss = jnp.linspace(-1, 1, 6), lambda w: jnp.sum(jnp.sin(3 * w))
    gradient = zs.zosam(rho=0.5, every=2).gradient
    first = gradient(loss, w, key)
    second = gradient(loss, w, jax.random.key(8, impl=impl), memory=first.memory)
    assert second.info.forward_evaluations == 0
    np.testing.assert_array_equal(second.grad, first.grad)
    other = gradient(loss, w, jax.random.key(8, impl=impl))
    assert not np.array_equal(other.grad, first.grad)
