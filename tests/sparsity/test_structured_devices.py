"""One device and four choose the same structured masks, of sharded leaves too."""

import devices
import numpy as np
import pytest

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import zosam_jax as zs

mesh = jax.make_mesh((len(DEVICES),), ("data",), (AxisType.Auto,), devices=DEVICES)
whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 8)), rng.normal(size=(64, 8))
x, y = (jax.device_put(jnp.asarray(a, jnp.float32), split) for a in (x, y))
# One leaf laid over the devices by its outputs, one by its inputs.
layout = {"one": P(None, "data"), "two": P("data", None), "scale": P(), "three": P()}
values = {"one": rng.normal(size=(8, 32)) / 2, "two": rng.normal(size=(32, 8)) / 4,
          "scale": rng.normal(size=8), "three": rng.normal(size=(8, 8)) / 2}
layout = {k: NamedSharding(mesh, v) for k, v in layout.items()}
start = {k: jax.device_put(jnp.asarray(v, jnp.float32), layout[k])
         for k, v in values.items()}
group = {"hidden": zs.sparsity.Units("two", incoming=("one",), drop="taylor")}
channels = zs.sparsity.Units("three", incoming=("two", "scale"), scale="scale")
methods = {
    "chex": zs.sparsity.chex(0.5, 10, {"channels": channels}, interval=1),
    "chase": zs.sparsity.chase(0.6, 10, group, unit_sparsity=0.5, interval=1),
    "nm": zs.sparsity.nm(2, 4, 100, interval=2, dense="one"),
    "srigl": zs.sparsity.srigl(0.6, 100, interval=2, dense="two", gamma=1.0),
    "units": zs.sparsity.units(0.5, 100, group, interval=2),
}
found = {}
for name, method in methods.items():
    tx = zs.sparsify(optax.sgd(0.1, momentum=0.9), method)
    state = jax.jit(tx.init)(start)
    params = start
    if not method.pruned_in_params:
        params = zs.sparsity.apply_masks(start, zs.sparsity.masks(state))
    first = zs.sparsity.masks(state)

    @jax.jit
    def step(params, state, x, y):
        def loss(p):
            inner = jnp.tanh(x @ p["one"]) @ p["two"] * p["scale"]
            return jnp.mean((jnp.tanh(inner) @ p["three"] - y) ** 2)
        seen = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
        updates, state = tx.update(jax.grad(loss)(seen), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(7):
        params, state = step(params, state, x, y)
    masks = zs.sparsity.masks(state)
    found[name] = {
        "masks": {k: np.asarray(m).tolist() for k, m in masks.items()},
        "changed": any(np.any(masks[k] != first[k]) for k in masks),
        "devices": len(params["two"].sharding.device_set),
    }
"""


@pytest.fixture(scope="module")
def runs():
    return devices.one_and_four(PROGRAM)


@pytest.mark.parametrize("name", ["chase", "chex", "nm", "srigl", "units"])
def test_one_device_and_four_choose_the_same_masks(runs, name):
    one, four = (result[name] for result in runs)
    assert (one["devices"], four["devices"]) == (1, 4)
    assert one["changed"]
    assert one["masks"] == four["masks"]
    masks = {k: np.asarray(m) for k, m in one["masks"].items()}
    if name == "nm":
        assert set(masks["two"].reshape(8, 4, 8).sum(1).reshape(-1)) == {2}
    elif name == "srigl":
        assert len(set(masks["one"].sum(0)) - {0}) == 1
        assert 0 in masks["one"].sum(0)
    elif name == "chase":
        assert masks["two"].any(1).sum() <= 16
    elif name == "chex":
        assert masks["two"].all(0).sum() == masks["scale"].sum() == 4
    else:
        assert masks["two"].all(1).sum() == 16
