"""Flax NNX: `nnx.Optimizer` passes `value_fn` on; with BatchNorm and dropout.

python examples/flax_nnx.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import zosam_jax as zs

STEPS = 300
MOVING = (nnx.BatchStat, nnx.RngCount)
"""What a pass changes beside the loss: statistics, and the counts of random draws."""


class Network(nnx.Module):
    """A small network whose statistics and dropout masks are no parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, x):
        """Maps `[N, 8]` to `[N, 1]`."""
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def transformation(moving):
    """RigL and ZO-SAM."""
    return zs.sparsify(
        optax.adam(5e-3),
        zs.sparsity.rigl(0.8, total_steps=STEPS, interval=20),
        gradient=zs.zosam(0.02, has_aux=True, aux_like=moving),
    )


def create(make=transformation):
    """Returns model and optimizer before the first step, pruned weights at zero."""
    model = Network(nnx.Rngs(0))
    tx = make(nnx.as_pure(nnx.state(model, MOVING)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    masks = zs.sparsity.masks(nnx.as_pure(optimizer.opt_state))
    nnx.update(model, zs.sparsity.apply_masks(params, masks))
    return model, optimizer


@nnx.jit
def step(model, optimizer, x, y):
    """One step; returns its loss."""
    graph, params, moving, rest = nnx.split(model, nnx.Param, MOVING, ...)

    def value_fn(p):
        # copy=True: the function is traced, and must not write into the model. All
        # passes of the step start from the same counts, so they share a dropout mask.
        copy = nnx.merge(graph, p, moving, rest, copy=True)
        loss = jnp.mean((copy(x) - y) ** 2)
        return loss, nnx.as_pure(nnx.state(copy, MOVING))

    unused = jax.tree.map(jnp.zeros_like, params)
    optimizer.update(model, unused, value_fn=value_fn)
    estimate = zs.estimate(nnx.as_pure(optimizer.opt_state))
    # Without the counts, every step would draw the same dropout mask.
    nnx.update(model, estimate.aux)
    return estimate.value


def data(key):
    """A function of two of 8 variables."""
    x = jax.random.normal(key, (256, 8))
    return x, jnp.sin(x[:, :1]) * x[:, 1:2]


def main() -> float:
    """Fits the function; returns the loss on other examples, without dropout."""
    model, optimizer = create()
    x, y = data(jax.random.key(2))
    for i in range(STEPS):
        loss = step(model, optimizer, x, y)
        if (i + 1) % 100 == 0:
            print(f"step {i + 1}: loss {loss:.4f}")
    live = int(jnp.sum(model.hidden.kernel[...] != 0))
    print(f"{live} of {model.hidden.kernel.size} hidden weights are live")
    model.eval()
    x, y = data(jax.random.key(3))
    loss = jnp.mean((model(x) - y) ** 2)
    print(f"without dropout, on other examples: {loss:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
