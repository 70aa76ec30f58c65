"""One compiled step a method: donated, scanned, resumed, packed, in any company."""

import functools

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from problems import mlp
from test_conservation import METHODS, OTHER_THAN_SCHEDULES, counted

import zosam_jax as zs
from zosam_jax.train import checkpoint

STEPS = 33
# It compiles in half the time.
FAST = {"xla_backend_optimization_level": 0}
SGD = functools.partial(optax.inject_hyperparams(optax.sgd), momentum=0.9)
# A gradient, its optimizer, and how many of it make a step.
COMPANY = {
    "zosam": (zs.zosam(0.1), SGD, 1),
    "sam": (zs.sam(0.1), SGD, 2),
    "wsam": (
        zs.wsam(0.1, decouple=True),
        lambda rate: zs.decoupled(SGD(rate), 0.02),
        1,
    ),
}


def stepper(tx, loss):
    """`(params, state) -> (params, state)`, one update."""

    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    return step


def started(tx, params, method):
    state = tx.init(params)
    if not method.straight_through:
        params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    return jax.tree.map(jnp.array, (params, state))


def with_company(name):
    company = list(COMPANY)[sorted(METHODS).index(name) % len(COMPANY)]
    gradient, optimizer, accumulated = COMPANY[company]
    params, loss = mlp()
    method = METHODS[name].make(0.5, 20, interval=2)
    tx = zs.sparsify(
        optimizer(0.05), method, gradient=gradient, accumulate_steps=accumulated
    )
    return tx, loss, started(tx, params, method), accumulated


@pytest.mark.parametrize("name", OTHER_THAN_SCHEDULES)
def test_a_method_begins_again_after_its_first_state_was_donated(name):
    params, _ = mlp()
    tx = zs.sparsify(optax.sgd(0.1), METHODS[name].make(0.5, 20, interval=2))
    first = tx.init(params)
    expected = jax.tree.map(np.array, first)
    for array in jax.tree.leaves(first):
        array.delete()
    chex.assert_trees_all_equal(tx.init(params), expected)


@pytest.mark.parametrize("name", OTHER_THAN_SCHEDULES)
def test_a_donated_step_is_traced_once(name):
    tx, loss, (params, state), accumulated = with_company(name)
    before = np.asarray(params["hidden"]["kernel"])
    chex.clear_trace_counter()

    @functools.partial(
        jax.jit,
        donate_argnums=(0, 1),
        compiler_options=FAST,
    )
    @chex.assert_max_traces(n=1)
    def step(params, state):
        return stepper(tx, loss)(params, state)

    for _ in range(6 * accumulated):
        params, state = step(params, state)
    assert int(state.step) == 6
    assert np.isfinite(float(zs.estimate(state).value))
    assert not np.array_equal(before, params["hidden"]["kernel"])
    np.testing.assert_array_equal(counted(zs.sparsity.masks(state)), state.memory.live)


def test_a_scan_is_the_loop():
    tx, loss, start, _ = with_company("dsr")
    step = stepper(tx, loss)
    looped, jitted = start, jax.jit(step, compiler_options=FAST)
    for _ in range(7):
        looped = jitted(*looped)

    @functools.partial(jax.jit, compiler_options=FAST)
    def scan(carry):
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, None, length=7)[0]

    scanned = scan(start)
    for a, b in zip(*map(jax.tree.leaves, (looped, scanned)), strict=True):
        if a.dtype == jnp.bool_ or jnp.issubdtype(a.dtype, jnp.integer):
            np.testing.assert_array_equal(a, b)
        else:
            # XLA fuses, and so rounds, a loop's body otherwise.
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_injected_learning_rate_is_no_new_trace():
    params, loss = mlp()
    method = METHODS["mest"].make(0.5, 20, interval=2)
    tx = zs.sparsify(SGD(0.05), method, gradient=zs.zosam(0.1))
    params, state = started(tx, params, method)
    chex.clear_trace_counter()
    step = jax.jit(
        chex.assert_max_traces(n=1)(stepper(tx, loss)), compiler_options=FAST
    )
    for rate in (0.05, 0.0):
        state.inner.hyperparams["learning_rate"] = jnp.float32(rate)
        before = params
        params, state = step(params, state)
    # At rate 0 what is left moves nothing but what this step's change dropped or grew.
    kept = jax.tree.map(lambda m, w: m & (w != 0), zs.sparsity.masks(state), before)
    jax.tree.map(
        lambda m, w, v: np.testing.assert_array_equal(w[m], v[m]), kept, before, params
    )


