"""Corners: scalars, integers in aux, two losses, the first steps, other keys."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import METHODS, estimates, network, value_fn_of

import zosam_jax as zs
from zosam_jax import estimators, tree

KEY = jax.random.key(0)
PARAMS = {"a": jnp.asarray([1.0, -2.0, 0.5]), "b": jnp.asarray([0.3]), "s": 2.0}
PARAMS = jax.tree.map(jnp.asarray, PARAMS)


def loss(p):
    return jnp.sum(p["s"] * p["a"] ** 2) + jnp.sum(jnp.sin(p["b"]))


def test_a_scalar_parameter_can_be_left_out():
    seen = zs.sam_gradient(
        lambda p: (loss(p), p),
        PARAMS,
        rho=0.5,
        exclude="s",
        has_aux=True,
        aux_from="descent",
    )
    assert float(seen.aux["s"]) == 2.0
    assert np.all(np.asarray(seen.aux["a"]) != np.asarray(PARAMS["a"]))
    np.testing.assert_allclose(seen.info.perturbation_norm, 0.5, rtol=1e-6)


def test_what_is_not_perturbed_is_trained_without_a_backward_pass_too():
    tx = zs.zosam(descent="zeroth_order", exclude="b")
    grad = tx.gradient(loss, PARAMS, key=KEY).grad
    assert all(np.all(np.asarray(x) != 0) for x in jax.tree.leaves(grad))


@pytest.mark.parametrize(
    "tx",
    [
        zs.gsam(),
        zs.wsam(),
        zs.looksam(),
        zs.aesam(total_steps=10),
        zs.esam(gamma=0.5),
    ],
)
def test_another_loss_uphill_is_refused_where_its_gradient_would_be_kept(tx):
    with pytest.raises(ValueError, match="Leave out ascent_value_fn"):
        tx.gradient(loss, PARAMS, key=KEY, ascent_value_fn=loss)


def test_what_the_options_call_for_is_said():
    with pytest.raises(
        TypeError, match=r"zs.esam .* calls value_fn\(params, examples="
    ):
        zs.esam_gradient(loss, PARAMS, KEY)
    with pytest.raises(TypeError, match=r"key=\.\.\."):
        zs.sam_gradient(loss, PARAMS, KEY, fresh_keys=True)
    with pytest.raises(ValueError, match="needs step="):
        zs.sam_gradient(loss, PARAMS, rho=optax.linear_schedule(1.0, 0.0, 5))
    with pytest.raises(ValueError, match="leave no leaf"):
        zs.sam_gradient(loss, PARAMS, include="a", exclude="a")
    with pytest.raises(ValueError, match="must not be less than rho_min"):
        zs.tied_radius(optax.linear_schedule(0.1, 0.0, 5), 0.1, 0.5, 0.1)


def test_a_loss_that_is_no_function_is_named():
    with pytest.raises(TypeError, match="must be a function"):
        zs.sam_gradient(loss, PARAMS, ascent_value_fn=3.0)


def test_the_pure_function_of_a_transformation_needs_no_memory():
    seen = zs.vasso(theta=1.0).gradient(loss, PARAMS)
    expected = zs.sam_gradient(loss, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, seen.grad, expected.grad)


def test_a_slope_along_a_random_axis_is_not_kept():
    """At first there are no guides: what is measured belongs to their stand-ins."""
    params = jnp.ones(50)
    guides = jnp.zeros((2, 50)).at[1, 0].set(1.0)
    for count in (0, 1):
        _, slopes = estimators.guided(
            lambda w: jnp.sum(w**2), params, KEY, guides, jnp.zeros(2), count
        )
        assert float(slopes[0]) == 0
        assert (float(slopes[1]) != 0) == (count == 1)


def by_example(p, examples=None):
    x = jnp.arange(8.0) if examples is None else jnp.arange(8.0)[examples]
    return (p["a"][0] * x - 1) ** 2, {"count": jnp.asarray(x.size), "mean": x.mean()}


def test_over_microbatches_integers_are_added_and_floats_averaged():
    seen = zs.sam_gradient(by_example, PARAMS, microbatches=4, has_aux=True)
    assert (int(seen.aux["count"]), float(seen.aux["mean"])) == (8, 3.5)


def test_every_microbatch_has_keys_of_its_own():
    drawn = []

    def value_fn(p, key, examples=None):
        data = jax.random.key_data(key)
        jax.debug.callback(lambda k: drawn.append(tuple(k.tolist())), data)
        return by_example(p, examples)[0]

    zs.sam_gradient(value_fn, PARAMS, KEY, microbatches=2, fresh_keys=True)
    jax.effects_barrier()
    assert len(drawn) == len(set(drawn)) == 4


@pytest.mark.parametrize("make", [zs.zo_sgd, zs.zo_signsgd, zs.zo_adam])
def test_zeroth_order_optimizers_inside_inject_hyperparams(make):
    tx = optax.inject_hyperparams(make)(learning_rate=0.01)
    direct = make(0.01)
    states = tx.init(PARAMS), direct.init(PARAMS)
    for _ in range(2):
        (updates, first), (expected, second) = (
            jax.jit(lambda s, t=t: t.update(None, s, PARAMS, value_fn=loss))(s)
            for t, s in zip((tx, direct), states, strict=True)
        )
        states = first, second
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
            updates,
            expected,
        )
    assert "learning_rate" in states[0].hyperparams


def test_probes_every_few_steps_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="no chunk_size"):
        zs.zosam(every=2, chunk_size=1)


# One for each kind of arithmetic. ARWP is left out: its noise depends on the scale.
SCALE_FREE = ["sam-layerwise", "asam", "gsam", "gsam-gap", "fsam", "wsam", "esam"]
SCALE_FREE += ["looksam", "aesam", "ssam-fisher", "msam", "mrwp", "zosam-3-sphere"]
SCALE_FREE += ["zosam-exact", "zosam-guided", "zeroth_order"]


@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_scale_of_the_loss_scales_the_gradient_and_changes_nothing_else(name):
    params, losses = network()
    method = METHODS[name]

    def run(scale):
        fn = value_fn_of(method, lambda p, *a, **k: scale * losses(p, *a, **k))
        with jax.disable_jit():
            return list(estimates(method, params, [fn] * 2))

    plain = run(1.0)
    # Powers of two scale exactly. Squares of these losses do not fit into float32.
    for scale in (2.0**70, 2.0**-70):
        for found, expected in zip(run(scale), plain, strict=True):
            grad = jax.tree.map(lambda g, c=scale: g / c, found.grad)
            jax.tree.map(np.testing.assert_array_equal, grad, expected.grad)
            for field in ("perturbation_norm", "cosine", "unperturbed"):
                a, b = (getattr(x.info, field) for x in (found, expected))
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [zs.sam, zs.asam], ids=["sam", "asam"])
def test_derivatives_pass_through_where_a_gradient_is_zero(make):
    """The derivative with respect to the loss and to the weights, for meta-learning."""
    w = {"dead": jnp.ones(2), "live": jnp.array([3.0, -4.0])}

    def squared(c, weights):
        loss = lambda p: c * jnp.sum(p["live"] ** 4)  # noqa: E731
        return jnp.sum(make(0.5).gradient(loss, weights).grad["live"] ** 2)

    with jax.disable_jit():
        found = jax.grad(squared, (0, 1))(1.0, w)
        assert tree.all_finite(found)
        # The gradient is proportional to c.
        np.testing.assert_allclose(found[0], 2 * squared(1.0, w), rtol=1e-5)
        assert np.all(np.asarray(found[1]["live"]) != 0)
        still = jax.tree.map(jnp.zeros_like, w)
        assert tree.all_finite(jax.grad(squared, (0, 1))(1.0, still))


class Statistics:
    """A pytree class without `__eq__`, as Equinox's `State`."""

    def __init__(self, mean):
        self.mean = mean


