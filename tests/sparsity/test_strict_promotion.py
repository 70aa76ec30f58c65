"""Every method under JAX's strict promotion of dtypes and without that of ranks.

Traced alone: both settings act while a program is traced. SGD, since Optax's Adam mixes
floats and integers itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zosam_jax as zs

rng = np.random.default_rng(0)
PARAMS = {
    "a": {"bias": jnp.zeros(16), "kernel": jnp.asarray(rng.normal(size=(8, 16)), "f4")},
    "b": {"bias": jnp.zeros(4), "kernel": jnp.asarray(rng.normal(size=(16, 4)), "f4")},
    "c": jnp.asarray(rng.normal(size=(3, 3, 4, 4)), jnp.bfloat16),
    "large": jnp.zeros((300, 300)),
}
X = jnp.ones((5, 8))


def loss(params):
    hidden = jax.nn.relu(X @ params["a"]["kernel"] + params["a"]["bias"][None])
    out = hidden @ params["b"]["kernel"] + params["b"]["bias"][None]
    rest = [jnp.sum(jnp.square(params[k].astype(jnp.float32))) for k in ("c", "large")]
    return jnp.mean(jnp.square(out)) + rest[0] + rest[1]


def flow(params):
    rest = [jnp.sum(params[k].astype(jnp.float32)) for k in ("c", "large")]
    return (
        jnp.sum(X @ params["a"]["kernel"] @ params["b"]["kernel"]) + rest[0] + rest[1]
    )


EARLY = {"interval": 1, "total_steps": 40}
MADE = ("a/kernel", "a/bias")
CHANNELS = {"h": zs.sparsity.Units("b/kernel", incoming=MADE, scale="a/bias")}
S = zs.sparsity
METHODS = {
    "random": S.static(0.5),
    "pattern": S.static(pattern=(2, 4), criterion="magnitude"),
    "snip": S.static(0.5, "snip", value_fn=loss),
    "grasp": S.static(0.5, "grasp", value_fn=loss),
    "synflow": S.static(0.5, "synflow", value_fn=flow, rounds=2),
    "rigl": S.rigl(0.5, **EARLY),
    "set by sign": S.set_(0.5, by_sign=True, **EARLY),
    "saliency": S.dynamic(0.5, drop="saliency", grow="random", **EARLY),
    "mest": S.mest(0.5, soft=True, gradient_weight=1.0, **EARLY),
    "dsr": S.dsr(0.5, **EARLY),
    "itop": S.itop(0.5, **EARLY),
    "svite": S.svite(0.5, **EARLY),
    "srigl": S.srigl(0.5, last="b/kernel", **EARLY),
    "nm": S.nm(2, 4, **EARLY),
    "gmp": S.gmp(0.5, budget="global", score="saliency", **EARLY),
    "safe": S.safe(0.5, 2, interval=1),
    "ste": S.ste(0.5, decay=1e-4),
    "units": S.units(0.5, groups={"h": S.Units("b/kernel")}, **EARLY),
    "chex": S.chex(0.5, groups=CHANNELS, **EARLY),
    "chase": S.chase(0.5, groups=CHANNELS, **EARLY),
}


@pytest.mark.parametrize("name", METHODS)
def test_it_mixes_neither_dtypes_nor_ranks(name):
    tx = zs.sparsify(
        optax.sgd(0.1, momentum=0.9),
        METHODS[name],
        zs.backprop(),
        accumulate_steps=2,
        grown_second_moment="mean",
        packed=True,
        track_exploration=True,
    )

    def step(params):
        state = tx.init(params)
        params = S.apply_masks(params, S.masks(state))
        _, state = tx.update(None, state, params, value_fn=loss)
        return S.exploration(state), S.sparsity_of(S.masks(state), params)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        rate, pruned = jax.eval_shape(step, PARAMS)
    assert rate.dtype == pruned.dtype == jnp.float32


def test_tickets_mix_neither_dtypes_nor_ranks():
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), PARAMS)

    def choose(params):
        rule = S.early_bird(window=2)
        state = rule.update(rule.init(masks), S.prune_ticket(params, masks, 0.5))
        return rule.update(state, S.prune_ticket(params, masks, 0.6, per_layer=True))

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert jax.eval_shape(choose, PARAMS).found.dtype == bool
