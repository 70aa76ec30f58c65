"""Flax NNX: `nnx.Optimizer` forwards `value_fn`, so the chain works as it is.

python examples/flax_nnx.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import zosam_jax as zs


class Network(nnx.Module):
    """A small network with BatchNorm, whose statistics are no parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.out = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, x):
        """Maps `[N, 8]` to `[N, 1]`."""
        return self.out(nnx.relu(self.norm(self.hidden(x))))


@nnx.jit
def step(model, optimizer, x, y):
    """One step; BatchNorm's statistics come back as aux."""
    graph, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def value_fn(p):
        # copy=True: the function is traced, and must not write into the model.
        copy = nnx.merge(graph, p, statistics, rest, copy=True)
        loss = jnp.mean((copy(x) - y) ** 2)
        return loss, nnx.as_pure(nnx.state(copy, nnx.BatchStat))

    unused = jax.tree.map(jnp.zeros_like, params)
    optimizer.update(model, unused, value_fn=value_fn)
    estimate = zs.estimate(nnx.as_pure(optimizer.opt_state))
    nnx.update(model, estimate.aux)
    return estimate.value


def main() -> float:
    """Fits a function of 8 variables; returns the last loss."""
    model = Network(nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    statistics = nnx.as_pure(nnx.state(model, nnx.BatchStat))
    tx = zs.sparsify(
        optax.adam(3e-3),
        zs.sparsity.rigl(0.8, total_steps=400, interval=20),
        gradient=zs.zosam(0.02, has_aux=True, aux_like=statistics),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    masks = zs.sparsity.masks(nnx.as_pure(optimizer.opt_state))
    nnx.update(model, zs.sparsity.apply_masks(params, masks))

    x = jax.random.normal(jax.random.key(1), (256, 8))
    y = jnp.sin(x[:, :1]) * x[:, 1:2]
    for i in range(400):
        loss = step(model, optimizer, x, y)
        if (i + 1) % 100 == 0:
            print(f"step {i + 1}: loss {loss:.4f}")
    live = int(jnp.sum(model.hidden.kernel[...] != 0))
    print(f"{live} of {model.hidden.kernel.size} hidden weights are live")
    return float(loss)


if __name__ == "__main__":
    main()
