"""Your own loop: a 90 %-sparse network on scikit-learn's digits, with RigL and ZO-SAM.

python examples/sparse_loop.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import zosam_jax as zs

STEPS, BATCH = 600, 128


def load():
    """Images as rows in [0, 1], labels; every fifth image is for testing."""
    images, labels = load_digits(return_X_y=True)
    images, labels = images.astype(np.float32) / 16, labels.astype(np.int32)
    test = np.arange(len(labels)) % 5 == 0
    return (images[~test], labels[~test]), (images[test], labels[test])


def init(key, sizes=(64, 300, 100, 10)):
    """LeNet-300-100."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros(n)}
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def logits(params, x):
    """The network."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def loss(params, batch):
    """Mean cross-entropy."""
    x, y = batch
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
    return losses.mean()


def main() -> float:
    """Trains, prints, returns the test accuracy."""
    (x, y), (test_x, test_y) = load()
    params = init(jax.random.key(0))
    tx = zs.sparsify(
        optax.sgd(optax.cosine_decay_schedule(0.2, STEPS), momentum=0.9),
        zs.sparsity.rigl(sparsity=0.9, total_steps=STEPS, interval=30),
        gradient=zs.zosam(rho=0.05),
    )
    state = tx.init(params)
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

    @jax.jit
    def step(params, state, batch):
        updates, state = tx.update(
            None, state, params, value_fn=lambda p: loss(p, batch)
        )
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)
    for i in range(STEPS):
        chosen = rng.choice(len(y), BATCH, replace=False)
        params, state = step(params, state, (x[chosen], y[chosen]))
        if (i + 1) % 200 == 0:
            print(f"step {i + 1}: loss {zs.estimate(state).value:.4f}")

    accuracy = float(np.mean(np.argmax(logits(params, test_x), -1) == test_y))
    sparsity = float(zs.sparsity.sparsity_of(zs.sparsity.masks(state)))
    print(f"test accuracy {accuracy:.1%} with {sparsity:.1%} of the weights at zero")
    return accuracy


if __name__ == "__main__":
    main()
