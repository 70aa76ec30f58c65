"""No method loses or gains a weight: in 10,000 steps, and in one on anything."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sparse_replicas as replicas
from hypothesis import example, given, settings
from marks import quick

import zosam_jax as zs
from zosam_jax.sparsity.methods.dsr import share_out
from zosam_jax.sparsity.prune_and_grow import Census, Memory, _share_of_negative

STEPS = 10_000
# It compiles in half the time.
FAST = {"xla_backend_optimization_level": 0}
SHAPES = {"a": (6, 7), "b": (3, 2, 6), "bias": (5,), "one": (1, 1)}
SIZES = np.array([42, 36, 1])
SPARSITY = 0.6
# 79 - round(0.6 * 79) = 32 weights, one of them that of "one".
TARGET = np.array([17, 14, 1])


class Run(NamedTuple):
    """A method, and what its counts are to be: live ones a leaf, or only all of them.

    Attributes:
      make: `(sparsity, total_steps) -> method`.
      allowed: The counts, `[stages, leaves]`, in the order that they may come in.
      total: Whether only their sum is promised.
    """

    make: Callable[..., zs.sparsity.SparseMethod]
    allowed: Sequence[np.ndarray] | None = (TARGET,)
    total: bool = False


def by_stages(prune_to_sparsity):
    """Live counts of EM&S: of the pruned weights, the share that is pruned for now."""
    return [
        TARGET + np.round((1 - s / SPARSITY) * (SIZES - TARGET)).astype(int)
        for s in prune_to_sparsity
    ]


def methods(interval=7):
    make, common = zs.sparsity, {"interval": interval, "budget": "uniform"}

    def of(name, **options):
        return functools.partial(getattr(make, name), **(common | options))

    return {
        "set": Run(of("set_")),
        "set-by-sign": Run(of("set_", by_sign=True, stop_fraction=1.0)),
        "rigl": Run(of("rigl", drop_fraction=0.9)),
        "itop": Run(of("itop")),
        "itop-random": Run(of("itop", grow=make.scores.random)),
        "svite": Run(of("svite")),
        "mest": Run(of("mest")),
        "mest-soft": Run(of("mest", soft=True), allowed=by_stages([0.55, 0.575, 0.6])),
        "mest-gradient": Run(of("mest", gradient_weight=0.5)),
        "dsr": Run(of("dsr", drop_fraction=0.3, threshold=0.1), total=True),
        "gmp": Run(of("gmp"), allowed=None),
        "gmp-global": Run(of("gmp", budget="global"), allowed=None, total=True),
        "safe": Run(of("safe", strength=0.1), allowed=None),
        "safe-global": Run(of("safe", budget="global"), allowed=None, total=True),
        "ste": Run(lambda s, _, **o: make.ste(s, **(common | o))),
        "sr-ste": Run(lambda s, _, **o: make.ste(s, decay=0.1, **(common | o))),
        "ste-global": Run(
            lambda s, _, **o: make.ste(s, **(common | {"budget": "global"} | o)),
            total=True,
        ),
    }


METHODS = methods()
# The others are SET or RigL at other times, and in the wrapper the same program.
OTHER_THAN_SCHEDULES = [n for n in METHODS if not n.startswith(("itop", "svite"))]


def counted(masks):
    leaves = [m for m in jax.tree.leaves(masks) if m.ndim]
    return jnp.stack([jnp.sum(m, dtype=jnp.int32) for m in leaves])


@pytest.mark.parametrize("name", quick(METHODS, "set", "rigl"))
def test_ten_thousand_steps_keep_every_count(name):
    run = METHODS[name]
    method = run.make(SPARSITY, STEPS)
    tx = zs.sparsify(optax.sgd(0.05, momentum=0.9), method)
    rng = np.random.default_rng(0)
    params, target = (
        {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}
        for _ in range(2)
    )
    straight = method.straight_through

    @functools.partial(jax.jit, compiler_options=FAST)
    def train(params):
        state = tx.init(params)
        if not straight:
            params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

        def step(carry, _):
            params, state, off = carry
            pull = jnp.sin(state.step.astype(jnp.float32))
            grads = jax.tree.map(lambda w, t: w - pull * t, params, target)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            masks = zs.sparsity.masks(state)
            if not straight:
                zeros = jax.tree.map(lambda m, w: jnp.sum(~m & (w != 0)), masks, params)
                off += sum(jax.tree.leaves(zeros))
            counts = counted(masks)
            off += jnp.sum(counts != state.memory.live)
            off += jnp.sum(counts < 1)
            return (params, state, off), counts

        start = counted(zs.sparsity.masks(state))
        (_, _, off), counts = jax.lax.scan(
            step, (params, state, jnp.int32(0)), None, length=STEPS
        )
        return start, off, counts

    start, off, counts = jax.tree.map(np.asarray, train(params))
    # Off the mask and not zero, remembered otherwise than there, or an empty leaf.
    assert off == 0
    seen = np.concatenate([start[None], counts])
    if run.total:
        seen = seen.sum(1, keepdims=True)
    wanted = TARGET.sum(keepdims=True) if run.total else TARGET
    np.testing.assert_array_equal(seen[-1], wanted)
    if name.startswith("safe"):
        np.testing.assert_array_equal(seen[:-1], np.tile(seen[0], (STEPS, 1)))
        np.testing.assert_array_equal(seen[0], [79] if run.total else SIZES)
        return
    if run.allowed is None:
        # Dense until a fifth, never more again, and at the target from three quarters.
        assert np.all(np.diff(seen, axis=0) <= 0)
        np.testing.assert_array_equal(seen[STEPS // 5], [79] if run.total else SIZES)
        np.testing.assert_array_equal(seen[STEPS * 3 // 4 + 1], wanted)
        assert len(np.unique(seen, axis=0)) > 20
        return
    stages = [np.sum(x, keepdims=True) if run.total else x for x in run.allowed]
    if len(stages) > 1:
        # Until the shares of training that the recipe names, at the next change.
        assert np.array_equal(seen[0], wanted)
        for a, b, live in zip(
            (1, 6250 + 7, 8126), (6250, 8125, STEPS), stages, strict=True
        ):
            assert np.all(seen[a : b + 1] == live)
    else:
        assert np.all(seen == stages[0])
    if name.startswith("dsr"):
        assert len(np.unique(counts, axis=0)) > 5


# Single weights and none, axes of one, three dtypes; few live weights and nearly all.
# Each leaf makes the program longer.
TREES = {
    "ragged": {
        "bias": ((3,), jnp.float32),
        "empty": ((0, 4), jnp.float32),
        "one": ((1, 1), jnp.bfloat16),
        "a": ((5, 3), jnp.float32),
        "c": ((2, 1, 4), jnp.float16),
    },
    "row": {"a": ((1, 23), jnp.bfloat16), "b": ((2, 2, 2, 3), jnp.float16)},
}
DENSITIES = {"ragged": 0.35, "row": 0.9}
# Every method on the first; on the second one for each way to choose, since those that
# are left out choose by the code of one that is not: SET and RigL as SET by sign, MEST
# and MEST with gradients as soft MEST, GMP, SAFE and STE within leaves as by all.
ON_ROW = ["set-by-sign", "mest-soft", "dsr", "gmp-global", "safe-global", "ste-global"]


@functools.cache
def once(name, tree):
    """One topology change and one step, at a step where the method has one."""
    method = METHODS[name].make(1 - DENSITIES[tree], 100)
    tx = zs.sparsify(optax.sgd(0.1, momentum=0.9), method)
    at = np.flatnonzero(jax.jit(jax.vmap(method.fires))(jnp.arange(100)))[-1]

    @functools.partial(jax.jit, compiler_options=FAST)
    def both(params, grads):
        state = tx.init(params)._replace(step=jnp.int32(at))
        if not method.straight_through:
            params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
        updates, state = tx.update(grads, state, params)
        masks = zs.sparsity.masks(state)
        counts = counted(masks), state.memory.live
        return optax.apply_updates(params, updates), masks, counts

    return both, method


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        *((name, "ragged") for name in OTHER_THAN_SCHEDULES),
        *((name, "row") for name in ON_ROW),
    ],
)
@settings(max_examples=8, deadline=None)
@given(
    levels=st.integers(0, 3),
    poison=st.sampled_from([None, "gradients", "weights"]),
    seed=st.integers(0, 2**31 - 1),
)
@example(0, "weights", 0)
@example(1, "gradients", 1)
@example(3, None, 2)
def test_the_last_change_keeps_every_count_whatever_it_sees(
    name, tree, levels, poison, seed
):
    """Integers from -levels to levels, so ties or all zeros, and NaN among them."""
    both, method = once(name, tree)
    rng = np.random.default_rng(seed)

    def draw(bad):
        out = {}
        for k, (shape, dtype) in TREES[tree].items():
            whole = rng.integers(-levels, levels + 1, size=shape).astype(np.float32)
            if bad:
                whole[rng.random(shape) < 0.3] = np.nan
            out[k] = whole.astype(dtype)
        return out

    params, grads = draw(poison == "weights"), draw(poison == "gradients")
    new, masks, (counts, live) = jax.device_get(both(params, grads))
    sparse = [k for k, m in masks.items() if m.ndim]
    assert set(sparse) == set(TREES[tree]) - {"bias", "empty"}
    np.testing.assert_array_equal(counts, live)
    np.testing.assert_array_equal(counts, [masks[k].sum() for k in sparse])
    size = sum(math.prod(TREES[tree][k][0]) for k in sparse)
    # Every method is at its target after its last change.
    assert counts.sum() == size - round((1 - DENSITIES[tree]) * size)
    assert np.all(counts >= 1)
    for k in sparse:
        assert new[k].dtype == TREES[tree][k][1]
        # (No update takes NaN to zero.)
        if not method.straight_through and poison != "weights":
            assert np.all(new[k][~masks[k]] == 0)


def check_shares(given, total, room):
    assert given.sum() == min(total, room.sum())
    assert np.all(given >= 0)
    assert np.all(given <= room)


shares = jax.jit(share_out)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_sharing_out_is_exact(data):
    """Against fractions where float32 holds the numbers; to the last weight always."""
    top = data.draw(st.sampled_from([3, 40, 1000, 10**5, 3 * 10**8]))
    numbers = st.lists(st.integers(0, top), min_size=5, max_size=5)
    weights, room = (np.array(data.draw(numbers), np.int32) for _ in range(2))
    total = data.draw(st.integers(0, int(room.sum())))
    given = np.asarray(shares(jnp.int32(total), weights, room))
    check_shares(given, total, room)
    if top <= 40:
        exact = replicas.shared_out(total, weights.tolist(), room.tolist())
        # A tie of fractions is decided by rounding: then two layers differ by one.
        assert np.abs(given - exact).max() <= 1
        assert np.abs(given - exact).sum() <= 2


def test_a_whole_share_that_fills_its_layer_is_not_a_remainder():
    """The third layer is full with its share of 1; the rest goes to the last two."""
    weights, room = np.array([0, 0, 2, 3, 3]), np.array([1, 1, 1, 2, 2])
    exact = replicas.shared_out(5, weights.tolist(), room.tolist())
    assert exact == [0, 0, 1, 2, 2]
    np.testing.assert_array_equal(shares(jnp.int32(5), weights, room), exact)


def test_sharing_out_ends_and_is_exact_in_extreme_cases():
    full = np.full(3, 7, np.int32)
    check_shares(np.asarray(shares(jnp.int32(99), full, full)), 99, full)
    none = np.zeros(3, np.int32)
    check_shares(np.asarray(shares(jnp.int32(5), full, none)), 5, none)
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 4 * 10**5, size=3000).astype(np.int32)
    room = np.full(3000, 10**5, np.int32)
    for total in (10**8, 10**8 + 1, 3 * 10**8 - 1, 3 * 10**8):
        given = np.asarray(shares(jnp.int32(total), weights, room))
        check_shares(given, total, room)


def test_rounding_never_shares_out_more_than_there_is():
    """Shares that float32 rounds up: each a fraction of one, or by some weights."""
    ones, room = np.ones(5, np.int32), np.full(5, 4 * 10**8, np.int32)
    check_shares(np.asarray(shares(jnp.int32(5003), ones, room)), 5003, room)
    rng = np.random.default_rng(0)
    for total in rng.integers(5 * 10**8, 19 * 10**8, 40):
        weights = rng.integers(1, 10**5, 5).astype(np.int32)
        given = np.asarray(shares(jnp.int32(total), weights, room))
        check_shares(given, total, room)


def test_a_schedule_beyond_its_bounds_costs_no_weight():
    params = {"w": jnp.arange(1.0, 65).reshape(8, 8)}

    @functools.partial(jax.jit, compiler_options=FAST)
    def live(fraction):
        method = zs.sparsity.rigl(0.5, 10**6, drop_fraction=lambda step: fraction)
        topology = method.init(params)
        return method.change(topology, params, params, jnp.int32(100)).masks["w"].sum()

    for fraction in (-0.5, 1.5):
        assert live(fraction) == 32


def test_the_threshold_of_dsr_comes_back_from_dead_weights_and_from_an_empty_quota():
    method = zs.sparsity.dsr(0.5, 10**6, drop_fraction=0.1, interval=1)

    @functools.partial(jax.jit, compiler_options=FAST)
    def train(first, then):
        def change(step, topology):
            params = {"w": jnp.where(step < 300, first, then)}
            return method.change(topology, params, params, step)

        topology = jax.lax.fori_loop(1, 300, change, method.init({"w": first}))
        return topology.masks["w"], jax.lax.fori_loop(300, 700, change, topology)

    dead, alive = np.zeros((8, 8), "f"), np.linspace(1, 2, 64, dtype="f").reshape(8, 8)
    for first, then in ((dead, alive), (alive, np.float32(1e-3) * alive)):
        before, topology = train(first, then)
        assert not np.array_equal(before, topology.masks["w"])
        assert 1e-4 < float(topology.memory.rule) < 4


@pytest.mark.parametrize("interval", [40, 1000])
@pytest.mark.parametrize("stages", [None, ((1.0, 0.8, 0.5),)])
def test_mest_ends_at_its_sparsity_with_any_interval(interval, stages):
    method = zs.sparsity.mest(0.8, 100, soft=True, stages=stages, interval=interval)
    params = {"w": jnp.linspace(1, 2, 100).reshape(10, 10)}
    topology = method.init(params)
    counts = []
    for step in map(jnp.int32, range(100)):
        if bool(method.fires(step)):
            topology = method.change(topology, params, params, step)
        counts.append(int(topology.masks["w"].sum()))
    assert counts[0] > 20
    assert counts[-1] == 20


@pytest.mark.parametrize(
    ("start", "stop", "first", "last"), [(0.07, 0.29, 7, 29), (0.1, 1.0, 10, 99)]
)
def test_gmp_prunes_at_the_steps_that_its_fractions_name(start, stop, first, last):
    method = zs.sparsity.gmp(
        0.5, 100, interval=1, start_fraction=start, stop_fraction=stop
    )
    fired = [s for s in range(100) if bool(method.fires(jnp.int32(s)))]
    assert (fired[0], fired[-1]) == (first, last)


def test_rounding_in_large_leaves_drops_nothing_after_the_last_stage():
    """A leaf beyond 2**24, whose count is no float32: by shapes alone, on the quota."""
    final = jnp.asarray([2**24 + 1, 10**8 + 3], jnp.int32)
    sizes = final * 10
    memory = Memory(final, final)
    for soft in (False, True):
        quota = quota_of(zs.sparsity.mest(0.9, 100, soft=soft))
        kept, live, _ = quota(Census(jnp.int32(95), sizes, memory, (), ()))
        np.testing.assert_array_equal(kept, final)
        np.testing.assert_array_equal(live, final)
    quota = quota_of(zs.sparsity.gmp(0.9, 100, interval=1))
    before = sizes
    for step in range(20, 76):
        kept, live, _ = quota(Census(jnp.int32(step), sizes, memory, (), ()))
        assert np.all(kept <= before)
        before = live
    np.testing.assert_array_equal(live, final)


def quota_of(method):
    """The quota that `prune_and_grow` closed over."""
    names = method.change.__code__.co_freevars
    return method.change.__closure__[names.index("quota")].cell_contents


def test_by_sign_keeps_the_count_in_large_leaves_of_one_sign():
    """float32 rounds shares of 2**24 + 3 up: counted without such a leaf."""
    counts = jnp.asarray([0, 1], jnp.int32)
    for n in (2**24 + 3, 10**8 + 7):
        plus, minus = counts * n, (1 - counts) * n
        kept = jnp.full(2, n - 1, jnp.int32)
        below = _share_of_negative(kept, plus, minus)
        np.testing.assert_array_equal(below, [n - 1, 0])


def test_dropping_nothing_by_sign_leaves_weights_that_are_no_numbers_live():
    method = zs.sparsity.set_(
        0.5, 1000, by_sign=True, drop_fraction=optax.constant_schedule(0.0)
    )
    params = {"w": jnp.linspace(-1, 1, 36).reshape(6, 6).at[2:4].set(jnp.nan)}
    first = method.init(jax.tree.map(jnp.ones_like, params))
    after = method.change(first, params, params, jnp.int32(50))
    np.testing.assert_array_equal(after.masks["w"], first.masks["w"])


def test_the_threshold_of_dsr_is_no_number_of_the_weights_dtype():
    """bfloat16(0.001) is 0.000999: below the threshold, but equal to it if rounded."""
    near, above = jnp.bfloat16(0.001), jnp.bfloat16(0.00101)
    assert float(near) < 0.001 < float(above)
    params = {"w": jnp.full((4, 8), above, jnp.bfloat16).at[:, ::2].set(near)}
    method = zs.sparsity.dsr(0.0, 100, interval=1, threshold=0.001)
    first = method.init(params)
    after = method.change(first, params, params, jnp.int32(1))
    # Half of them dropped, which is more than a tenth.
    assert float(after.memory.rule) == pytest.approx(0.0005)
    kept = {"w": jnp.where(params["w"] == near, above, params["w"])}
    after = method.change(first, kept, kept, jnp.int32(1))
    assert float(after.memory.rule) == pytest.approx(0.002)
