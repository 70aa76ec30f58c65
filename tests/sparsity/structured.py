"""Training on a quadratic whose target moves, in JAX and step by step in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zosam_jax as zs

LEARNING_RATE, MOMENTUM = np.float32(0.05), np.float32(0.9)


def normal(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def gradient(w, target, step):
    """Elementwise, in any array library."""
    return {k: (w[k] - target[k]) * (1.5 + (step % 7) / 7) for k in w}


def train(method, params, steps):
    """Yields `(step, params, masks, memory)` before the first and after each step."""
    target = {k: np.roll(x, 1) * np.float32(0.7) for k, x in params.items()}
    tx = zs.sparsify(optax.sgd(float(LEARNING_RATE), momentum=float(MOMENTUM)), method)
    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(tx.init)(params)
    if not method.pruned_in_params:
        params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

    @jax.jit
    def step(params, state):
        masked = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
        grads = gradient(masked, target, state.step.astype(jnp.float32))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def held():
        return {k: np.array(m) for k, m in zs.sparsity.masks(state).items()}

    yield -1, jax.tree.map(np.array, params), held(), state.memory
    for index in range(steps):
        params, state = step(params, state)
        yield index, jax.tree.map(np.array, params), held(), state.memory


def train_in_numpy(start, w, masks, steps, fires, change, decay=None):
    """The same with `change(step, w, g, masks) -> masks`, in place of a method.

    Args:
      start: What the target is made from, as in `train`.
      w: Parameters; not changed.
      masks: Those of the sparse leaves; not changed.
      steps: How many.
      fires: `step -> bool`.
      change: Chooses the new masks.
      decay: None: pruned weights are zero, and changed ones start anew. A number: they
        are trained, and decay by it besides, and masks are chosen after the step.

    Yields:
      `(step, w, masks)` after each step.
    """
    w, masks = dict(w), dict(masks)
    target = {k: np.roll(x, 1) * np.float32(0.7) for k, x in start.items()}
    moment = {k: np.zeros_like(x) for k, x in w.items()}
    for step in range(steps):
        seen = {k: np.where(masks[k], w[k], 0) if k in masks else w[k] for k in w}
        g = gradient(seen, target, np.float32(step))
        if decay is None and fires(step):
            new = change(step, w, g, masks)
            for k in masks:
                w[k] = np.where(new[k], w[k], 0).astype(np.float32)
                moment[k] = np.where(new[k] != masks[k], 0, moment[k])
            masks = new
        for k in w:
            gk = g[k]
            if decay is not None and k in masks:
                gk = gk + np.float32(decay) * np.where(masks[k], 0, w[k])
            elif k in masks:
                gk = np.where(masks[k], gk, 0)
            moment[k] = (gk + MOMENTUM * moment[k]).astype(np.float32)
            w[k] = (w[k] - LEARNING_RATE * moment[k]).astype(np.float32)
            if decay is None and k in masks:
                w[k] = np.where(masks[k], w[k], 0)
        if decay is not None and fires(step):
            masks = change(step, w, g, masks)
        yield step, w, masks


def cosine(peak, step, stop, end=0.0):
    """In float32, as the library's."""
    angle = np.float32(np.pi) * np.minimum(np.float32(step) / np.float32(stop), 1)
    half = np.float32((peak - end) / 2)
    return np.float32(end) + half * (1 + np.cos(np.float32(angle)))


def best(score, candidates, count):
    """Flat indices of the highest scores, ties to the lower, by sorting."""
    return sorted(candidates, key=lambda i: (-score.flat[i], i))[:count]


def mask_of(shape, indices):
    mask = np.zeros(shape, bool)
    mask.flat[list(indices)] = True
    return mask
