"""ZO-SAM against its closed form on a quadratic, and its promises on any loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import Quadratic, flat, half_masks, mlp

import zosam_jax as zs
from zosam_jax import estimators, tree

KEY = jax.random.key(3)


def first_direction(params, masks=None):
    """u_0, as the documentation says it is drawn."""
    u = tree.normal_like(jax.random.fold_in(KEY, 0), params)
    return flat(tree.mask(u, masks))


@pytest.mark.quick
@pytest.mark.parametrize("delta", [1e-1, 1e-2])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("two_sided", [True, False])
def test_one_direction_is_a_signed_step_along_it(delta, scale, two_sided):
    problem = Quadratic(scale=scale)
    rho = 0.3
    estimate = zs.zosam_gradient(
        problem.loss, problem.params, KEY, rho, delta=delta, two_sided=two_sided
    )
    u = first_direction(problem.params)
    sign = np.sign(u @ problem.gradient(problem.params))
    epsilon = sign * rho * u / np.linalg.norm(u)
    expected = problem.gradient(problem.params) + scale * problem.a @ epsilon
    np.testing.assert_allclose(flat(estimate.grad), expected, rtol=1e-4)
    np.testing.assert_allclose(estimate.info.perturbation_norm, rho, rtol=1e-5)
    norm = np.abs(u @ problem.gradient(problem.params)) * np.linalg.norm(u)
    tolerance = 1e-3 if two_sided else max(1e-3, 50 * delta)
    np.testing.assert_allclose(estimate.info.direction_norm, norm, rtol=tolerance)
    moved = flat(problem.params) + epsilon
    expected = scale * (moved @ problem.a @ moved / 2 + problem.b @ moved)
    np.testing.assert_allclose(
        estimate.info.descent_value, expected, rtol=1e-4, atol=1e-5 * scale
    )


@pytest.mark.parametrize("num_directions", [2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_several_directions_follow_the_mean_estimate(num_directions, masked):
    problem = Quadratic()
    masks = half_masks(problem.params) if masked else None
    params = tree.mask(problem.params, masks)
    rho = 0.2
    estimate = zs.zosam_gradient(
        problem.loss,
        params,
        KEY,
        rho,
        delta=0.01,
        num_directions=num_directions,
        masks=masks,
    )
    total = np.zeros(12)
    for i in range(num_directions):
        u = tree.normal_like(jax.random.fold_in(KEY, i), params)
        u = flat(tree.mask(u, masks))
        # On a quadratic the central difference is the derivative, whatever delta.
        total += (u @ problem.gradient(params)) * u
    epsilon = rho * total / np.linalg.norm(total)
    expected = problem.gradient(params) + problem.a @ epsilon
    np.testing.assert_allclose(flat(estimate.grad), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("num_directions", [1, 3])
def test_norm_over_all_shrinks_the_radius_to_the_live_share(num_directions):
    problem = Quadratic()
    masks = half_masks(problem.params)
    params = tree.mask(problem.params, masks)
    estimate = zs.zosam_gradient(
        problem.loss,
        params,
        KEY,
        0.2,
        delta=0.01,
        num_directions=num_directions,
        masks=masks,
        norm_over="all",
    )
    live, dense = np.zeros(12), np.zeros(12)
    for i in range(num_directions):
        u = tree.normal_like(jax.random.fold_in(KEY, i), params)
        masked = flat(tree.mask(u, masks))
        slope = masked @ problem.gradient(params)
        live, dense = live + slope * masked, dense + slope * flat(u)
    share = np.linalg.norm(live) / np.linalg.norm(dense)
    assert share < 0.999
    np.testing.assert_allclose(estimate.info.perturbation_norm, 0.2 * share, rtol=1e-3)


def test_rho_zero_is_the_plain_gradient_bit_for_bit():
    params, loss = mlp()
    plain = jax.jit(jax.grad(loss))(params)
    estimate = jax.jit(lambda p: zs.zosam_gradient(loss, p, KEY, rho=0.0))(params)
    jax.tree.map(np.testing.assert_array_equal, estimate.grad, plain)


def test_pruned_weights_are_zero_in_every_pass():
    params, loss = mlp()
    masks = half_masks(params)
    params = tree.mask(params, masks)
    seen = []

    def recording(p):
        jax.debug.callback(lambda x: seen.append(x), p)
        return loss(p)

    zs.zosam_gradient(recording, params, KEY, 0.5, num_directions=3, masks=masks)
    jax.effects_barrier()
    assert len(seen) == 7
    for passed in seen:
        for m, w, start in zip(
            *map(jax.tree.leaves, (masks, passed, params)), strict=True
        ):
            if m.ndim:
                assert np.all(w[~m] == 0)
            # Every live weight moves, or the pass would not be a probe of it.
            assert np.all((w != start)[np.broadcast_to(m, w.shape)])


@pytest.mark.parametrize("num_directions", [1, 4])
@pytest.mark.parametrize("two_sided", [True, False])
def test_vmapped_chunks_change_nothing_but_rounding(num_directions, two_sided):
    params, loss = mlp()

    def gradient(chunk_size):
        return zs.zosam_gradient(
            loss,
            params,
            KEY,
            0.1,
            delta=0.01,
            num_directions=num_directions,
            two_sided=two_sided,
            chunk_size=chunk_size,
        )

    sequential = gradient(None)
    for chunk_size in {1, num_directions // 2 or 1, num_directions}:
        chunked = gradient(chunk_size)
        np.testing.assert_allclose(chunked.value, sequential.value, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            chunked.grad,
            sequential.grad,
        )


@pytest.mark.parametrize(("two_sided", "expected"), [(True, 2 * 3), (False, 3 + 1)])
def test_info_counts_the_evaluations(two_sided, expected):
    params, loss = mlp()
    info = zs.zosam_gradient(
        loss, params, KEY, num_directions=3, two_sided=two_sided
    ).info
    assert int(info.forward_evaluations) == expected
    assert int(info.backward_evaluations) == 1


def counting_loss(loss):
    """The loss, and a list that grows whenever its backward rule is traced."""
    backward = []

    @jax.custom_vjp
    def probe(x):
        return x

    def forward_rule(x):
        return x, None

    def backward_rule(_, cotangent):
        backward.append(1)
        return (cotangent,)

    probe.defvjp(forward_rule, backward_rule)
    return lambda p: probe(loss(p)), backward


@pytest.mark.parametrize("incoming", ["none", "zeros", "unused gradient"])
def test_the_compiled_step_has_one_backward_pass(incoming):
    params, loss = mlp()
    counted, backward = counting_loss(loss)
    tx = optax.chain(zs.zosam(0.05), optax.sgd(0.1))
    state = tx.init(params)

    def step(params, state):
        updates = {
            "none": lambda: None,
            "zeros": lambda: jax.tree.map(jnp.zeros_like, params),
            # Traced, but nothing of it may reach the compiled program.
            "unused gradient": lambda: jax.grad(loss)(params),
        }[incoming]()
        updates, state = tx.update(updates, state, params, value_fn=counted)
        return optax.apply_updates(params, updates), state

    jax.jit(step).lower(params, state).compile()
    assert len(backward) == 1


def large_mlp():
    """A loss whose matrix products dwarf all else, for counting FLOPs."""
    x = jnp.ones((512, 64))
    params = [jnp.full((64, 64), 0.01) for _ in range(4)]

    def loss(p):
        h = x
        for w in p:
            h = jnp.tanh(h @ w)
        return jnp.mean(h**2)

    return params, loss


@pytest.mark.parametrize("incoming", ["none", "unused gradient"])
def test_flops_are_one_gradient_and_two_losses(incoming):
    params, loss = large_mlp()
    tx = zs.zosam(0.05)

    def step(params):
        updates = None if incoming == "none" else jax.grad(loss)(params)
        return tx.update(updates, tx.init(params), params, value_fn=loss)[0]

    def flops(f):
        return jax.jit(f).lower(params).compile().cost_analysis()["flops"]

    expected = flops(jax.grad(loss)) + 2 * flops(loss)
    # A second backward pass would add 30 % or more.
    assert flops(step) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("bad", [0.0, jnp.nan, jnp.inf])
def test_a_useless_direction_gives_the_plain_gradient(bad):
    params, loss = mlp()

    def flat_around(p):
        """The loss at params themselves; a constant anywhere else."""
        here = jnp.all(p["hidden"]["kernel"] == params["hidden"]["kernel"])
        return jnp.where(here, loss(p), bad)

    estimate = zs.zosam_gradient(flat_around, params, KEY, 0.05)
    assert int(estimate.info.unperturbed) == 1
    assert float(estimate.info.perturbation_norm) == 0
    # The probes say nothing of the loss here; the descent pass does.
    assert float(estimate.value) == pytest.approx(float(loss(params)), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        estimate.grad,
        jax.grad(loss)(params),
    )


@pytest.mark.quick
def test_zero_gradient_is_not_nan():
    params = {"w": jnp.zeros((3, 2))}
    estimate = zs.zosam_gradient(lambda p: 0 * jnp.sum(p["w"]), params, KEY)
    np.testing.assert_array_equal(estimate.grad["w"], np.zeros((3, 2)))
    assert int(estimate.info.unperturbed) == 1


def test_bfloat16_parameters_keep_their_dtype():
    params, loss = mlp(dtype=jnp.bfloat16)
    estimate = zs.zosam_gradient(loss, params, KEY, rho=0.5, delta=0.05)
    assert {x.dtype for x in jax.tree.leaves(estimate.grad)} == {jnp.dtype("bfloat16")}
    assert estimate.value.dtype == jnp.float32
    assert int(estimate.info.unperturbed) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_reported_norm_is_that_of_the_perturbation_that_was_made(dtype):
    """Bfloat16 rounds much of a small perturbation away; info must not claim it."""
    params = {"w": jnp.ones(1000, dtype)}
    aux = zs.zosam_gradient(
        lambda p: (jnp.sum(p["w"].astype(jnp.float32) ** 2), p["w"]),
        params,
        KEY,
        rho=0.02,
        delta=0.05,
        has_aux=True,
    )
    moved = np.asarray(aux.aux, np.float64) - 1
    made = np.linalg.norm(moved)
    np.testing.assert_allclose(aux.info.perturbation_norm, made, rtol=1e-5)
    if dtype == jnp.bfloat16:
        assert made < 0.015
    else:
        np.testing.assert_allclose(made, 0.02, rtol=1e-4)


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_probe_aux_is_of_the_first_probe_or_the_clean_pass(two_sided, chunk_size):
    params, loss = mlp()
    estimate = zs.zosam_gradient(
        lambda p: (loss(p), p["out"]["kernel"]),
        params,
        KEY,
        0.3,
        delta=0.01,
        num_directions=2,
        has_aux=True,
        aux_from="ascent",
        two_sided=two_sided,
        chunk_size=chunk_size,
    )
    u = tree.normal_like(jax.random.fold_in(KEY, 0), params)["out"]["kernel"]
    step = 0.01 * u if two_sided else 0.0
    np.testing.assert_allclose(
        estimate.aux, params["out"]["kernel"] + step, rtol=1e-5, atol=1e-6
    )


def test_aux_comes_from_the_pass_that_is_named():
    params, loss = mlp()
    positions = {}
    for aux_from in ("descent", "ascent"):
        estimate = zs.zosam_gradient(
            lambda p: (loss(p), p["out"]["kernel"]),
            params,
            KEY,
            0.3,
            delta=0.01,
            has_aux=True,
            aux_from=aux_from,
        )
        positions[aux_from] = estimate.aux
    u = tree.normal_like(jax.random.fold_in(KEY, 0), params)
    start, direction = params["out"]["kernel"], u["out"]["kernel"]
    np.testing.assert_allclose(
        positions["ascent"], start + 0.01 * direction, rtol=1e-5, atol=1e-6
    )
    moved = np.abs(positions["descent"] - start)
    length = tree.norm(u)
    np.testing.assert_allclose(
        moved, 0.3 * np.abs(direction) / length, rtol=1e-3, atol=1e-6
    )


def test_value_is_the_mean_of_the_probes_or_the_clean_loss():
    problem = Quadratic()
    clean = float(problem.loss(problem.params))
    delta = 0.1
    for m in (1, 3):
        curvature = 0.0
        for i in range(m):
            u = flat(tree.normal_like(jax.random.fold_in(KEY, i), problem.params))
            curvature += delta**2 / 2 * u @ problem.a @ u / m
        two = zs.zosam_gradient(
            problem.loss, problem.params, KEY, 0.05, delta=delta, num_directions=m
        )
        np.testing.assert_allclose(two.value, clean + curvature, rtol=1e-5)
        one = zs.zosam_gradient(
            problem.loss,
            problem.params,
            KEY,
            0.05,
            delta=delta,
            num_directions=m,
            two_sided=False,
        )
        assert float(one.value) == clean


@pytest.mark.quick
def test_the_page_equals_the_general_composition():
    """`zosam_gradient` is rge, then normalisation, then the gradient: nothing else."""
    params, loss = mlp()
    masks = half_masks(params)
    params = tree.mask(params, masks)
    page = zs.zosam_gradient(
        loss, params, KEY, 0.1, delta=0.01, num_directions=3, masks=masks
    )
    ascent, _ = estimators.rge(
        loss, params, KEY, delta=0.01, num_directions=3, masks=masks
    )
    unit, _ = tree.normalize(ascent.grad)
    composed = estimators.backprop(loss, tree.add_scaled(params, 0.1, unit))
    jax.tree.map(np.testing.assert_array_equal, page.grad, composed.grad)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("rho", -0.1, "rho=-0.1 must be a finite number >= 0"),
        ("rho", float("nan"), "rho=nan"),
        ("delta", 0.0, "delta=0.0 must be a finite number > 0"),
        ("num_directions", 0, "num_directions=0"),
        ("num_directions", 1.5, "num_directions=1.5 must be an integer"),
        ("num_directions", True, "num_directions=True must be an integer"),
        ("rho", "0.05", "rho='0.05' must be a finite number"),
        ("chunk_size", 0, "chunk_size=0 must be an integer"),
        ("chunk_size", 2, "chunk_size=2 must divide num_directions=1"),
        ("aux_from", "decent", "Did you mean 'descent'"),
        ("norm_over", "masks", "Did you mean 'mask'"),
    ],
)
def test_arguments_out_of_range_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        zs.zosam(**{argument: value})
    params, loss = mlp()
    with pytest.raises(ValueError, match=message):
        zs.zosam_gradient(loss, params, KEY, **{argument: value})


def test_value_fn_must_be_a_scalar_function_of_its_form():
    params, loss = mlp()
    with pytest.raises(ValueError, match=r"scalar loss; its shape is \(2,\)"):
        zs.zosam_gradient(lambda p: p["out"]["bias"], params, KEY)
    with pytest.raises(TypeError, match="say has_aux=True"):
        zs.zosam_gradient(lambda p: (loss(p), 1), params, KEY)
    with pytest.raises(TypeError, match="must return a pair"):
        zs.zosam_gradient(loss, params, KEY, has_aux=True)
    with pytest.raises(TypeError, match="key=0 must be a PRNG key"):
        zs.zosam_gradient(loss, params, 0)
    with pytest.raises(TypeError, match="must be a function"):
        zs.zosam_gradient(1.0, params, KEY)
    with pytest.raises(TypeError, match="returned a NoneType"):
        zs.zosam_gradient(lambda p: None, params, KEY)
