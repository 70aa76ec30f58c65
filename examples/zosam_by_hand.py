"""ZO-SAM in twenty lines of JAX, and the proof that the library computes the same.

python examples/zosam_by_hand.py
"""

import jax
import jax.numpy as jnp

import zosam_jax as zs
from zosam_jax import tree


def zosam_by_hand(loss, w, key, rho, delta, m):
    """The gradient at w + rho g/|g|, where g comes from 2m evaluations of the loss."""
    g = jnp.zeros_like(w)
    for i in range(m):
        u = tree.normal_like(jax.random.fold_in(key, i), w)
        slope = (loss(w + delta * u) - loss(w - delta * u)) / (2 * delta)
        g += slope * u / m
    epsilon = rho * g / jnp.linalg.norm(g)
    return jax.grad(loss)(w + epsilon)


def rosenbrock(w):
    """A curved valley."""
    return jnp.mean((1 - w[:-1]) ** 2 + 100 * (w[1:] - w[:-1] ** 2) ** 2)


def main() -> None:
    """Compares the two on one step."""
    w = jax.random.normal(jax.random.key(0), (10,))
    key = jax.random.key(1)
    by_hand = zosam_by_hand(rosenbrock, w, key, rho=0.1, delta=1e-3, m=4)
    library = zs.zosam_gradient(rosenbrock, w, key, rho=0.1, num_directions=4)
    error = float(jnp.max(jnp.abs(by_hand - library.grad) / jnp.abs(by_hand)))
    print(f"loss {library.value:.3f}, |eps| {library.info.perturbation_norm:.3f}")
    print(f"largest relative difference to the formula by hand: {error:.1e}")
    assert error < 1e-3


if __name__ == "__main__":
    main()
