"""Where one method becomes another: bit for bit, or up to rounding that is named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import ALL, METHODS, estimates, network, row, value_fn_of
from problems import Quadratic, flat, half_masks, mlp

import zosam_jax as zs
from zosam_jax import estimators, tree

KEY = jax.random.key(3)

# Each is the other with these options, in every step and to the last bit: what is added
# is a product with zero, what is multiplied is a one.
SAME = {
    "gsam, alpha 0": (row(zs.gsam, alpha=0.0), "sam"),
    "looksam, every step": (row(zs.looksam, every=1), "sam"),
    "looksam, every step, layerwise": (
        row(zs.looksam, every=1, layerwise=True),
        "sam-layerwise",
    ),
    "fsam, sigma 0": (row(zs.fsam, sigma=0.0), "sam"),
    "sampa, at w alone": (row(zs.sampa, learning_rate=0.0, weight=1.0), "plain"),
    "vasso, theta 1": (row(zs.vasso, theta=1.0), "sam"),
    "wsam, gamma 1/2": (row(zs.wsam, gamma=0.5), "sam"),
    "esam, beta and gamma 1": (row(zs.esam, beta=1.0, gamma=1.0), "sam"),
    "ssam-fisher, sparsity 0": (row(zs.ssam, sparsity=0.0, by_example=True), "sam"),
    "ssam-dynamic, sparsity 0": (
        row(zs.ssam, sparsity=0.0, mask="dynamic", total_steps=9),
        "sam",
    ),
    "aesam, threshold low": (
        row(zs.aesam, total_steps=9, lambda_1=-1e9, lambda_2=-1e9),
        "sam",
    ),
    "aesam, threshold high": (
        row(zs.aesam, total_steps=9, lambda_1=1e9, lambda_2=1e9),
        "plain",
    ),
    "cram, no compression": (
        row(zs.cram, plus=False, sparsities=(0.0,), rho=0.0),
        "plain",
    ),
    "wsam, gamma 0": (row(zs.wsam, gamma=0.0), "plain"),
    "arwp, eta 0": (row(zs.arwp, eta=0.0), "rwp"),
    "mrwp, alpha 1": (row(zs.mrwp, alpha=1.0), "rwp"),
    "mrwp, alpha 0": (row(zs.mrwp, alpha=0.0), "plain"),
}
PLAIN = row(zs.backprop)


def gradients(method, masks=None, **options):
    """Two steps with different losses, one operation after another."""
    params, losses = network()
    params = tree.mask(params, masks)
    value_fns = [
        value_fn_of(
            method, lambda p, n=None, k=k: losses(p, n) * (1 + losses(p, n)) ** k
        )
        for k in range(2)
    ]
    if method.by_example:
        value_fns = [lambda p, examples, f=f: f(p, examples) for f in value_fns]
    with jax.disable_jit():
        return [e.grad for e in estimates(method, params, value_fns, masks, **options)]


@functools.cache
def reference(name):
    return gradients(PLAIN if name == "plain" else METHODS[name])


@pytest.mark.parametrize("name", SAME)
def test_one_method_is_the_other_bit_for_bit(name):
    method, other = SAME[name]
    rho = {"rho": 0.05} if "rwp" in name else {}
    expected = reference(other)
    if other == "rwp":
        expected = gradients(METHODS["rwp"], **rho)
    found = gradients(method, **rho)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# Sums of three terms that cancel all but rounding: a few units in the last place of
# the largest entry, times the 17 of `-8 g + 9 g` in WSAM.
CANCEL = {"gsam": 1e-6, "gsam-gap": 1e-6, "wsam": 4e-6}
# Descends on half of the examples or of the weights, elsewhere too, or estimates: no
# plain gradient at any radius.
OTHERWISE = {"esam", "cram", "cram-alone", "sampa", "zosam-zeroth-order"}
OTHERWISE |= {"zeroth_order"}


@pytest.mark.parametrize("name", [n for n in ALL if n not in OTHERWISE])
def test_radius_zero_is_the_plain_gradient(name):
    for found, expected in zip(
        gradients(METHODS[name], rho=0.0), reference("plain"), strict=True
    ):
        scale = float(tree.norm(expected))
        jax.tree.map(
            functools.partial(
                np.testing.assert_allclose, rtol=0, atol=CANCEL.get(name, 0) * scale
            ),
            found,
            expected,
        )


def test_looksam_takes_rounding_for_no_direction():
    """A leaf with one weight has no part orthogonal to its gradient."""

    def loss(p):
        return jnp.sum((p["many"] - 0.3) ** 4) + (p["one"][0] + 0.7) ** 4

    params = {"many": jnp.asarray([0.1, -0.4, 0.9]), "one": jnp.asarray([0.11])}
    method = row(zs.looksam, every=2, layerwise=True, rho=0.3)
    _, between = jax.jit(lambda p: list(estimates(method, p, [loss, loss])))(params)
    expected = jax.jit(jax.grad(loss))(params)
    np.testing.assert_array_equal(between.grad["one"], expected["one"])
    assert np.all(between.grad["many"] != expected["many"])


def test_radius_zero_is_the_optimizer_alone_under_jit():
    params, loss = mlp()
    base = optax.sgd(0.1, momentum=0.9)

    def trained(tx, incoming):
        def step(_, carry):
            params, state = carry
            updates, state = tx.update(incoming(params), state, params, value_fn=loss)
            return optax.apply_updates(params, updates), state

        return jax.jit(lambda p: jax.lax.fori_loop(0, 20, step, (p, tx.init(p))))(
            params
        )

    found, _ = trained(optax.chain(zs.sam(rho=0.0), base), lambda p: None)
    plain = optax.with_extra_args_support(base)
    expected, _ = trained(plain, jax.grad(loss))
    # The same operations in two programs: XLA may contract them differently.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


@pytest.mark.parametrize(
    ("jitted", "options"),
    [
        (True, {}),
        (False, {"masks": True}),
        (False, {"num_directions": 3, "masks": True, "norm_over": "all"}),
        (False, {"num_directions": 2, "two_sided": False, "aux_from": "ascent"}),
        (True, {"num_directions": 4, "chunk_size": 2, "rho": 0.3, "delta": 0.01}),
    ],
)
def test_zosam_in_general_is_its_page_bit_for_bit(jitted, options):
    params, losses = network()
    options = dict(options)
    masks = half_masks(params) if options.pop("masks", False) else None
    params = tree.mask(params, masks)

    def value_fn(p):
        return jnp.mean(losses(p)), p["out"]["kernel"]

    def page(params):
        return zs.zosam_gradient(
            value_fn, params, KEY, masks=masks, has_aux=True, **options
        )

    # Leaves named in full are all leaves, and the page does not choose any.
    composed = zs.zosam(has_aux=True, include="*", **options)

    def general(params):
        return composed.gradient(value_fn, params, KEY, masks=masks)

    with jax.disable_jit(not jitted):
        a, b = jax.jit(page)(params), jax.jit(general)(params)
    jax.tree.map(
        np.testing.assert_array_equal,
        (a.value, a.grad, a.aux, a.info),
        (b.value, b.grad, b.aux, b.info),
    )


def on_quadratic(masks=None, **options):
    problem = Quadratic()
    params = tree.mask(problem.params, masks)
    tx = options.pop("method", zs.zosam)(rho=0.2, **options)

    @jax.jit
    def gradient(params):
        memory = tx.init(params).memory
        return tx.gradient(problem.loss, params, key=KEY, masks=masks, memory=memory)

    found = gradient(params)
    return flat(found.grad), found


@pytest.mark.parametrize(("masked", "two_sided"), [(True, True), (False, False)])
def test_coordinates_are_sam(masked, two_sided):
    """On a quadratic a central difference is the derivative, whatever its step."""
    masks = half_masks(Quadratic().params) if masked else None
    expected, _ = on_quadratic(masks, method=zs.sam)
    # One-sided, it is off by delta/2 times the curvature, about one.
    delta, tolerance = (0.1, 1e-5) if two_sided else (1e-3, 2e-3)
    found, _ = on_quadratic(
        masks, directions="coordinates", delta=delta, two_sided=two_sided
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("directions", "num_directions"),
    [("gaussian", 1), ("sphere", 3)],
)
def test_the_exact_derivative_is_the_limit_of_differences(directions, num_directions):
    options = {"directions": directions, "num_directions": num_directions}
    expected, exact = on_quadratic(delta=None, **options)
    found, small = on_quadratic(delta=0.1, **options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        small.info.direction_norm, exact.info.direction_norm, rtol=1e-5
    )


def test_sam_agrees_with_optax_over_a_hundred_steps():
    params, loss = mlp()
    rho, steps = 0.1, 100
    ours = optax.chain(zs.sam(rho), optax.sgd(0.1, momentum=0.9))
    theirs = optax.contrib.sam(
        optax.sgd(0.1, momentum=0.9),
        optax.chain(optax.contrib.normalize(), optax.sgd(rho)),
        sync_period=2,
        opaque_mode=True,
    )

    def train(update):
        def step(carry, _):
            params, state = carry
            updates, state = update(params, state)
            return (optax.apply_updates(params, updates), state), loss(params)

        def run(params, state):
            return jax.lax.scan(step, (params, state), None, steps)

        return jax.jit(run)

    (ours_end, _), ours_losses = train(
        lambda p, s: ours.update(None, s, p, value_fn=loss)
    )(params, ours.init(params))
    (theirs_end, _), theirs_losses = train(
        lambda p, s: theirs.update(
            jax.grad(loss)(p), s, p, grad_fn=lambda q, _: jax.grad(loss)(q)
        )
    )(params, theirs.init(params))
    np.testing.assert_allclose(ours_losses, theirs_losses, rtol=2e-5)
    assert float(ours_losses[-1]) < float(ours_losses[0]) / 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        ours_end,
        theirs_end,
    )


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "rademacher"])
def test_the_cosine_of_random_directions_follows_its_law(distribution):
    """cos = sqrt(m / (m + d)), up to 1/d; on the mask, over the live weights."""
    size, live, m = 600, 400, 25
    g = jax.random.normal(jax.random.key(1), (size,))
    masks = jnp.arange(size) < live

    def cosine(key):
        found, _ = estimators.rge(
            lambda w: g @ w,
            jnp.zeros(size),
            key,
            num_directions=m,
            distribution=distribution,
            masks=masks,
        )
        return tree.cosine(found.grad, tree.mask(g, masks))

    cosines = jax.jit(jax.vmap(cosine))(jax.random.split(KEY, 100))
    # The standard deviation of one is about 1 / sqrt(2 (m + d)): 1.4 % of the mean of
    # a hundred; four times that.
    np.testing.assert_allclose(jnp.mean(cosines), (m / (m + live)) ** 0.5, rtol=0.06)


def test_guided_directions_see_what_random_ones_do_not():
    """Least squares in 20,000 weights, batches of 16 of 256 examples, small steps.

    The full gradient turns slowly, as in training; a batch sees a quarter of it. One
    direction a step each: two forward passes.
    """
    size, examples, batch = 20_000, 256, 16

    def cosines(seed, **options):
        keys = jax.random.split(jax.random.key(seed), 4)
        x = jax.random.normal(keys[0], (examples, size)) / size**0.5
        y = x @ jax.random.normal(keys[1], (size,))
        y = y + 0.5 * jax.random.normal(keys[2], (examples,))
        tx = zs.zosam(has_aux=True, aux_like=jnp.zeros(size), **options)

        def step(carry, i):
            w, state = carry
            key = jax.random.fold_in(keys[3], i)
            rows = jax.random.choice(key, examples, (batch,), replace=False)

            def loss(w):
                return jnp.mean((x[rows] @ w - y[rows]) ** 2) / 2

            grad, state = tx.update(None, state, w, value_fn=lambda w: (loss(w), w))
            full = x.T @ (x @ w - y)
            eps = zs.estimate(state).aux - w
            found = tree.cosine(eps, full), tree.cosine(jax.grad(loss)(w), full)
            return (w - 0.5 * grad, state), found

        w = jnp.zeros(size)
        return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(30))[1]

    run = {
        directions: jax.jit(functools.partial(cosines, directions=directions))
        for directions in ("guided", "gaussian")
    }
    for seed in range(3):
        guided, exact = (np.mean(x[15:]) for x in run["guided"](seed))
        gaussian = np.sqrt(np.mean(run["gaussian"](seed)[0] ** 2))
        # 68 to 87 times here; random directions scatter, so a margin.
        assert guided > 50 * gaussian
        assert guided > exact / 2
        assert 0.1 < exact < 0.4
