"""What every method promises: its price, its value, its zeros, its state."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import (
    ALL,
    METHODS,
    Pass,
    Witness,
    estimates,
    in_batches,
    network,
    topology,
    value_fn_of,
)

import zosam_jax as zs

ZEROTH = ("zeroth_order", "zosam-zeroth-order")
# Perturbed along what they remember, which at first is nothing.
REMEMBERED = ("s2sam", "msam", "zosam-guided-every")
REMEMBER = [
    n for n in ALL if jax.tree.leaves(METHODS[n].make().init(np.zeros(1)).memory)
]
every_method = pytest.mark.parametrize("name", ALL)


def vector(tree: Any) -> np.ndarray:
    leaves = [np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


class Step(NamedTuple):
    """What one update did: parameters and masks are those before it."""

    params: Any
    masks: Any
    passes: list[Pass]
    grad: Any
    seen: zs.Estimate


def recorded(name: str, steps: int, **options: Any) -> list[Step]:
    """Sparse training, one operation after another, so that every pass is seen."""
    method = METHODS[name]
    params, losses = network()
    witness = Witness(method, losses)
    grads = []
    gradient = method.make()

    def spy(updates, state, params=None, **extra):
        found, state = gradient.update(updates, state, params, **extra)
        grads.append(found)
        return found, state

    tx = zs.sparsify(
        optax.sgd(0.05, momentum=0.9),
        # A zeroth-order gradient says nothing of pruned weights for RigL to grow by.
        topology("set_" if name in ZEROTH else "rigl"),
        gradient=optax.GradientTransformationExtraArgs(gradient.init, spy),
        **options,
    )
    found = []
    with jax.disable_jit():
        state = tx.init(params)
        params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
        for _ in range(steps):
            masks = zs.sparsity.masks(state)
            updates, state = tx.update(None, state, params, value_fn=witness)
            found.append(
                Step(params, masks, witness.take(), grads[-1], zs.estimate(state))
            )
            params = optax.apply_updates(params, updates)
    return found


@functools.cache
def trained(name: str) -> list[Step]:
    """Three steps; the masks of the last are others than those of the first."""
    return recorded(name, steps=3)


@every_method
def test_every_pass_that_is_made_is_counted_and_no_other_is_made(name):
    method = METHODS[name]
    counts = []
    for i, step in enumerate(trained(name)):
        info = step.seen.info
        forward, backward = info.forward_evaluations, info.backward_evaluations
        counts.append(float(backward))
        if method.tells_kinds:
            assert float(forward) == in_batches("forward", step.passes)
            assert float(backward) == in_batches("backward", step.passes)
        expected = method.at("forward", i)
        if name == "zosam-coordinates":  # Of live weights alone.
            expected = 2 * live_vector(step).sum() + 1
        assert float(forward) == expected
        if method.backward is not None:
            assert float(backward) == method.at("backward", i)
    if name == "aesam":
        assert set(counts) == {1, 2}


# `jax.jvp`, by which the others take exact slopes, cannot see a custom_vjp.
@pytest.mark.parametrize("name", [n for n in ALL if METHODS[n].tells_kinds])
def test_the_program_has_no_backward_pass_beside_these(name):
    method = METHODS[name]
    params, losses = network()
    backward = []
    probe = jax.custom_vjp(lambda x: x)
    probe.defvjp(lambda x: (x, None), lambda _, g: (backward.append(1) or g,))
    value_fn = value_fn_of(method, losses)
    tx = method.make()
    jax.make_jaxpr(
        lambda state: tx.update(
            None, state, params, value_fn=lambda *a, **k: probe(value_fn(*a, **k))
        )
    )(tx.init(params))
    assert len(backward) == method.traced


def leaves(step: Step) -> list[tuple[Any, Any]]:
    return list(
        zip(jax.tree.leaves(step.masks), jax.tree.leaves(step.params), strict=True)
    )


def live_vector(step: Step) -> np.ndarray:
    return np.concatenate(
        [np.broadcast_to(m, w.shape).reshape(-1) for m, w in leaves(step)]
    )


def assert_zero_off_the_mask(masks, params):
    for m, w in zip(jax.tree.leaves(masks), jax.tree.leaves(params), strict=True):
        assert m.ndim == 0 or np.all(np.asarray(w)[~np.asarray(m)] == 0)


@every_method
def test_pruned_weights_are_exactly_zero_in_every_pass(name):
    steps = trained(name)
    for step in steps:
        assert_zero_off_the_mask(step.masks, step.params)
        for seen in step.passes:
            assert_zero_off_the_mask(step.masks, seen.params)
    first, last = steps[0].masks, steps[-1].masks
    assert any(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, first, last))))


@pytest.mark.parametrize(
    "name",
    ["sam", "esam", "aesam", "looksam", "ssam-fisher", "msam", "zosam", "zosam-every"],
)
def test_so_they_are_under_accumulation_and_the_step_is_the_mean(name):
    method = METHODS[name]
    steps = recorded(name, steps=5, accumulate_steps=2)
    for step in steps:
        assert_zero_off_the_mask(step.masks, step.params)
        for seen in step.passes:
            assert_zero_off_the_mask(step.masks, seen.params)
    start = steps[0]
    # Topology: after two steps of two gradients each, not within them.
    changed = [
        any(
            np.any(a != b)
            for a, b in zip(
                jax.tree.leaves(step.masks), jax.tree.leaves(start.masks), strict=True
            )
        )
        for step in steps
    ]
    assert changed == [False] * 4 + [True]
    _, losses = network()
    value_fn = value_fn_of(method, losses)
    with jax.disable_jit():
        found = [
            e.grad
            for e in estimates(
                method, start.params, [value_fn] * 2, start.masks, steps=(0, 0)
            )
        ]
    # SGD with momentum starts with -0.05 times the masked mean; products and sums of
    # three float32 operations each.
    for m, w, moved, a, b in zip(
        *map(jax.tree.leaves, (start.masks, start.params, steps[2].params, *found)),
        strict=True,
    ):
        mean = np.where(m, (np.asarray(a, np.float64) + b) / 2, 0)
        np.testing.assert_allclose(moved, w - 0.05 * mean, rtol=1e-6, atol=1e-7)


@every_method
def test_value_is_the_loss_that_the_documentation_names(name):
    method = METHODS[name]
    _, losses = network()

    def loss(params, examples=None):
        return float(jnp.mean(losses(params, examples)))

    for i, step in enumerate(trained(name)):
        seen = step.seen
        forward = [s for s in step.passes if s.kind == "forward"]
        probes = [loss(s.params, s.examples) for s in forward]
        if name in ZEROTH:
            # Two probes at w; then two at w + eps, where there is one.
            probes, moved = probes[:2], np.mean(probes[-2:])
        else:
            moved = loss(step.passes[-1].params)
        expected = {
            "clean": loss(step.params),
            "probes": np.mean(probes) if probes else None,
            "moved": moved,
            "first": loss(step.passes[0].params),
        }[method.at("value", i)]
        # The same float32 operations, but the mean over passes.
        np.testing.assert_allclose(seen.value, expected, rtol=3e-7)
        np.testing.assert_allclose(seen.info.descent_value, moved, rtol=3e-7)


@every_method
def test_norm_and_cosine_are_those_of_the_last_pass(name):
    _, losses = network()
    for step in trained(name):
        info, last = step.seen.info, step.passes[-1]
        if name in ZEROTH:
            # w + eps lies between the last two probes, up to rounding.
            before = step.passes[-2]
            moved = (vector(before.params) + vector(last.params)) / 2
            grad, atol = vector(step.grad), 1e-6
        else:
            moved, atol = vector(last.params), 0
            grad = vector(
                jax.grad(lambda p, n=last.examples: jnp.mean(losses(p, n)))(last.params)
            )
        eps = moved - vector(step.params)
        grad = np.where(live_vector(step), grad, 0)
        length = np.linalg.norm(eps) if name != ZEROTH[0] else 0
        np.testing.assert_allclose(info.perturbation_norm, length, rtol=1e-5, atol=atol)
        cosine = eps @ grad / (length * np.linalg.norm(grad)) if length else 0
        np.testing.assert_allclose(info.cosine, cosine, rtol=1e-4, atol=1e-5)
        # A step without a second pass has looked for no perturbation.
        second = len(step.passes) > 1 or name in REMEMBERED
        assert int(info.unperturbed) == (second and length == 0) * (name != ZEROTH[0])
    assert length > 0 or name in {ZEROTH[0], "aesam"}


def finite(tree: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))


@every_method
def test_a_constant_loss_has_a_zero_gradient(name):
    method = METHODS[name]
    params, losses = network()
    flat = value_fn_of(method, lambda p, examples=None: 2.0 + 0 * losses(p, examples))
    with jax.disable_jit():
        (found,) = estimates(method, params, [flat])
    assert not np.any(vector(found.grad))
    assert float(found.value) == 2.0
    assert float(found.info.cosine) == 0
    assert finite((found.info, found.memory))


@pytest.mark.parametrize("name", REMEMBER)
def test_a_step_of_nan_leaves_the_memory_as_it_was(name):
    method = METHODS[name]
    params, losses = network()
    good = value_fn_of(method, losses)
    bad = value_fn_of(method, lambda p, examples=None: jnp.nan * losses(p, examples))
    with jax.disable_jit():
        before, spoilt, after = estimates(method, params, [good, bad, good])
        assert not finite(spoilt.grad)
        for new, old in zip(
            *map(jax.tree.leaves, (spoilt.memory, before.memory)), strict=True
        ):
            if not jnp.issubdtype(old.dtype, jnp.integer):
                np.testing.assert_array_equal(new, old)
        assert finite((after.grad, after.value, after.memory))


@pytest.mark.parametrize(
    "name", ["fsam", "vasso", "s2sam", "msam", "looksam", "ssam-fisher"]
)
def test_what_a_step_of_nan_was_to_learn_the_next_one_does(name):
    method = METHODS[name]
    params, losses = network()
    good = value_fn_of(method, losses)
    bad = value_fn_of(method, lambda p, examples=None: jnp.nan * losses(p, examples))
    with jax.disable_jit():
        *_, found = estimates(method, params, [good, good, bad, good])
        *_, expected = estimates(method, params, [good, good, good])
    jax.tree.map(np.testing.assert_array_equal, found.grad, expected.grad)


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_aesam_decides_the_same_at_any_scale_of_the_loss(scale):
    params, losses = network()
    method = METHODS["aesam"]
    factors = (1.0, 0.3, 2.0, 0.5, 1.0)

    def decisions(scale):
        loss = value_fn_of(method, losses)
        found = estimates(
            method, params, [lambda p, c=c: scale * c * loss(p) for c in factors]
        )
        return [float(e.info.backward_evaluations) for e in found]

    with jax.disable_jit():
        assert decisions(scale) == decisions(1.0)
        assert set(decisions(1.0)) == {1, 2}


def three_steps(name: str) -> Any:
    """bfloat16 parameters, their state, and a program: a scan over a `lax.cond`."""
    method = METHODS[name]
    params, losses = network(jnp.bfloat16)
    value_fn = value_fn_of(method, losses)
    tx = method.make()

    def move(params, state):
        grad, state = tx.update(None, state, params, value_fn=value_fn)
        chex.assert_trees_all_equal_shapes_and_dtypes(grad, params)
        return jax.tree.map(lambda w, g: w - jnp.bfloat16(0.1) * g, params, grad), state

    def maybe(carry, i):
        return jax.lax.cond(i != 1, move, lambda *same: same, *carry), None

    def run(params, state):
        return jax.lax.scan(maybe, (params, state), jnp.arange(3))[0]

    return params, tx.init(params), run


def types(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every_method
def test_bfloat16_stays_and_the_state_scans(name):
    """Scan and cond refuse a state that changes its structure, shapes or dtypes."""
    params, state, run = three_steps(name)
    assert types(jax.eval_shape(run, params, state)) == types((params, state))
    # A state that holds one buffer twice cannot be donated.
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))]
    assert len(set(buffers)) == len(buffers)


@pytest.mark.parametrize(
    "name", ["looksam", "ssam-fisher", "zosam-every", "zosam-guided"]
)
def test_the_step_is_traced_once_and_its_state_donated(name):
    params, state, run = three_steps(name)
    before = types((params, state))
    chex.clear_trace_counter()
    # Compiled in a hurry: nothing here is about the arithmetic.
    jitted = jax.jit(
        chex.assert_max_traces(run, n=1),
        donate_argnums=(0, 1),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    params, state = jitted(*jitted(params, state))
    assert types((params, state)) == before
    assert finite((params, zs.estimate(state).info))
    assert int(state.step) == 4


@every_method
def test_multi_steps_around_it_is_refused(name):
    params, losses = network()
    method = METHODS[name]
    tx = optax.MultiSteps(optax.chain(method.make(), optax.sgd(0.1)), 2)
    with pytest.raises(ValueError, match=r"Accumulate behind it: optax.chain\("):
        tx.update(params, tx.init(params), params, value_fn=value_fn_of(method, losses))


@pytest.mark.parametrize("name", ["fsam", "looksam", "esam", "zosam-guided", "arwp"])
def test_multi_steps_behind_it_averages_the_gradients(name):
    params, losses = network()
    method = METHODS[name]
    value_fn = value_fn_of(method, losses)
    inner = optax.MultiSteps(optax.sgd(1.0), 3).gradient_transformation()
    tx = optax.chain(method.make(), inner)
    state = tx.init(params)
    with jax.disable_jit():
        for _ in range(3):
            updates, state = tx.update(None, state, params, value_fn=value_fn)
        found = [e.grad for e in estimates(method, params, [value_fn] * 3)]
    # A running mean in float32 against the mean of three.
    jax.tree.map(
        lambda u, *g: np.testing.assert_allclose(u, -sum(g) / 3, rtol=1e-5, atol=1e-6),
        updates,
        *found,
    )
