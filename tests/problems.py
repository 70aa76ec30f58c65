"""Problems whose gradients are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np


class Quadratic:
    """L(w) = scale * (w'Aw/2 + b'w) on a tree of two leaves, with its gradient."""

    def __init__(self, seed: int = 0, scale: float = 1.0):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(12, 12)) / 4
        self.a = root @ root.T + np.eye(12)
        self.b = rng.normal(size=12)
        self.scale = scale
        self.params = {
            "kernel": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
        }

    def loss(self, params):
        w = jnp.concatenate([params["kernel"].reshape(-1), params["bias"]])
        a, b = jnp.asarray(self.a, w.dtype), jnp.asarray(self.b, w.dtype)
        return self.scale * (w @ a @ w / 2 + b @ w)

    def gradient(self, params):
        """In float64, as one vector."""
        return self.scale * (self.a @ flat(params) + self.b)


def flat(params) -> np.ndarray:
    """One float64 vector, kernel first."""
    return np.concatenate(
        [np.asarray(params[k], np.float64).reshape(-1) for k in ("kernel", "bias")]
    )


def mlp(seed: int = 0, dtype=jnp.float32):
    """A two-layer network's `(params, loss)` on fixed random data."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(16, 6)), dtype)
    y = jnp.asarray(rng.normal(size=(16, 2)), dtype)
    params = {
        "hidden": {
            "bias": jnp.zeros(10, dtype),
            "kernel": jnp.asarray(rng.normal(size=(6, 10)) / 2, dtype),
        },
        "out": {
            "bias": jnp.zeros(2, dtype),
            "kernel": jnp.asarray(rng.normal(size=(10, 2)) / 3, dtype),
        },
    }

    def loss(p):
        h = jnp.tanh(x @ p["hidden"]["kernel"] + p["hidden"]["bias"])
        return jnp.mean((h @ p["out"]["kernel"] + p["out"]["bias"] - y) ** 2)

    return params, loss


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    """Two programs of one formula: float32 rounding, and weights of order 1."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def half_masks(params, seed: int = 7):
    """Random masks on the leaves with two axes, about half live."""
    keys = iter(jax.random.split(jax.random.key(seed), 16))
    return jax.tree.map(
        lambda x: (
            jax.random.bernoulli(next(keys), 0.5, x.shape)
            if x.ndim > 1
            else jnp.asarray(True)
        ),
        params,
    )
