"""Seeds that are known only when the compiled program runs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import zosam_jax as zs

SEED = jnp.int32(0)
DRAWING = [
    name
    for name, make in zoo.METHODS.items()
    if "seed" in inspect.signature(getattr(zs.sparsity, name)).parameters
]


def train(gradient, method, value_fn=zoo.loss, steps=1):
    """Returns parameters and masks after some steps, of which every third changes."""
    tx = zs.sparsify(optax.sgd(0.05), method, gradient=gradient)
    carry = jax.lax.fori_loop(
        0,
        steps,
        lambda _, carry: advance(tx, value_fn, *carry),
        zoo.begin(tx, zoo.start()),
    )
    return carry[0], zs.sparsity.masks(carry[1])


def advance(tx, value_fn, params, state):
    updates, state = tx.update(None, state, params, value_fn=value_fn)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("name", zs.gradients.METHODS)
def test_every_gradient_takes_a_traced_seed(name):
    method = zs.sparsity.static(0.5)
    gradient, value_fn = zoo.gradient(name)

    def traced(seed):
        return train(gradient.with_options(seed=seed), method, value_fn)

    assert jax.eval_shape(traced, SEED)


@pytest.mark.parametrize("name", DRAWING)
def test_every_sparse_method_takes_a_traced_seed(name):
    gradient = zs.backprop()
    assert jax.eval_shape(
        lambda seed: train(gradient, zoo.METHODS[name](seed=seed)), SEED
    )


def test_the_choice_of_perturbed_steps_takes_a_traced_seed():
    def due(seed):
        return jax.vmap(zs.randomly(zs.sam(), 0.5, seed=seed).when)(jnp.arange(40))

    both = jax.vmap(due)(jnp.arange(2))
    np.testing.assert_array_equal(both, jnp.stack([due(0), due(1)]))
    assert np.any(both[0] != both[1])


def test_several_seeds_train_in_one_program():
    """`jax.vmap` over seeds equals one training after another."""

    def training(seed):
        method = zoo.METHODS["set_"](seed=seed)
        return train(zs.zosam(0.1, seed=seed), method, steps=zoo.STEPS)

    seeds = range(3)
    params, masks = jax.jit(jax.vmap(training))(jnp.array(seeds))
    one_by_one = [jax.jit(training)(jnp.int32(seed)) for seed in seeds]
    for seed, (alone, mask) in zip(seeds, one_by_one, strict=True):
        np.testing.assert_array_equal(masks["kernel"][seed], mask["kernel"])
        for name, value in alone.items():
            np.testing.assert_allclose(params[name][seed], value, rtol=1e-5, atol=1e-6)
    assert np.any(masks["kernel"][0] != masks["kernel"][1])


def test_seeds_share_a_counter_in_a_loop_on_the_host():
    """A change of the topology stays a branch; each seed trains as it does alone."""

    def tx(seed):
        method = zoo.METHODS["set_"](seed=seed)
        return zs.sparsify(optax.sgd(0.05), method, gradient=zs.zosam(0.1, seed=seed))

    def begin(seed):
        return zoo.begin(tx(seed), zoo.start())

    def step(seed, params, state):
        return advance(tx(seed), zoo.loss, params, state)

    seeds = jnp.arange(3)
    params, state = jax.vmap(begin)(seeds)
    own_counters = jax.make_jaxpr(jax.vmap(step))(seeds, params, state)
    state = state._replace(step=jnp.int32(0))
    axes = state._make(None if name == "step" else 0 for name in state._fields)
    lanes = jax.vmap(step, in_axes=(0, 0, axes), out_axes=(0, axes))
    shared = jax.make_jaxpr(lanes)(seeds, params, state)
    assert "cond[" in str(shared)
    assert "cond[" not in str(own_counters)
    program, alone = jax.jit(lanes), jax.jit(step)
    one_by_one = [jax.jit(begin)(seed) for seed in seeds]
    for _ in range(zoo.STEPS):
        params, state = program(seeds, params, state)
        one_by_one = [
            alone(seed, *own) for seed, own in zip(seeds, one_by_one, strict=True)
        ]
    assert state.step == zoo.STEPS
    for seed, (expected, own) in enumerate(one_by_one):
        masks = zs.sparsity.masks(own)["kernel"]
        np.testing.assert_array_equal(zs.sparsity.masks(state)["kernel"][seed], masks)
        for name, value in expected.items():
            np.testing.assert_allclose(params[name][seed], value, rtol=1e-5, atol=1e-6)
