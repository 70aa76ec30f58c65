"""Dropout and stochastic depth: rates, expectations, and one key for all passes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from zosam_jax import models
from zosam_jax.models import layers


def test_factors_have_the_stated_rates_and_expectation_one():
    examples = 40_000
    draw = functools.partial(layers.depth_factors, rate=0.4, blocks=5, branches=2)
    factors = np.asarray(draw(jax.random.key(0), examples=examples), np.float64)
    assert factors.shape == (5, 2, examples)
    for block, rate in enumerate((0, 0.1, 0.2, 0.3, 0.4)):
        kept = factors[block] > 0
        np.testing.assert_allclose(factors[block][kept], 1 / (1 - rate), rtol=1e-6)
        # Five standard deviations.
        bound = 5 * np.sqrt(rate * (1 - rate) / kept.size)
        assert abs(kept.mean() - (1 - rate)) <= bound
        assert abs(factors[block].mean() - 1) <= bound / (1 - rate) + 1e-6
    # Branches, blocks and examples are dropped independently.
    dropped = (factors[1:] == 0).reshape(8, -1)
    assert np.abs(np.corrcoef(dropped) - np.eye(8)).max() < 5 / np.sqrt(examples)


def test_the_front_of_a_batch_drops_what_the_batch_drops_there():
    whole, front = (
        np.asarray(layers.depth_factors(jax.random.key(0), 0.5, 4, 2, n))
        for n in (16, 5)
    )
    np.testing.assert_array_equal(front, whole[..., :5])


def test_a_single_block_is_never_dropped():
    assert np.all(layers.depth_factors(jax.random.key(0), 0.9, 1, 2, 50) == 1)


class Features(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, train):
        return layers.dropped(self, x, self.rate, train)


def test_dropout_keeps_the_expectation():
    x = jnp.full((200, 300), 2.0, jnp.bfloat16)

    def run(train):
        rngs = {"dropout": jax.random.key(1)}
        return np.asarray(Features(0.25).apply({}, x, train, rngs=rngs))

    out = run(True)
    assert out.dtype == jnp.bfloat16
    out = out.astype(np.float64)
    assert set(np.unique(out)) == {0, float(jnp.bfloat16(2 / 0.75))}
    assert abs((out > 0).mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / out.size)
    np.testing.assert_array_equal(run(False), x)


RANDOM = {
    "basic": ("dropout", "stochastic_depth"),
    "wide": ("dropout", "stochastic_depth"),
    "vgg": ("dropout",),
    "vit": ("dropout", "stochastic_depth"),
    "deit": ("dropout", "stochastic_depth"),
    "mlp": ("dropout",),
    "tinylm": ("dropout", "stochastic_depth"),
}


@pytest.mark.parametrize("family", RANDOM)
def test_a_key_decides_the_draws_in_training_and_in_nothing_else(family):
    options = dict.fromkeys(RANDOM[family], 0.3)
    model, x = small_models.make(family, **options), small_models.inputs(family)
    assert models.draws(model)
    assert not models.draws(small_models.make(family))
    variables = small_models.drawn(model, x)

    def train(variables, key, model=model):
        rngs = {} if key is None else {"dropout": key}
        out, _ = model.apply(
            variables, x, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return jax.tree.leaves(out)[0]

    run = jax.jit(train, compiler_options=small_models.QUICK)
    # Keys of the kind "rbg" compile faster.
    keys = (jax.random.key(k, impl="rbg") for k in (1, 1, 2))
    first, again, other = (run(variables, key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - other).max() > 1e-3
    # Evaluation equals that of the model without the options and needs no key.
    plain = small_models.make(family)
    jaxprs = [
        str(jax.make_jaxpr(functools.partial(m.apply, train=False))(variables, x))
        for m in (model, plain)
    ]
    assert jaxprs[0] == jaxprs[1]
    # Training at rate 0 needs no key either.
    jax.eval_shape(functools.partial(train, model=plain, key=None), variables)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        jax.eval_shape(functools.partial(train, key=None), variables)


def test_several_passes_of_a_step_see_one_network():
    """At two parameter points, one key gives the same dropout masks."""
    model = models.create("mlp", num_classes=3, hidden=(400,), dropout=0.5)
    x = jnp.ones((1, 4, 4, 1))
    key, masks = jax.random.key(3), []
    for seed in (0, 1):
        variables = small_models.drawn(model, x, seed=seed)
        params = variables["params"]
        params["hidden1"]["bias"] = np.full(400, 50, np.float32)  # all units active
        head = params["head"]["kernel"]

        def logit(head, params=params):
            params = {**params, "head": {**params["head"], "kernel": head}}
            out = model.apply({"params": params}, x, train=True, rngs={"dropout": key})
            return jnp.asarray(out)[0, 0]

        # The gradient of the head is the hidden layer, which is zero where dropped.
        masks.append(np.asarray(jax.grad(logit)(head))[:, 0] != 0)
    np.testing.assert_array_equal(*masks)
    assert 150 < masks[0].sum() < 250


def test_a_dropped_branch_leaves_an_example_as_it_was():
    """With factors 0, a block is the identity for that example only."""
    block = models.vit.Block(2)
    x = jax.random.normal(jax.random.key(0), (3, 5, 8))
    variables = jax.tree.map(
        lambda s: jnp.full(s.shape, 0.1),
        jax.eval_shape(block.init, jax.random.key(0), x),
    )
    factors = jnp.asarray([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    run = jax.jit(block.apply, static_argnums=2, compiler_options=small_models.QUICK)
    found, plain = run(variables, x, True, factors), run(variables, x, True)
    np.testing.assert_array_equal(found[0], x[0])
    np.testing.assert_allclose(found[2], plain[2], rtol=1e-6)
    assert np.abs(np.asarray(found[1] - plain[1])).max() > 0.1
