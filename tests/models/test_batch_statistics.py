"""Statistics of batch normalization of some batches, against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zosam_jax as zs

DECAY, EPSILON = 0.9, 1e-5


class Net(nn.Module):
    """Two normalizations that follow the batches, and one that does not."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        def norm(name, fixed=False):
            is_fixed = fixed or not train
            return nn.BatchNorm(is_fixed, momentum=DECAY, epsilon=EPSILON, name=name)

        x = norm("first")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.relu(nn.Dense(5, name="dense")(x))
        x = norm("fixed", fixed=True)(x)
        return norm("inner/last")(x)


@pytest.fixture(scope="module")
def network():
    """Variables with statistics that are far from those of the batches."""
    variables = Net().init(jax.random.key(0), jnp.zeros((1, 3)), train=False)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: rng.uniform(1, 3, x.shape).astype(np.float32),
        variables["batch_stats"],
    )
    return {"params": variables["params"], "batch_stats": state}


def batches():
    """Of unequal sizes and means: the spread of the means counts."""
    rng = np.random.default_rng(1)
    return [
        rng.normal(shift, 1 + shift, (size, 3)).astype(np.float32)
        for shift, size in ((0, 8), (5, 8), (-1, 3))
    ]


def test_statistics_are_those_of_all_examples_together(network):
    found = zs.models.reestimate_batch_stats(Net(), network, iter(batches()))
    assert found["params"] is network["params"]
    stats, every = found["batch_stats"], np.concatenate(batches()).astype(float)
    np.testing.assert_allclose(stats["first"]["mean"], every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["first"]["var"], every.var(0), rtol=1e-5)
    assert stats["first"]["var"].dtype == np.float32
    # Behind it, batches are normalized by their own statistics.
    dense, fixed = network["params"]["dense"], network["batch_stats"]["fixed"]
    inner = []
    for x in batches():
        y = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)
        y = np.maximum(y @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]), 0)
        inner.append((y - fixed["mean"]) / np.sqrt(fixed["var"] + EPSILON))
    inner = np.concatenate(inner)
    np.testing.assert_allclose(stats["inner/last"]["mean"], inner.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats["inner/last"]["var"], inner.var(0), rtol=1e-4)
    np.testing.assert_array_equal(stats["fixed"]["mean"], fixed["mean"])


def test_draws_need_a_key_and_differ_between_batches(network):
    model, x = Net(dropout=0.5), batches()[0]
    with pytest.raises(ValueError, match=r"Net draws in training .* key="):
        zs.models.reestimate_batch_stats(model, network, [x])

    def last(*batches):
        key = jax.random.key(0)
        found = zs.models.reestimate_batch_stats(model, network, batches, key=key)
        return found["batch_stats"]["inner/last"]["mean"]

    assert np.all(last(x) == last(x))
    assert np.any(last(x) != last(x, x))


def test_what_cannot_be_estimated_is_told(network):
    with pytest.raises(ValueError, match="batches is empty"):
        zs.models.reestimate_batch_stats(Net(), network, [])
    with pytest.raises(ValueError, match="batch 0 has no examples"):
        zs.models.reestimate_batch_stats(Net(), network, [np.ones((0, 4, 4, 2))])
    model = zs.models.create("mlp", num_classes=2, hidden=(3,))
    params, _ = zs.models.initialize(model, jax.random.key(0), (2, 2, 1))
    with pytest.raises(ValueError, match="MLP has no batch normalization"):
        zs.models.reestimate_batch_stats(
            model, {"params": params}, [np.ones((2, 2, 2, 1))]
        )
