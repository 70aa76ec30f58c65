"""Every gradient of the registry around every base optimizer, in sparse training."""

import jax
import jax.numpy as jnp
import optax
import pytest
import zoo

import zosam_jax as zs


@pytest.mark.parametrize("base", zoo.BASES)
@pytest.mark.parametrize("name", zs.gradients.METHODS)
def test_the_state_is_stable_and_the_update_is_like_the_parameters(name, base):
    """Shapes alone: nothing is compiled."""
    gradient, value_fn = zoo.gradient(name, has_aux=False)
    grow = zs.sparsity.rigl if gradient.dense else zs.sparsity.set_
    tx = zs.sparsify(zoo.BASES[base](), grow(0.5, 100, interval=3), gradient=gradient)
    params = zoo.start()
    state = tx.init(params)

    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    after = jax.eval_shape(step, params, state)
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert types(after) == types((params, state))


@pytest.mark.parametrize("name", zs.gradients.METHODS)
def test_accumulated_gradients_keep_the_state(name):
    gradient, value_fn = zoo.gradient(name)
    grow = zs.sparsity.rigl if gradient.dense else zs.sparsity.set_
    tx = zs.sparsify(
        optax.sgd(0.1),
        grow(0.5, 100, interval=3),
        gradient=gradient,
        accumulate_steps=2,
    )
    params = zoo.start(jnp.bfloat16)
    state = tx.init(params)
    updates, after = jax.eval_shape(
        lambda state: tx.update(None, state, params, value_fn=value_fn), state
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