@pytest.mark.parametrize("name", ["set", "dsr"])
def test_the_seed_may_be_traced(name):
    params, _ = mlp()
    chex.clear_trace_counter()

    def both(seed):
        method = METHODS[name].make(0.5, 100, interval=5, seed=seed)
        first = method.init(params)
        return first.masks, method.change(first, params, params, jnp.int32(5)).masks

    once = chex.assert_max_traces(n=1)(lambda seed: both(seed))
    traced = jax.jit(once, compiler_options=FAST)
    found = [traced(seed) for seed in (jnp.int32(0), jnp.int32(7))]
    for of_0, of_7 in zip(*found, strict=True):
        assert not jax.tree.all(jax.tree.map(jnp.array_equal, of_0, of_7))
    constant = jax.jit(functools.partial(both, 7), compiler_options=FAST)()
    jax.tree.map(np.testing.assert_array_equal, found[1], constant)


@pytest.mark.parametrize("name", ["rigl", "set-by-sign", "dsr", "gmp", "safe", "ste"])
def test_the_program_does_not_depend_on_the_sparsity(name):
    """Targets are state. (MEST's stages are sparsities, and constants.)"""
    params, _ = mlp()

    def program(sparsity):
        tx = zs.sparsify(optax.sgd(0.1), METHODS[name].make(sparsity, 100))
        shapes = jax.eval_shape(tx.init, params)
        return jax.jit(tx.update).lower(params, shapes, params).as_text()

    assert program(0.5) == program(0.8)


@functools.cache
def history(name, packed):
    """The jitted step, and host copies of all that it carried, beginning at the start.

    MEST's stages end at steps 20 and 26; it changes at 0, 3, 6, ...
    """
    params, loss = mlp()
    method = METHODS[name].make(0.5, STEPS, interval=3)
    tx = zs.sparsify(
        optax.adam(1e-2),
        method,
        gradient=zs.zosam(0.1),
        packed=packed,
        track_exploration=True,
    )
    step = jax.jit(stepper(tx, loss), compiler_options=FAST)
    carries = [started(tx, params, method)]
    for _ in range(STEPS):
        carries.append(step(*carries[-1]))
    return step, jax.tree.map(np.asarray, carries)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("at", [10, 22])
def test_a_run_resumed_within_a_stage_of_mest_is_the_uninterrupted_one(
    at, packed, tmp_path
):
    step, carries = history("mest-soft", packed)
    counts = [int(counted(zs.sparsity.masks(s)).sum()) for _, s in carries]
    # Denser in the first stage than in the second, than at the end.
    assert counts[10] > counts[22] > counts[-1] == 40
    folder = checkpoint.Checkpoints(tmp_path / "kept", keep=1)
    folder.save(at, checkpoint.snapshot(carries[at]))
    folder.wait()
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, carries[0]))
    carry = folder.restore(like, warn=pytest.fail)
    folder.close()
    same(carry, carries[at])
    for i in range(at, STEPS):
        carry = step(*carry)
        same(carry, carries[i + 1])


