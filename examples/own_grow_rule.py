"""A sparse method of your own: two scores make one. Here, growth by |g|, with chance.

python examples/own_grow_rule.py
"""

import jax
import jax.numpy as jnp
import optax

import zosam_jax as zs
from zosam_jax.sparsity import scores


def noisy_gradient(params, grads, key):
    """|g| times a uniform number: mostly RigL, sometimes SET."""
    noise = scores.random(params, grads, key)
    return jax.tree.map(lambda g, r: jnp.abs(g) * r, grads, noise)


def main() -> float:
    """Recovers a sparse linear map; returns the share of its weights that was found."""
    truth = jax.random.normal(jax.random.key(0), (40, 20))
    truth *= jax.random.bernoulli(jax.random.key(1), 0.1, truth.shape)
    x = jax.random.normal(jax.random.key(2), (512, 40))
    y = x @ truth

    method = zs.sparsity.dynamic(
        sparsity=0.85,
        total_steps=600,
        drop=scores.magnitude,
        grow=noisy_gradient,
        interval=10,
    )
    tx = zs.sparsify(optax.adam(3e-2), method)
    params = {"kernel": jnp.zeros((40, 20))}
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean((x @ p["kernel"] - y) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(600):
        params, state = step(params, state)
    found = zs.sparsity.masks(state)["kernel"] & (truth != 0)
    share = float(found.sum() / (truth != 0).sum())
    print(f"{share:.0%} of the true connections found")
    return share


if __name__ == "__main__":
    main()
