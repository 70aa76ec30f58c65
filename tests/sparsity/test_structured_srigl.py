"""SRigL against loops over neurons in NumPy, and its invariants."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from structured import best, cosine, mask_of, normal, train, train_in_numpy

import zosam_jax as zs
from zosam_jax.sparsity.prune_and_grow import Memory

# Leaves of one shape are chosen together.
SHAPES = {"a": (9, 12), "b": (3, 2, 4, 5), "c": (9, 12), "last": (12, 5), "bias": (12,)}
STEPS, INTERVAL, ALPHA, GAMMA = 1000, 20, 0.3, 0.5


def neurons(shape, axis=-1):
    """Flat indices of the fan-in of every neuron."""
    axis %= len(shape)
    found = [[] for _ in range(shape[axis])]
    for flat, index in enumerate(np.ndindex(*shape)):
        found[index[axis]].append(flat)
    return found


def fan_ins(mask, axis=-1):
    flat = np.asarray(mask).reshape(-1)
    return [int(flat[group].sum()) for group in neurons(mask.shape, axis)]


def change_in_numpy(targets, gamma, last, alpha, axis=-1):
    """The rule of the paper, neuron by neuron."""

    def change(step, w, g, masks):
        new = {}
        for k, old in masks.items():
            magnitude, slope = np.abs(w[k]), np.abs(g[k])
            live = np.flatnonzero(old)
            dropped = int(np.floor(alpha(step) * np.float32(len(live))))
            kept = set(best(magnitude, live, len(live) - dropped))
            salient = kept | set(best(slope, range(old.size), dropped))
            fan_in = max(fan_ins(old, axis))
            rows = neurons(old.shape, axis)
            counted = [len(salient & set(row)) for row in rows]
            needed = max(1, int(np.floor(np.float32(gamma) * np.float32(fan_in))))
            active = [i for i, c in enumerate(counted) if c >= needed]
            least = -(-targets[k] // len(rows[0]))
            if k in last:
                active = list(range(len(rows)))
            elif len(active) < least:
                order = sorted(range(len(rows)), key=lambda i: (-counted[i], i))
                active = order[:least]
            size = targets[k] // len(active)
            chosen = []
            for i in active:
                stay = best(magnitude, sorted(kept & set(rows[i])), size)
                rest = [j for j in rows[i] if j not in set(stay)]
                chosen += stay + best(slope, rest, size - len(stay))
            new[k] = mask_of(old.shape, chosen)
        return new

    return change


def test_a_thousand_steps_equal_the_numpy_replica():
    start, stop = normal(SHAPES), 0.75 * STEPS
    method = zs.sparsity.srigl(
        0.7, STEPS, gamma=GAMMA, interval=INTERVAL, last="last", seed=3
    )
    run = train(method, start, STEPS)
    _, w, masks, memory = next(run)
    sparse = {k: masks[k] for k in ("a", "b", "c", "last")}
    targets = dict(zip(sparse, memory.target.tolist(), strict=True))
    assert sum(targets.values()) == 396 - round(0.7 * 396)
    replica = train_in_numpy(
        start,
        w,
        sparse,
        STEPS,
        lambda step: step > 0 and step % INTERVAL == 0 and step < stop,
        change_in_numpy(
            targets, GAMMA, {"last"}, lambda step: cosine(ALPHA, step, stop)
        ),
    )
    active, came_back, fewest = {}, 0, {k: 99 for k in sparse}
    for (index, params, held, memory), (_, expected, wanted) in zip(
        run, replica, strict=True
    ):
        for j, k in enumerate(sparse):
            np.testing.assert_array_equal(held[k], wanted[k], err_msg=f"{k} {index}")
            assert np.all(params[k][~held[k]] == 0)
            if index % INTERVAL:
                continue
            counted = fan_ins(held[k])
            (size,) = set(counted) - {0}
            alive = {i for i, c in enumerate(counted) if c}
            live = size * len(alive)
            assert memory.live[j] == live
            assert memory.target[j] == targets[k]
            assert 0 <= targets[k] - live < len(alive)
            came_back += len(alive - active.get(k, alive))
            active[k] = alive
            fewest[k] = min(fewest[k], len(alive))
        for k in SHAPES:
            # Rounding, which momentum carries over steps.
            np.testing.assert_allclose(params[k], expected[k], rtol=1e-3, atol=1e-5)
    assert fewest["last"] == 5
    assert max(fewest["a"], fewest["c"]) < 12
    assert came_back


@jax.jit
def change(masks, target, w, g, step):
    live = jnp.stack([jnp.sum(masks["w"], dtype=jnp.int32)])
    topology = zs.sparsity.Topology(masks, Memory(target, live))
    method = zs.sparsity.srigl(0.5, 100, interval=1, drop_fraction=0.8, gamma=GAMMA)
    new = method.change(topology, {"w": w}, {"w": g}, step)
    return new.masks["w"], new.memory


@settings(max_examples=100, deadline=None)
@given(
    fan_in=st.integers(1, 6),
    active=st.integers(1, 8),
    surplus=st.integers(0, 7),
    levels=st.integers(1, 4),
    step=st.integers(0, 80),
    seed=st.integers(0, 2**31 - 1),
)
def test_one_change_is_exact_whatever_the_ties(
    fan_in, active, surplus, levels, step, seed
):
    rng = np.random.default_rng(seed)
    shape = (2, 3, 8)
    old = np.zeros((6, 8), bool)
    for neuron in rng.permutation(8)[:active]:
        old[rng.permutation(6)[:fan_in], neuron] = True
    old = old.reshape(shape)
    target = min(fan_in * active + min(surplus, active - 1), 48)
    w, g = rng.integers(-levels, levels + 1, size=(2, *shape)).astype(np.float32)
    w = np.where(old, w, 0)
    new, memory = change(
        {"w": jnp.asarray(old)}, jnp.asarray([target], jnp.int32), w, g, step
    )
    expected = change_in_numpy(
        {"w": target}, GAMMA, (), lambda step: cosine(0.8, step, 75)
    )(step, {"w": w}, {"w": g}, {"w": old})["w"]
    np.testing.assert_array_equal(new, expected)
    counted = fan_ins(expected)
    assert memory.live.tolist() == [sum(counted)]
    assert len(set(counted) - {0}) == 1
    assert 0 <= target - sum(counted) < np.count_nonzero(counted)


def changed(method, masks, w, g, target=None):
    topology = jax.jit(method.init)({"w": w})
    memory = topology.memory
    if target is not None:
        memory = memory._replace(target=jnp.asarray([target], jnp.int32))
    live = jnp.asarray([np.sum(masks)], jnp.int32)
    topology = zs.sparsity.Topology(
        {"w": jnp.asarray(masks, bool)}, memory._replace(live=live)
    )
    new = jax.jit(method.change)(topology, {"w": w}, {"w": g}, 0)
    return np.asarray(new.masks["w"]), new.memory


def test_a_neuron_without_salient_weights_is_ablated_and_its_weights_move():
    w = jnp.asarray([[5.0, 6.0, 0.1], [7.0, 8.0, 0.2], [0, 0, 0], [0, 0, 0]])
    g = jnp.asarray([[0, 0, 0], [0, 0, 0], [3.0, 0, 0], [0, 4.0, 0]])
    method = zs.sparsity.srigl(0.5, 1000, drop_fraction=0.4)
    new, memory = changed(method, w != 0, w, g)
    assert fan_ins(new) == [3, 3, 0]
    assert new[:, :2].T.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 1]]
    assert memory.live.tolist() == [6]
    kept, _ = changed(zs.sparsity.srigl(0.5, 1000, last="w"), w != 0, w, g)
    assert fan_ins(kept) == [2, 2, 2]


def test_an_ablated_neuron_comes_back_by_its_gradient():
    w = jnp.asarray([[5.0, 6.0, 0], [7.0, 8.0, 0], [1.0, 2.0, 0], [0, 0, 0]])
    g = jnp.zeros((4, 3)).at[1:3, 2].set(9.0)
    new, _ = changed(zs.sparsity.srigl(0.5, 1000, drop_fraction=0.4), w != 0, w, g)
    assert fan_ins(new) == [2, 2, 2]
    assert new[:, 2].tolist() == [False, True, True, False]


def test_a_neuron_with_more_than_its_fan_in_keeps_its_largest_weights():
    """An ablated neuron comes back, so the others give weights up: the smallest."""
    w = jnp.asarray([[3.0, 4.0, 0], [1.0, 5.0, 0], [6.0, 2.0, 0], [0, 0, 0]])
    g = jnp.zeros((4, 3)).at[:, 2].set(jnp.asarray([1.0, 2.0, 3.0, 4.0]))
    method = zs.sparsity.srigl(0.5, 1000, drop_fraction=0.2, gamma=0.0)
    new, _ = changed(method, w != 0, w, g)
    assert new[:, :2].T.astype(int).tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]


def test_so_many_neurons_stay_as_hold_the_layer_s_weights():
    """Of 12 inputs each, 30 weights need three neurons, not the floor, two."""
    w = jnp.zeros((12, 4)).at[:, 0].set(1.0 + jnp.arange(12.0))
    w = w.at[:6, 1:].set(0.01)
    g = jnp.zeros((12, 4))
    method = zs.sparsity.srigl(0.375, 1000, drop_fraction=0.6, gamma=1.0)
    new, memory = changed(method, w != 0, w, g, target=30)
    counted = fan_ins(new)
    assert sorted(counted) == [0, 10, 10, 10]
    assert counted[0] == 10
    assert memory.live.tolist() == [30]


def test_the_axis_of_the_neurons_is_an_option():
    params = {"linear": jnp.ones((4, 10)), "conv": jnp.ones((4, 3, 3, 3))}
    method = zs.sparsity.srigl(0.5, 1000, axis=0, budget="uniform")
    masks = jax.jit(method.init)(params).masks
    assert fan_ins(masks["linear"], 0) == [5] * 4
    assert fan_ins(masks["conv"], 0) == [13] * 4


def test_more_neurons_than_weights():
    params = {"w": jnp.ones((4, 40))}
    masks = jax.jit(zs.sparsity.srigl(0.9, 1000).init)(params).masks
    assert sorted(fan_ins(masks["w"])) == [0] * 24 + [1] * 16
    with pytest.raises(ValueError, match="keeps 16 weights, fewer than its 40"):
        zs.sparsity.srigl(0.9, 1000, last="*").init(params)


def test_the_last_layer_may_be_a_function_or_name_dense_leaves_too():
    params = {"head": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    g = jax.tree.map(jnp.zeros_like, params)
    for last in ("head/*", ["head/bias", "head/kernel"], lambda p, s: s == (4, 4)):
        method = zs.sparsity.srigl(0.5, 1000, last=last, gamma=1.0)
        new = jax.jit(lambda m=method: m.change(m.init(params), params, g, 0))()
        assert fan_ins(new.masks["head"]["kernel"]) == [2] * 4
    with pytest.raises(ValueError, match="Did you mean 'head/bias'"):
        zs.sparsity.srigl(0.5, 1000, last="head/bios").init(params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"gamma": 1.5}, "gamma=1.5"), ({"interval": 0}, "interval=0")],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        zs.sparsity.srigl(0.5, 1000, **arguments)


@pytest.mark.parametrize("name", ["srigl", "nm", "units"])
def test_ten_thousand_steps_lose_and_gain_no_weight(name):
    """Random weights and gradients with ties, a change in every step."""
    shape, steps = (8, 6), 10_000
    method = {
        "srigl": zs.sparsity.srigl(0.4, 20_000, interval=1, gamma=0.5),
        "nm": zs.sparsity.nm(2, 4, 20_000, interval=1),
        "units": zs.sparsity.units(
            0.4, 20_000, {"u": zs.sparsity.Units("w", 4)}, interval=1
        ),
    }[name]
    params = {"w": jax.random.normal(jax.random.key(0), shape)}
    tx = zs.sparsify(optax.sgd(0.1, momentum=0.5), method)

    @jax.jit
    def run(params):
        state = tx.init(params)
        params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

        def step(carry, key):
            params, state = carry
            drawn = jax.random.normal(key, shape)
            grads = {"w": jnp.round(2 * drawn) / 2 + 0.1 * params["w"]}
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            mask = zs.sparsity.masks(state)["w"]
            stray = jnp.sum((params["w"] != 0) & ~mask)
            return (params, state), (jnp.packbits(mask), state.memory, stray)

        return jax.lax.scan(step, (params, state), jax.random.split(KEY, steps))[1]

    packed, memory, stray = jax.tree.map(np.asarray, run(params))
    masks = np.unpackbits(packed, axis=1).reshape(steps, *shape).astype(bool)
    assert not stray.any()
    assert np.any(masks[1:] != masks[:-1], axis=(1, 2)).mean() > 0.5
    live = masks.sum((1, 2))
    np.testing.assert_array_equal(memory.live[:, 0], live)
    assert len(set(memory.target[:, 0])) == 1
    if name == "nm":
        assert set(masks.reshape(steps, 2, 4, 6).sum(2).reshape(-1)) == {2}
    elif name == "units":
        blocks = masks.reshape(steps, 4, 12)
        assert np.all(blocks.all(2) == blocks.any(2))
        assert set(blocks.all(2).sum(1)) == {2}
    else:
        counted = masks.sum(1)
        active = (counted > 0).sum(1)
        size = memory.target[:, 0] // active
        np.testing.assert_array_equal(counted, np.where(counted > 0, size[:, None], 0))
        assert set(active) > {6}


KEY = jax.random.key(1)
