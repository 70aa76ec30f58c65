"""Flax Linen: a `TrainState` that passes `value_fn` on, with BatchNorm and dropout.

python examples/flax_linen.py
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

import zosam_jax as zs

STEPS = 400


class Network(nn.Module):
    """A small network whose statistics and dropout masks are no parameters."""

    @nn.compact
    def __call__(self, x, train: bool):
        """Maps `[N, 8]` to `[N, 1]`."""
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(64)(x))
        x = nn.Dropout(0.1, deterministic=not train)(nn.relu(x))
        return nn.Dense(1)(x)


class TrainState(train_state.TrainState):
    """Flax's own, with BatchNorm's statistics, and with gradients from `value_fn`."""

    batch_stats: Any

    def apply_gradients(self, *, grads=None, value_fn=None, **kwargs):
        """Calls `tx.update`, which knows masks, schedules and accumulated gradients."""
        updates, opt_state = self.tx.update(
            grads,
            self.opt_state,
            self.params,
            value_fn=value_fn,  # pyright: ignore[reportCallIssue]
        )
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            batch_stats=zs.estimate(opt_state).aux,
            **kwargs,
        )


def optimizer(statistics):
    """RigL and ZO-SAM: two micro-batches a step, two schedules over the steps."""
    steps = STEPS // 2
    return zs.sparsify(
        optax.adam(optax.cosine_decay_schedule(1e-2, steps)),
        zs.sparsity.rigl(0.8, total_steps=steps, interval=20),
        gradient=zs.zosam(
            optax.linear_schedule(0.0, 0.05, steps), has_aux=True, aux_like=statistics
        ),
        accumulate_steps=2,
    )


def create(make=optimizer):
    """Returns the state before the first step, with pruned weights at zero."""
    network = Network()
    variables = network.init(jax.random.key(0), jnp.ones((1, 8)), train=False)
    state = TrainState.create(
        apply_fn=network.apply,
        params=variables["params"],
        tx=make(variables["batch_stats"]),
        batch_stats=variables["batch_stats"],
    )
    masks = zs.sparsity.masks(state.opt_state)
    return state.replace(params=zs.sparsity.apply_masks(state.params, masks))


@jax.jit
def step(state, x, y):
    """One micro-batch; every step has a dropout key, which its passes share."""
    key = jax.random.fold_in(jax.random.key(1), state.step)

    def value_fn(params):
        predictions, changed = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            *(x, True),
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.mean((predictions - y) ** 2), changed["batch_stats"]

    return state.apply_gradients(value_fn=value_fn)


def data(key):
    """A function of two of 8 variables."""
    x = jax.random.normal(key, (256, 8))
    return x, jnp.sin(x[:, :1]) * x[:, 1:2]


def main() -> float:
    """Fits the function; returns the loss on other examples, without dropout."""
    state = create()
    x, y = data(jax.random.key(2))
    for i in range(STEPS):
        half = slice(i % 2 * 128, (i % 2 + 1) * 128)
        state = step(state, x[half], y[half])
        if (i + 1) % 200 == 0:
            loss = zs.estimate(state.opt_state).value
            print(f"micro-batch {i + 1}: loss {loss:.4f}")
    x, y = data(jax.random.key(3))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    loss = jnp.mean((state.apply_fn(variables, x, False) - y) ** 2)
    print(f"without dropout, on other examples: {loss:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
