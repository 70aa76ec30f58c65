"""Equinox: BatchNorm's state is aux, and every step has a dropout key.

python -m pip install equinox && python examples/equinox_model.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import zosam_jax as zs

STEPS = 300


class Network(eqx.Module):
    """A small network whose statistics and dropout masks are no parameters."""

    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.hidden = eqx.nn.Linear(8, 64, key=first)
        self.norm = eqx.nn.BatchNorm(64, "batch", momentum=0.9, mode="batch")
        self.dropout = eqx.nn.Dropout(0.1)
        self.out = eqx.nn.Linear(64, 1, key=second)

    def __call__(self, x, state, key):
        """Maps `[8]` to `[1]`, and the statistics to the next ones."""
        x, state = self.norm(self.hidden(x), state)
        return self.out(self.dropout(jax.nn.relu(x), key=key)), state


def predict(model, x, state, key=None):
    """Maps a batch `[N, 8]` to `[N, 1]`, and the statistics to the next ones."""
    keys = None if key is None else jax.random.split(key, len(x))
    axes = (0, None, None if key is None else 0)
    call = jax.vmap(model, axes, out_axes=(0, None), axis_name="batch")
    return call(x, state, keys)


def optimizer(statistics):
    """RigL and ZO-SAM."""
    return zs.sparsify(
        optax.adam(5e-3),
        zs.sparsity.rigl(0.8, total_steps=STEPS, interval=20),
        gradient=zs.zosam(0.02, has_aux=True, aux_like=statistics),
    )


def create(make=optimizer):
    """Returns the model, its statistics, and the optimizer with its state."""
    model, statistics = eqx.nn.make_with_state(Network)(jax.random.key(0))
    tx = make(statistics)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    opt_state = tx.init(params)
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(opt_state))
    return eqx.combine(params, rest), statistics, tx, opt_state


@eqx.filter_jit
def step(model, statistics, tx, opt_state, batch, key):
    """One step; all its passes share the dropout key."""
    x, y = batch
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def value_fn(p):
        predictions, new = predict(eqx.combine(p, rest), x, statistics, key)
        return jnp.mean((predictions - y) ** 2), new

    updates, opt_state = tx.update(None, opt_state, params, value_fn=value_fn)
    model = eqx.apply_updates(model, updates)
    return model, zs.estimate(opt_state).aux, opt_state


def data(key):
    """A function of two of 8 variables."""
    x = jax.random.normal(key, (256, 8))
    return x, jnp.sin(x[:, :1]) * x[:, 1:2]


def main() -> float:
    """Fits the function; returns the loss on other examples, without dropout."""
    model, statistics, tx, opt_state = create()
    batch = data(jax.random.key(2))
    for i in range(STEPS):
        key = jax.random.fold_in(jax.random.key(1), i)
        model, statistics, opt_state = step(
            model, statistics, tx, opt_state, batch, key
        )
        if (i + 1) % 100 == 0:
            print(f"step {i + 1}: loss {zs.estimate(opt_state).value:.4f}")
    x, y = data(jax.random.key(3))
    predictions, _ = predict(eqx.nn.inference_mode(model), x, statistics)
    loss = jnp.mean((predictions - y) ** 2)
    print(f"without dropout, on other examples: {loss:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