jax.tree_util.register_pytree_node(
    Statistics, lambda s: ((s.mean,), None), lambda _, leaves: Statistics(*leaves)
)


def test_aux_may_be_of_a_class_without_equality():
    def value_fn(p):
        return loss(p), Statistics(p["a"])

    like = jax.eval_shape(value_fn, PARAMS)[1]
    tx = zs.sam(has_aux=True, aux_like=like)
    state = tx.init(PARAMS)
    _, state = tx.update(None, state, PARAMS, value_fn=value_fn)
    np.testing.assert_array_equal(zs.estimate(state).aux.mean, PARAMS["a"])
    with pytest.raises(ValueError, match=r"returned aux .*aux_like says"):
        tx.update(None, state, PARAMS, value_fn=lambda p: (loss(p), p["a"]))


def test_a_loop_without_aux_like_is_refused_with_what_works():
    def value_fn(p):
        return loss(p), p["a"]

    def steps(tx):
        def step(state, _):
            return tx.update(None, state, PARAMS, value_fn=value_fn)[1], None

        return jax.eval_shape(
            lambda s: jax.lax.scan(step, s, None, 2)[0], tx.init(PARAMS)
        )

    with pytest.raises(ValueError, match=r"zs.sam.* inside a loop .* aux_like="):
        steps(zs.sam(has_aux=True))
    like = jax.eval_shape(value_fn, PARAMS)[1]
    steps(zs.sam(has_aux=True, aux_like=like))


@pytest.mark.parametrize("rule", ["rigl", "set_"])
def test_the_momentum_of_msam_is_that_of_the_optimizer(rule):
    """Also after changes of the topology: masked, and reset where weights grew."""
    params, losses = network()
    made = zs.msam(rho=0.1, momentum=0.9)
    method = getattr(zs.sparsity, rule)(
        0.5, 6, interval=1, drop_fraction=0.5, stop_fraction=1.0
    )
    tx = zs.sparsify(optax.sgd(0.05, momentum=0.9), method, gradient=made)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(
            None, state, params, value_fn=lambda p: jnp.mean(losses(p))
        )
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    masks = start = zs.sparsity.masks(state)
    params = zs.sparsity.apply_masks(params, masks)
    for _ in range(4):
        params, state = step(params, state)
        masks = zs.sparsity.masks(state)
        trace = optax.tree.get(state.inner, "trace")
        seen = tree.mask(state.gradient.memory[0], masks)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            seen,
            trace,
        )
    assert any(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, masks, start))))
