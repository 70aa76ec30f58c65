"""Which steps are perturbed: `late`, `every`, `randomly`, `when`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import ALL, METHODS, estimates, network, value_fn_of

import zosam_jax as zs

# `zeroth_order` has no perturbation to leave out.
SHARED = [name for name in ALL if name != "zeroth_order"]
# One method for each kind of memory and of result.
KINDS = ["sam", "wsam", "looksam", "msam", "zosam", "zosam-guided", "esam"]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def timed(name, combinator):
    """The method, and the method that `combinator` limits to some steps."""
    method = METHODS[name]
    limited = method._replace(make=lambda **o: combinator(method.make(**o)))
    return method, limited


def test_a_fraction_is_no_step():
    with pytest.raises(ValueError, match=r"start=0.75 .* 0.75 \* total_steps"):
        zs.late(zs.sam(), 0.75)


def test_what_has_no_perturbation_is_refused():
    with pytest.raises(ValueError, match=r"zs\.backprop has no perturbation"):
        zs.every(zs.backprop(), 2)
    with pytest.raises(ValueError, match="chain an optimizer behind it"):
        zs.every(optax.sgd(0.1), 2)


@pytest.fixture
def eager():
    """One operation after another, so that equal formulas give equal bits."""
    with jax.disable_jit():
        yield


@pytest.mark.parametrize("name", KINDS)
def test_late_from_the_start_is_the_method(name, eager):
    params, losses = network()
    method, limited = timed(name, lambda gradient: zs.late(gradient, 0))
    value_fns = [value_fn_of(method, losses)] * 2
    for expected, found in zip(
        estimates(method, params, value_fns),
        estimates(limited, params, value_fns),
        strict=True,
    ):
        assert_equal(found, expected)


@pytest.mark.parametrize("name", SHARED)
def test_a_step_that_is_not_due_takes_the_plain_gradient(name, eager):
    params, losses = network()
    method, limited = timed(name, lambda gradient: zs.late(gradient, 2))
    (found,) = estimates(limited, params, [value_fn_of(method, losses)])
    expected = zs.backprop_gradient(lambda p: jnp.mean(losses(p)), params)
    assert_equal((found.value, found.grad), (expected.value, expected.grad))
    assert found.info.perturbation_norm == 0
    assert (found.info.forward_evaluations, found.info.backward_evaluations) == (0, 1)


def test_the_parts_of_wsam_without_a_perturbation(eager):
    params, losses = network()
    gradient = zs.late(zs.wsam(decouple=True), 1)
    found = gradient.gradient(lambda p: jnp.mean(losses(p)), params, step=0)
    assert_equal(found.grad.grad, jax.grad(lambda p: jnp.mean(losses(p)))(params))
    assert_equal(found.grad.sharpness, jax.tree.map(jnp.zeros_like, params))


def test_a_plain_step_runs_one_backward_pass():
    calls = []

    @jax.custom_vjp
    def loss(w):
        return w @ w

    def backward(w, cotangent):
        jax.debug.callback(lambda: calls.append("backward"))
        return (2 * w * cotangent,)

    loss.defvjp(lambda w: (loss(w), w), backward)
    tx = optax.chain(zs.every(zs.sam(), 3), optax.sgd(0.1))
    w = jnp.ones(2)
    state = tx.init(w)
    step = jax.jit(lambda state, w: tx.update(None, state, w, value_fn=loss))
    counts = []
    for _ in range(7):
        _, state = step(state, w)
        jax.effects_barrier()
        counts.append(len(calls))
        calls.clear()
    assert counts == [2, 1, 1, 2, 1, 1, 2]


def test_nested_combinators_must_all_agree():
    gradient = zs.late(zs.every(zs.sam(), 3), 4)
    due = [bool(gradient.when(jnp.int32(step))) for step in range(10)]
    assert due == [step >= 4 and step % 3 == 0 for step in range(10)]


def test_the_share_of_random_steps():
    n, p = 4000, 0.3
    due = jax.vmap(zs.randomly(zs.sam(), p).when)(jnp.arange(n))
    assert abs(np.mean(due) - p) < 5 * np.sqrt(p * (1 - p) / n)
    again = jax.vmap(zs.randomly(zs.sam(), p).when)(jnp.arange(n))
    assert_equal(due, again)
    other = jax.vmap(zs.randomly(zs.sam(), p, seed=1).when)(jnp.arange(n))
    # Independent draws agree in a share of p^2 + (1 - p)^2 of the steps.
    agree = p**2 + (1 - p) ** 2
    assert abs(np.mean(due == other) - agree) < 5 * np.sqrt(agree * (1 - agree) / n)


def test_the_probability_follows_its_schedule():
    schedule = optax.linear_schedule(0.0, 1.0, 4000)
    due = jax.vmap(zs.randomly(zs.sam(), schedule).when)(jnp.arange(4000))
    # The variance of the sum of Bernoulli draws with p from 0 to 1 is n / 6.
    assert abs(int(np.sum(due)) - 2000) < 5 * np.sqrt(4000 / 6)
    assert np.sum(due[:400]) < 40 < 360 < np.sum(due[-400:])


def test_schedules_count_optimizer_steps():
    params, losses = network()
    tx = zs.sparsify(
        optax.sgd(0.1),
        zs.sparsity.static(sparsity=0.5),
        gradient=zs.every(zs.sam(rho=0.1), 2),
        accumulate_steps=2,
    )
    state, perturbed = tx.init(params), []
    for _ in range(6):
        _, state = tx.update(
            None, state, params, value_fn=lambda p: jnp.mean(losses(p))
        )
        perturbed.append(float(zs.estimate(state).info.perturbation_norm) > 0)
    assert perturbed == [True, True, False, False, True, True]


def test_memory_learns_in_plain_steps():
    params, losses = network()
    value_fn = value_fn_of(METHODS["msam"], losses)
    gradient = zs.late(zs.msam(momentum=0.5), 2)
    memory, norms = gradient.init(params).memory, []
    for step in range(3):
        found = gradient.gradient(value_fn, params, step=step, memory=memory)
        memory = found.memory
        norms.append(float(found.info.perturbation_norm))
    # The momentum was learned in two plain steps, so the third has a direction.
    assert norms[:2] == [0, 0]
    assert norms[2] == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zs.late(zs.sam(), -1), "start=-1 must be"),
        (lambda: zs.every(zs.sam(), 0), "interval=0 must be"),
        (lambda: zs.randomly(zs.sam(), 1.5), "probability=1.5 must be"),
        (lambda: zs.late(zs.backprop(), 1), "zs.backprop has no perturbation"),
        (lambda: zs.every(zs.zeroth_order(), 2), "has no perturbation"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_pure_form_asks_for_the_step():
    gradient = zs.late(zs.sam(), 1).gradient
    with pytest.raises(ValueError, match=r"when= depends on .* needs\s+step="):
        gradient(lambda w: w @ w, jnp.ones(2))
