"""One device and four agree: the same directions, masks and parameters."""

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
x, y = rng.normal(size=(64, 8)), rng.normal(size=(64, 16))
x, y = (jax.device_put(jnp.asarray(a, jnp.float32), split) for a in (x, y))
# One leaf laid over the devices, one replicated.
layout = {"sharded": NamedSharding(mesh, P(None, "data")), "bias": whole}
params = {"sharded": rng.normal(size=(8, 16)), "bias": np.zeros(16)}
params = {k: jax.device_put(jnp.asarray(v, jnp.float32), layout[k])
          for k, v in params.items()}
tx = zs.sparsify(
    optax.sgd(0.1, momentum=0.9),
    zs.sparsity.rigl(0.5, 100, interval=3, drop_fraction=0.5),
    gradient=zs.zosam(0.2, num_directions=2),
)
state = jax.jit(tx.init)(params)
params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

@jax.jit
def step(params, state, x, y):
    value_fn = lambda p: jnp.mean((jnp.tanh(x @ p["sharded"] + p["bias"]) - y) ** 2)
    updates, state = tx.update(None, state, params, value_fn=value_fn)
    return optax.apply_updates(params, updates), state

for _ in range(8):
    params, state = step(params, state, x, y)
found = {
    "devices": mesh.size,
    "sharded": len(params["sharded"].sharding.device_set),
    "params": np.asarray(params["sharded"]).tolist(),
    "masks": np.asarray(zs.sparsity.masks(state)["sharded"]).tolist(),
    "value": float(zs.estimate(state).value),
}
"""

# Of a program that is sharded over all devices.
SHARDED = """
if len(DEVICES) > 1:
    import re
    params = {"a": (512, 1024), "b": (512, 1024), "bias": (24,), "c": (2048, 512)}
    size = 4 * sum(x * y for x, y in (params[k] for k in "abc"))

    def laid(x, axis=0):
        spec = P(*[None] * axis, "data") if x.ndim > 1 else P()
        layout = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)

    params = {k: laid(jax.ShapeDtypeStruct(s, jnp.float32)) for k, s in params.items()}
    loss = lambda p: sum(jnp.sum(jnp.tanh(x) ** 2) for x in jax.tree.leaves(p))
    guided = {"directions": "guided"}
    redrawn = {"redraw": True}
    for name, options in (
        ("zosam", {}), ("rwp", {}), ("zosam", guided), ("zeroth_order", redrawn)
    ):
        radius = () if name == "zeroth_order" else (0.1,)
        tx = getattr(zs, name)(*radius, **options)
        state = jax.tree.map(
            lambda x: laid(x, 1) if x.ndim > 2 else x, jax.eval_shape(tx.init, params)
        )
        step = lambda s, p: tx.update(None, s, p, value_fn=loss)
        out = jax.tree.map(lambda x: getattr(x, "sharding", None), (params, state))
        program = jax.jit(step, out_shardings=out).lower(state, params).compile()
        text = program.as_text()
        found[" ".join((name, *map(str, options.values())))] = {
            "gathered": len(re.findall(r" all-gather(?:-start)?\\(", text)),
            "shares": program.memory_analysis().temp_size_in_bytes * mesh.size / size,
        }
"""


@pytest.fixture(scope="module")
def found():
    """On one device, and on four."""
    return devices.one_and_four(PROGRAM + SHARDED)


def test_one_device_and_four_agree(found):
    one, four = found
    assert (one["devices"], four["devices"]) == (1, 4)
    assert four["sharded"] == 4
    assert one["masks"] == four["masks"]
    np.testing.assert_allclose(one["params"], four["params"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one["value"], four["value"], rtol=1e-5)


def test_sharded_parameters_are_drawn_where_they_lie(found):
    names = ("zosam", "rwp", "zosam guided", "zeroth_order True")
    rows = {name: found[1][name] for name in names}
    assert {row["gathered"] for row in rows.values()} == {0}
    shares = {name: row["shares"] for name, row in rows.items()}
    # The direction, and a point; guided ZO-SAM makes four axes and two mixtures.
    assert shares["zosam"] < 3.5, shares
    assert shares["rwp"] < 3.5, shares
    assert shares["zosam guided"] < 12, shares
    # A point, the gradient and a leaf or two.
    assert shares["zeroth_order True"] < 3, shares
