"""What criteria score by: SynFlow's flow, whatever the depth of the network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax.sparsity.methods.synflow import shares_of_flow
from zosam_jax.train import criteria
from zosam_jax.train.loss import cross_entropy


class Chain(nn.Module):
    """Linear layers of 16 units, each of which multiplies equal inputs by 8."""

    depth: int

    @nn.compact
    def __call__(self, x, train):
        del train
        for _ in range(self.depth):
            x = nn.Dense(16, use_bias=False, kernel_init=nn.initializers.constant(0.5))(
                x
            )
        return x


@pytest.mark.parametrize("depth", [1, 66])
def test_the_flow_of_a_deep_network_neither_overflows_nor_vanishes(depth):
    model, image = Chain(depth), jnp.zeros((2, 16))
    params = model.init(jax.random.key(0), image, train=False)["params"]
    flow = criteria.flow(cross_entropy, model, {}, image, jnp.zeros(2, jnp.int32))
    kernels, treedef = jax.tree.flatten(params)
    total, shares = jax.jit(
        lambda theta: shares_of_flow(lambda t: flow(treedef.unflatten(t)), theta)
    )(kernels)
    # 16 * 8**66 is beyond float32; powers of 2 are exact.
    assert total == 4 + 3 * depth
    # SynFlow's conservation law: through every layer flows all of it.
    np.testing.assert_array_equal([x.sum() for x in shares], 1)