@pytest.mark.parametrize("name", ["mest-soft", "ste"])
def test_packed_masks_change_nothing_bit_for_bit(name):
    _, plain = history(name, False)
    _, packed = history(name, True)
    for (params, state), (other_params, other) in zip(plain, packed, strict=True):
        same(params, other_params)
        same(state.inner, other.inner)
        same(state.memory, other.memory)
        same(zs.sparsity.masks(state), jax.device_get(zs.sparsity.masks(other)))
        bits = other.masks.bits["hidden"]["kernel"]
        assert (bits.dtype, bits.shape) == (np.uint8, (6, 2))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mest-soft", "ste"])
def test_exploration_is_the_union_of_all_masks(name, packed):
    _, carries = history(name, packed)
    union = None
    for _, state in carries:
        masks = jax.tree.map(np.asarray, zs.sparsity.masks(state))
        union = masks if union is None else jax.tree.map(np.logical_or, union, masks)
        jax.tree.map(np.testing.assert_array_equal, zs.sparsity.explored(state), union)
        ever = union["hidden"]["kernel"].sum() + union["out"]["kernel"].sum()
        assert float(zs.sparsity.exploration(state)) == pytest.approx(ever / 80)
    assert 40 < ever <= 80


def test_exploration_of_a_single_array():
    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.75), track_exploration=True)
    assert float(zs.sparsity.exploration(tx.init(jnp.ones((4, 4))))) == 0.25
    plain = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.75))
    with pytest.raises(ValueError, match="track_exploration=True"):
        zs.sparsity.exploration(plain.init(jnp.ones((4, 4))))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 19), min_size=1, max_size=3), st.integers(0, 99))
@example([0, 3], 0)
@example([3, 0], 0)
@example([2, 8], 0)
@example([17], 0)
def test_packing_goes_and_comes(shape, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    masks = {"w": jnp.asarray(mask), "bias": jnp.asarray(True)}
    packed = zs.sparsity.pack(masks)
    assert packed.bits["w"].shape == (*shape[:-1], -(-shape[-1] // 8))
    same(zs.sparsity.unpack(packed), masks)
    same(zs.sparsity.unpack(masks), masks)


def test_straight_through_masks_follow_the_weights_past_a_gradient_with_nan():
    params = {"w": jnp.linspace(1, 2, 16).reshape(4, 4)}
    inner = optax.chain(optax.zero_nans(), optax.sgd(1.0))
    tx = zs.sparsify(inner, zs.sparsity.ste(0.75))
    state = tx.init(params)
    grads = {"w": jnp.zeros((4, 4)).at[0, 0].set(-9.0).at[3, 3].set(jnp.nan)}
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    assert float(params["w"][0, 0]) == 10
    assert bool(zs.sparsity.masks(state)["w"][0, 0])


def test_a_gradient_with_nan_does_not_rank_for_mest():
    method = zs.sparsity.mest(0.5, 100, gradient_weight=1.0)
    params = {"w": jnp.linspace(1, 2, 16).reshape(4, 4)}
    grads = {"w": jnp.full((4, 4), jnp.nan)}
    topology = method.init(params)
    after = method.change(topology, params, grads, jnp.int32(0))
    # Of the eight live ones, the six largest stay: 0.6 * 16 are pruned.
    assert np.all(np.asarray(after.masks["w"]).reshape(-1)[-6:])


def test_moments_of_what_gradual_pruning_prunes_begin_anew():
    params = {"w": jnp.linspace(1, 2, 64).reshape(8, 8)}
    method = zs.sparsity.gmp(0.5, 10, interval=1, start_fraction=0.3, stop_fraction=0.3)
    tx = zs.sparsify(optax.adam(1e-3), method)
    state = tx.init(params)
    for _ in range(6):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    mask = np.asarray(zs.sparsity.masks(state)["w"])
    assert mask.sum() == 32
    for moment in (state.inner[0].mu["w"], state.inner[0].nu["w"]):
        assert np.all(np.asarray(moment)[~mask] == 0)
        assert np.all(np.asarray(moment)[mask] > 0)
