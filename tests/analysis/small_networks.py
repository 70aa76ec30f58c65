"""A small network on two batches, and its dense float64 Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))) for _ in range(2)]
PARAMS = {
    "hidden": {"bias": RNG.normal(size=4), "kernel": RNG.normal(size=(3, 4))},
    "out": {"bias": RNG.normal(size=2), "kernel": RNG.normal(size=(4, 2))},
}
MASKS = {
    "hidden": {"bias": True, "kernel": RNG.random((3, 4)) < 0.5},
    "out": {"bias": True, "kernel": RNG.random((4, 2)) < 0.6},
}
LIVE = np.concatenate([np.ones(4), MASKS["hidden"]["kernel"].ravel(), np.ones(2)])
LIVE = np.concatenate([LIVE, MASKS["out"]["kernel"].ravel()]).astype(bool)

BATCHES = jax.tree.map(np.float32, BATCHES)
PARAMS = jax.tree.map(jnp.float32, PARAMS)
SPARSE = jax.tree.map(lambda m, x: jnp.where(m, x, 0), MASKS, PARAMS)
CASES = ((PARAMS, None), (SPARSE, MASKS))
"""Parameters and masks: dense and sparse."""


def loss(params, batch):
    x, y = batch
    h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((h @ params["out"]["kernel"] + params["out"]["bias"] - y) ** 2)


_, UNRAVEL = ravel_pytree(PARAMS)


@jax.jit
def _derivatives(w, batch):
    def flat(w):
        return loss(UNRAVEL(w), batch)

    return jax.grad(flat)(w), jax.hessian(flat)(w)


class Dense:
    """The mean loss, its gradient and its Hessian in float64, of the live weights."""

    def __init__(self, params, masks, batches=BATCHES):
        self.live = np.ones(LIVE.size, bool) if masks is None else LIVE
        self.batches = jax.tree.map(np.float64, batches)
        self.w = np.asarray(ravel_pytree(params)[0], np.float64)
        with jax.enable_x64(True):
            found = [_derivatives(self.w, batch) for batch in self.batches]
        self.gradient = np.mean([g for g, _ in found], 0)[self.live]
        self.hessian = np.mean([h for _, h in found], 0)[np.ix_(self.live, self.live)]

    def value(self, step=0.0):
        """The mean loss after a step of the live weights."""
        w = np.array(self.w)
        w[np.flatnonzero(self.live)] += step
        hidden, kernel = w[:4], w[4:16].reshape(3, 4)
        bias, out = w[16:18], w[18:].reshape(4, 2)
        losses = [
            np.mean((np.tanh(x @ kernel + hidden) @ out + bias - y) ** 2)
            for x, y in self.batches
        ]
        return np.mean(losses)
