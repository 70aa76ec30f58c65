"""Inside Flax's two ways of holding a training state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import nnx
from flax.training.train_state import TrainState

import zosam_jax as zs
from zosam_jax import tree

pytestmark = pytest.mark.parametrize("base", zoo.BASES)


def test_train_state(base):
    """It passes no `value_fn`: the pure function makes the gradient in front of it."""
    tx = zs.sparsify(zoo.BASES[base](), zoo.rule())
    state = TrainState.create(apply_fn=None, params=zoo.start(), tx=tx)
    masks = zs.sparsity.masks(state.opt_state)
    state = state.replace(params=zs.sparsity.apply_masks(state.params, masks))

    @jax.jit
    def step(state):
        key = jax.random.fold_in(jax.random.key(0), state.step)
        masks = zs.sparsity.masks(state.opt_state)
        estimate = zs.zosam_gradient(zoo.loss, state.params, key, 0.1, masks=masks)
        return state.apply_gradients(grads=estimate.grad)

    for _ in range(zoo.STEPS):
        state = step(state)
    zoo.assert_same(state.params, state.opt_state, base)


class Model(nnx.Module):
    """The zoo's problem as an NNX module, with a statistic beside the parameters."""

    def __init__(self):
        start = zoo.start()
        self.kernel = nnx.Param(start["kernel"])
        self.bias = nnx.Param(start["bias"])
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def loss(self):
        self.calls[...] += 1
        return zoo.loss({"kernel": self.kernel[...], "bias": self.bias[...]})


def test_nnx_optimizer(base):
    """Its `update` forwards keywords, so the chain works as it is."""
    model = Model()
    tx = zoo.sparse(zoo.BASES[base]())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    assert sorted(tree.paths(params)) == ["bias", "kernel"]
    masks = zs.sparsity.masks(nnx.as_pure(optimizer.opt_state))
    nnx.update(model, zs.sparsity.apply_masks(params, masks))

    @nnx.jit
    def step(model, optimizer):
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def value_fn(p):
            return nnx.merge(graph, p, rest, copy=True).loss()

        zeros = jax.tree.map(jnp.zeros_like, params)
        optimizer.update(model, zeros, value_fn=value_fn)

    for _ in range(zoo.STEPS):
        step(model, optimizer)
    params = {"kernel": model.kernel[...], "bias": model.bias[...]}
    # NNX flattens by name; the draw follows the flattening order of the same names.
    zoo.assert_same(params, nnx.as_pure(optimizer.opt_state), base)


def test_inject_hyperparams_of_zosam_itself(base):
    """`rho` as an injected schedule; every default argument survives the injection."""
    schedule = optax.linear_schedule(0.2, 0.0, 10)
    injected = optax.chain(
        optax.inject_hyperparams(zs.zosam)(rho=schedule), zoo.BASES[base]()
    )
    direct = optax.chain(zs.zosam(schedule), zoo.BASES[base]())
    results = []
    for tx in (injected, direct):
        params, state = zoo.start(), tx.init(zoo.start())
        step = jax.jit(lambda p, s, tx=tx: tx.update(None, s, p, value_fn=zoo.loss))
        for _ in range(3):
            updates, state = step(params, state)
            params = optax.apply_updates(params, updates)
        results.append(params)
    for k in results[0]:
        np.testing.assert_allclose(results[0][k], results[1][k], rtol=1e-5, atol=1e-6)
