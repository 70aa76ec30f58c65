"""Base optimizers, and one way to train with any of them, for the conformance tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zosam_jax as zs

BASES = {
    "sgd": lambda lr=0.05: optax.sgd(lr, momentum=0.9),
    "adamw": lambda lr=0.05: optax.adamw(lr, weight_decay=0.1),
    "lion": lambda lr=0.05: optax.lion(lr),
    "adafactor": lambda lr=0.05: optax.adafactor(lr, min_dim_size_to_factor=4),
    "rmsprop": lambda lr=0.05: optax.rmsprop(lr, momentum=0.5),
    "schedule_free": lambda lr=0.05: optax.contrib.schedule_free_sgd(lr),
}
STEPS = 7

# A row for each constructor, which prunes half of the weights. In 12 steps the topology
# changes in steps 3, 6 and 9 if it ever does, and the last change leaves the final
# counts. A new method is a new row.
EARLY = {"interval": 3, "drop_fraction": 0.5, "stop_fraction": 1.0}
# The columns of the kernel as channels, with the bias for their scale.
COLUMNS = zs.sparsity.Units(
    "kernel", incoming=("kernel", "bias"), outgoing_axis=-1, scale="bias"
)
HARD = {"interval": 1, "extra": 0.0}
METHODS = {
    "rigl": lambda **o: zs.sparsity.rigl(0.5, 12, **EARLY, **o),
    "set_": lambda **o: zs.sparsity.set_(0.5, 12, **EARLY, **o),
    "mest": lambda **o: zs.sparsity.mest(0.5, 12, interval=3, **o),
    # Its interval grows during the training, so that 300 steps are needed.
    "dsr": lambda **o: zs.sparsity.dsr(0.5, 300, interval=3, threshold=0.1, **o),
    "gmp": lambda **o: zs.sparsity.gmp(0.5, 12, interval=3, **o),
    "safe": lambda **o: zs.sparsity.safe(0.5, 12, interval=3, **o),
    "ste": lambda **o: zs.sparsity.ste(0.5, decay=2e-4, interval=3, **o),
    "static": lambda **o: zs.sparsity.static(0.5, **o),
    "itop": lambda **o: zs.sparsity.itop(0.5, 12, interval=3, **o),
    "svite": lambda **o: zs.sparsity.svite(0.5, 12, interval=3, **o),
    "dynamic": lambda **o: zs.sparsity.dynamic(
        0.5, 12, drop="saliency", grow="gradient", **EARLY, **o
    ),
    # Seeds with which no neuron is ablated, and with which units change.
    "srigl": lambda **o: zs.sparsity.srigl(
        0.5, 12, gamma=0.0, **(EARLY | {"seed": 3} | o)
    ),
    "nm": lambda **o: zs.sparsity.nm(1, 2, 12, **EARLY, **o),
    "units": lambda **o: zs.sparsity.units(
        0.5,
        12,
        {"rows": zs.sparsity.Units(outgoing="kernel")},
        **(EARLY | {"seed": 6} | o),
    ),
    "chex": lambda **o: zs.sparsity.chex(
        0.5, 12, {"columns": COLUMNS}, **({"interval": 3, "stop_fraction": 1.0} | o)
    ),
    # A removal is in a step that changes the weights too, and nothing is soft.
    "chase": lambda **o: zs.sparsity.chase(
        0.5, 12, {"columns": COLUMNS}, **({"unit_interval": 3, **HARD} | o)
    ),
}


# Options that a gradient cannot be made without.
REQUIRED = {"aesam": {"total_steps": 100}, "sampa": {"learning_rate": 0.05}}


def gradient(name, **options):
    """A gradient of the registry, and the loss in the form that it wants."""
    made = zs.gradients.METHODS[name].make(**REQUIRED.get(name, {}), **options)

    def losses(params, examples=None):
        each = loss(params) * jnp.arange(1.0, 9.0)
        return each if examples is None else each[examples]

    return made, losses if made.by_example else loss


def rule(total_steps=100, interval=3, **options):
    """RigL that changes the topology at steps 3 and 6, visibly."""
    return zs.sparsity.rigl(
        0.5, total_steps, interval=interval, drop_fraction=0.5, **options
    )


def start(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.normal(size=(6, 8)), dtype),
        "bias": jnp.asarray(rng.normal(size=8), dtype),
    }


def loss(params, target=0.3):
    y = jnp.tanh(params["kernel"].sum(0) / 3 + params["bias"])
    return jnp.mean((y - target) ** 2) + 0.1 * jnp.mean(params["kernel"] ** 4)


def begin(tx, params):
    """`(params, state)`, masks applied."""
    state = tx.init(params)
    return zs.sparsity.apply_masks(params, zs.sparsity.masks(state)), state


def train(tx, params, steps=STEPS, value_fn=loss, incoming=None):
    """Jitted steps; returns `(params, state)` after the last."""
    params, state = begin(tx, params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params) if incoming == "grads" else incoming
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@functools.cache
def reference(base):
    """RigL with ZO-SAM around a base optimizer, nothing else around."""
    return train(sparse(BASES[base]()), start())


def sparse(inner, **options):
    return zs.sparsify(inner, rule(), gradient=zs.zosam(0.1), **options)


def assert_same(params, state, base):
    """The result is that of the reference, and pruned weights are exactly zero."""
    expected, expected_state = reference(base)
    masks = zs.sparsity.masks(state)["kernel"]
    np.testing.assert_array_equal(masks, zs.sparsity.masks(expected_state)["kernel"])
    assert np.all(np.asarray(params["kernel"])[~np.asarray(masks)] == 0)
    for k in params:
        np.testing.assert_allclose(params[k], expected[k], rtol=2e-5, atol=1e-6)
