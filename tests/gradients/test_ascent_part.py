"""An ascent step that sees a part of the batch: `ascent_fraction`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import ALL, EXAMPLES, METHODS, Witness, estimates, in_batches, network

import zosam_jax as zs

FITTING = [
    name
    for name in ALL
    if METHODS[name].make().direction_only and not METHODS[name].by_example
]
OTHERS = [name for name in ALL if name not in FITTING]
KINDS = ["sam", "asam", "fsam", "vasso", "zosam", "zosam-guided"]


@pytest.fixture
def eager():
    """One operation after another, so that equal formulas give equal bits."""
    with jax.disable_jit():
        yield


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def mean_of(losses, examples=None):
    return lambda p: jnp.mean(losses(p, examples))


def test_which_methods_fit():
    assert {"sam", "asam", "fsam", "vasso", "esam-weights", "zosam"} <= set(FITTING)
    # Their first pass serves the second too, or there is none.
    others = {"gsam", "wsam", "esam", "looksam", "aesam", "s2sam", "random_sign"}
    assert others <= set(OTHERS)


@pytest.mark.parametrize("name", FITTING)
def test_it_is_the_method_whose_ascent_has_the_loss_of_the_part(name, eager):
    """To the bit, over two steps, and its passes cost a quarter."""
    method, (params, losses) = METHODS[name], network()
    part = jnp.arange(2)
    expected = method.make(rho=0.3)
    memory = expected.init(params).memory
    options = {"rho": 0.3, "ascent_fraction": 0.25}
    for i, found in enumerate(estimates(method, params, [losses] * 2, **options)):
        seen = expected.gradient(
            mean_of(losses),
            params,
            key=jax.random.fold_in(jax.random.key(0), i),
            step=i,
            memory=memory,
            ascent_value_fn=mean_of(losses, part),
        )
        memory = seen.memory
        assert_equal((found.value, found.grad), (seen.value, seen.grad))
        assert_equal(found.memory, memory)
        info, whole = found.info, seen.info
        assert info.perturbation_norm == whole.perturbation_norm
        # Guides are past gradients: the first steps have none.
        assert info.perturbation_norm > 0 or "guided" in name
        backward = whole.backward_evaluations
        descent = min(backward, 1)
        assert info.backward_evaluations == descent + (backward - descent) / 4
        # A descent without a backward pass is of the whole batch.
        descent = 2 * (backward == 0)
        forward = whole.forward_evaluations
        assert info.forward_evaluations == descent + (forward - descent) / 4


@pytest.mark.parametrize("name", ["sam", "zosam"])
def test_the_passes_that_are_made(name, eager):
    method, (params, losses) = METHODS[name], network()
    witness = Witness(method._replace(by_example=True), losses)
    (found,) = estimates(method, params, [witness], ascent_fraction=0.5)
    passes = witness.take()
    assert in_batches("backward", passes) == found.info.backward_evaluations
    assert in_batches("forward", passes) == found.info.forward_evaluations
    assert passes[-1].examples is None
    for look in passes[:-1]:
        np.testing.assert_array_equal(look.examples, np.arange(EXAMPLES // 2))


@pytest.mark.parametrize("name", KINDS)
def test_the_whole_batch_is_the_method(name):
    """With the value function as the method alone takes it."""
    method, (params, losses) = METHODS[name], network()
    (found,) = estimates(method, params, [mean_of(losses)], ascent_fraction=1.0)
    (expected,) = estimates(method, params, [mean_of(losses)])
    assert_equal((found.value, found.grad), (expected.value, expected.grad))


def test_random_examples_are_drawn_anew_and_without_repetition(eager):
    params, losses = network()
    witness = Witness(METHODS["sam"]._replace(by_example=True), losses)
    options = {"ascent_fraction": 0.5, "ascent_examples": "random"}
    drawn = []
    for steps in (60, 6):
        for _ in estimates(METHODS["sam"], params, [witness] * steps, **options):
            look, descent = witness.take()
            assert descent.examples is None
            assert len(set(look.examples.tolist())) == EXAMPLES // 2
            drawn.append(tuple(sorted(look.examples.tolist())))
    assert drawn[:6] == drawn[60:]
    assert len(set(drawn)) > 30
    # 240 draws of 8 examples: 30 each, with a standard deviation of 3.9.
    counts = np.bincount(np.ravel(drawn[:60]), minlength=EXAMPLES)
    assert np.all(np.abs(counts - 30) < 5 * 3.9)


@pytest.mark.parametrize("examples", ["front", "random"])
@pytest.mark.parametrize(
    ("fraction", "count"), [(0.05, 1), (0.19, 2), (0.3, 2), (0.99, 8)]
)
def test_the_part_is_rounded_and_never_empty(fraction, count, examples, eager):
    """Of eight examples; the pass counts as the share that it is, not as asked for."""
    assert EXAMPLES == 8
    params, losses = network()
    seen = set()

    def value_fn(p, examples=None):
        seen.add(EXAMPLES if examples is None else examples.size)
        return losses(p, examples)

    tx = zs.sam(ascent_fraction=fraction, ascent_examples=examples)
    found = tx.gradient(value_fn, params, key=jax.random.key(0))
    assert seen == {EXAMPLES, count}
    assert found.info.backward_evaluations == 1 + count / EXAMPLES


def test_each_microbatch_looks_at_its_own_part(eager):
    params, losses = network()
    found = zs.sam_gradient(
        losses, params, rho=0.3, microbatches=2, ascent_fraction=0.5
    )
    parts = [
        zs.sam_gradient(
            mean_of(losses, jnp.arange(first, first + 4)),
            params,
            rho=0.3,
            ascent_value_fn=mean_of(losses, jnp.arange(first, first + 2)),
        ).grad
        for first in (0, 4)
    ]
    jax.tree.map(
        lambda g, *x: np.testing.assert_allclose(g, sum(x) / 2, rtol=1e-6, atol=1e-7),
        found.grad,
        *parts,
    )
    assert found.info.backward_evaluations == 1.5


def test_aux_is_of_the_whole_batch():
    params, losses = network()

    def value_fn(p, examples=None):
        found = losses(p, examples)
        return found, jnp.int32(found.size)

    found = zs.sam_gradient(value_fn, params, ascent_fraction=0.25, has_aux=True)
    assert found.aux == EXAMPLES


def test_inside_sparsify_under_jit_and_scan():
    """Growth sees the gradient of the whole batch; steps are those of a Python loop."""
    params, losses = network()
    method = zs.sparsity.rigl(0.5, 4, interval=2, stop_fraction=1.0)
    gradient = zs.zosam(0.1, ascent_fraction=0.25, ascent_examples="random")
    tx = zs.sparsify(optax.sgd(0.1), method, gradient=gradient)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=losses)
        return (optax.apply_updates(params, updates), state), zs.estimate(state).value

    state = tx.init(params)
    start = zs.sparsity.apply_masks(params, zs.sparsity.masks(state)), state
    (looped, _), values = jax.jit(lambda c: jax.lax.scan(step, c, length=4))(start)
    carry, expected = start, []
    for _ in range(4):
        carry, value = jax.jit(step)(carry, None)
        expected.append(value)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), carry[0], looped
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in OTHERS if n != "zeroth_order"])
def test_other_methods_refuse(name):
    with pytest.raises(ValueError, match=r"ascent_fraction=0.5\) needs a method whose"):
        METHODS[name].make(ascent_fraction=0.5)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"ascent_fraction": 0.0}, "ascent_fraction=0.0 must be"),
        ({"ascent_fraction": 1.5}, "ascent_fraction=1.5 must be"),
        ({"ascent_fraction": jnp.float32(0.5)}, "known before tracing"),
        ({"ascent_examples": "back"}, "ascent_examples='back'"),
        ({"ascent_fraction": 0.5, "aux_from": "ascent"}, 'Say aux_from="descent"'),
    ],
)
def test_what_does_not_go_is_said(options, part):
    with pytest.raises(ValueError, match=part):
        zs.sam(**options)


def test_a_value_function_of_the_whole_batch_alone_is_refused():
    params, losses = network()
    with pytest.raises(
        TypeError, match=r"sam with ascent_fraction=0.5 calls .*examples"
    ):
        zs.sam_gradient(mean_of(losses), params, ascent_fraction=0.5)


@pytest.mark.parametrize("options", [{"ascent_fraction": 0.25}, {"microbatches": 4}])
def test_a_value_function_that_ignores_the_examples_is_refused(options):
    params, losses = network()
    with pytest.raises(ValueError, match="returned 8 losses for 2 examples"):
        zs.sam_gradient(lambda p, examples=None: losses(p), params, **options)


def test_inside_inject_hyperparams_it_is_static():
    params, losses = network()
    static = ("ascent_fraction",)
    tx = optax.inject_hyperparams(zs.sam, static)(rho=0.1, ascent_fraction=0.5)
    updates, _ = tx.update(None, tx.init(params), params, value_fn=losses)
    expected = zs.sam_gradient(losses, params, rho=0.1, ascent_fraction=0.5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected.grad
    )


def test_slopes_of_disjoint_parts_are_of_their_parts(eager):
    """Of a linear loss: each axis gets the slope of its own half of the examples."""
    c = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    made = zs.zosam(0.5, directions="guided", disjoint=True, has_aux=True)

    def losses(params, examples=None):
        rows = c if examples is None else c[np.asarray(examples)]
        return jnp.asarray(rows) @ params["w"], params["w"]

    params, key = {"w": jnp.zeros(4)}, jax.random.key(0)
    _, combination = made.gradient(losses, params, key).memory
    guides = {"w": jnp.eye(4)[:2]}
    memory = (guides, jnp.zeros(2), jnp.zeros((), jnp.int32)), combination
    found = made.gradient(losses, params, key, memory=memory)
    direction = np.array([c[:32, 0].mean(), c[32:, 1].mean(), 0, 0])
    expected = 0.5 * direction / np.linalg.norm(direction)
    np.testing.assert_allclose(found.aux, expected, atol=1e-5)
    assert found.info.forward_evaluations == 2


def test_disjoint_parts_that_do_not_fit_are_refused():
    params, losses = network()
    guided = functools.partial(zs.zosam, directions="guided", disjoint=True)
    for options in ({"directions": "gaussian"}, {"num_directions": 2}):
        with pytest.raises(ValueError, match="slopes along all guides"):
            guided(**options)
    with pytest.raises(ValueError, match="of a part of the batch"):
        guided(aux_from="ascent")
    with pytest.raises(ValueError, match="does not fit"):
        guided(ascent_fraction=0.5)
    tx = guided(guides=(0.1, 0.5, 0.9))
    memory = tx.init(params).memory
    with pytest.raises(ValueError, match="guides, 3, must divide the batch of 8"):
        tx.gradient(losses, params, jax.random.key(0), memory=memory)
