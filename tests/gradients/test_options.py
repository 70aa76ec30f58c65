"""The options that all methods share, and what is said of wrong ones."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import ALL, METHODS, Witness, estimates, network, topology, value_fn_of
from problems import half_masks

import zosam_jax as zs
from zosam_jax import tree

# `zeroth_order` is no sharpness-aware method: it has none of these options.
SHARED = [name for name in ALL if name != "zeroth_order"]
BLIND = [
    "s2sam",
    "msam",
    "rwp",
    "arwp",
    "random_sign",
    "zosam-every",
    "zosam-guided-every",
]
every_method = pytest.mark.parametrize("name", SHARED)
# One for each ascent, descent and combination.
KINDS = ["sam-2-steps", "asam", "wsam", "fsam", "esam", "looksam", "ssam-fisher"]
KINDS += ["ssam-dynamic", "msam", "mrwp", "arwp", "zosam-3-sphere", "zosam-every"]
KINDS += ["zosam-guided", "zosam-zeroth-order"]
each_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture
def eager():
    """One operation after another, so that every pass is seen."""
    with jax.disable_jit():
        yield


def equal(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def two_steps(name, params, losses, **options):
    """`(estimate, passes)` of each of two steps."""
    witness = Witness(METHODS[name], losses)
    made = estimates(METHODS[name], params, [witness] * 2, **options)
    return [(found, witness.take()) for found in made]


@pytest.mark.parametrize("name", ["sam-layerwise", "msam", "zosam"])
def test_the_radius_follows_its_schedule(name, eager):
    params, losses = network()
    tx = METHODS[name].make(rho=optax.linear_schedule(0.4, 0.0, 2))
    state, radii = tx.init(params), []
    for _ in range(3):
        _, state = tx.update(
            None, state, params, value_fn=lambda p: jnp.mean(losses(p))
        )
        radii.append(float(zs.estimate(state).info.perturbation_norm))
    # The first step of MSAM has no momentum to follow. Else rounding of w + eps.
    expected = [0.0 if name == "msam" else 0.4, 0.2, 0.0]
    np.testing.assert_allclose(radii, expected, rtol=1e-5)


@each_kind
def test_what_is_left_out_stays_in_every_pass(name, eager):
    params, losses = network()
    masks = half_masks(params)
    params = tree.mask(params, masks)
    options = {"include": ["*BatchNorm*/*", "out/*"], "exclude": "*/bias"}
    options["masks"] = masks
    (_, first), (found, second) = two_steps(name, params, losses, **options)
    start = dict(zip(tree.paths(params), jax.tree.leaves(params), strict=True))
    moved = set()
    # A zeroth-order descent probes all live weights.
    probes = slice(-2) if name == "zosam-zeroth-order" else slice(None)
    for seen in [*first[probes], *second[probes]]:
        for path, w in zip(start, jax.tree.leaves(seen.params), strict=True):
            assert np.all(w[np.asarray(start[path]) == 0] == 0)
            if not np.array_equal(w, start[path]):
                moved.add(path)
    # SSAM leaves out more by its own mask.
    assert moved <= {"BatchNorm_0/scale", "out/kernel"}
    assert len(moved) == 2 or "ssam" in name
    if name in {"wsam", "fsam", "zosam-3-sphere", "zosam-every", "zosam-guided"}:
        np.testing.assert_allclose(found.info.perturbation_norm, 0.05, rtol=1e-5)


def test_a_pattern_without_a_leaf_names_the_nearest(eager):
    params, losses = network()
    for method, argument in (
        (zs.sam_gradient, "include"),
        (zs.sam_gradient, "exclude"),
        (zs.asam_gradient, "unscaled"),
    ):
        with pytest.raises(ValueError, match=f"{argument}='outt.* mean 'out/bias'"):
            method(lambda p: jnp.mean(losses(p)), params, **{argument: "outt/bias"})


@pytest.mark.parametrize("name", ["sam", "vasso", "zosam"])
def test_norm_over_all_takes_the_radius_of_what_is_left(name, eager):
    params, losses = network()
    masks = half_masks(params)
    params = tree.mask(params, masks)
    norms = []
    for norm_over in ("all", "mask"):
        found, _ = two_steps(name, params, losses, masks=masks, norm_over=norm_over)[0]
        norms.append(found.info.perturbation_norm)
    dense = jax.grad(lambda p: jnp.mean(losses(p)))(params)
    if name == "zosam":
        key = jax.random.fold_in(jax.random.key(0), 0)
        dense = tree.normal_like(jax.random.fold_in(key, 0), params)
    share = float(tree.norm(tree.mask(dense, masks)) / tree.norm(dense))
    assert share < 0.95
    # Rounding of w + eps.
    np.testing.assert_allclose(norms[0] / norms[1], share, rtol=1e-5)


@every_method
def test_aux_is_of_the_pass_that_is_named(name, eager):
    params, losses = network()
    method = METHODS[name]
    witness = Witness(method, losses)

    def value_fn(p, **examples):
        return witness(p, **examples), p

    looks_first = method.value in (("clean",), ("first",)) and "zosam" not in name
    default, other = ("ascent", "descent") if looks_first else ("descent", "ascent")
    for aux_from in (None, other) if name in {*KINDS, *BLIND} else (None,):
        options = {"has_aux": True, "aux_from": aux_from, "rho": 0.3}
        if aux_from == "ascent" and name in BLIND:
            with pytest.raises(ValueError, match='Say aux_from="descent"'):
                method.make(**options)
            continue
        for found in estimates(method, params, [value_fn] * 2, **options):
            passes = witness.take()
            which = 0 if (aux_from or default) == "ascent" else -1
            if name == "zosam-zeroth-order":
                which *= 2  # The first of its two probes at w + eps.
            assert equal(found.aux, passes[which].params)


@each_kind
def test_fresh_keys_are_one_for_the_looks_and_one_for_the_descent(name, eager):
    params, losses = network()
    method = METHODS[name]
    witness = Witness(method, losses)
    keys = []

    def value_fn(p, key, **examples):
        # Where only the shape of the result is asked for, the key has no value.
        if not isinstance(key, jax.core.Tracer):
            keys.append(tuple(np.asarray(jax.random.key_data(key))))
        return witness(p, **examples)

    used = set()
    for _ in estimates(method, params, [value_fn] * 2, fresh_keys=True, rho=0.3):
        passes = witness.take()
        end = passes[-2:] if name == "zosam-zeroth-order" else passes[-1:]
        for seen, key in zip(passes, keys, strict=True):
            there = any(equal(seen.params, last.params) for last in end)
            assert (key == keys[-1]) == there
        assert len(set(keys)) == min(2, len(passes))
        assert used.isdisjoint(keys)
        used |= set(keys)
        keys.clear()


@each_kind
def test_microbatches_are_the_mean_of_gradients_made_apart(name, eager):
    params, losses = network()
    method = METHODS[name]
    if name == "zosam-every":
        with pytest.raises(ValueError, match=r"every=2 .* Say every=1"):
            method.make(microbatches=2)
        return
    together = next(estimates(method, params, [losses], microbatches=2, rho=0.3))
    apart = []
    for part in range(2):
        rows = jnp.arange(4) + 4 * part

        def of_part(p, examples=None, rows=rows):
            return losses(p, rows if examples is None else rows[examples])

        tx = method.make(rho=0.3)
        key = jax.random.fold_in(jax.random.key(0), 0)
        apart.append(
            tx.gradient(
                value_fn_of(method, of_part),
                params,
                key=jax.random.fold_in(key, part) if part else key,
                step=0,
                memory=tx.init(params).memory,
            )
        )
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(e.grad for e in apart))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        together.grad,
        mean,
    )
    np.testing.assert_allclose(
        together.value, (apart[0].value + apart[1].value) / 2, rtol=1e-6
    )


@each_kind
def test_the_look_is_by_ascent_value_fn_and_the_descent_by_value_fn(name, eager):
    params, losses = network()
    method = METHODS[name]
    uphill, descent = Witness(method, losses), Witness(method, losses)
    tx = method.make(rho=0.3)
    memory = tx.init(params).memory
    for step in range(2):
        call = functools.partial(
            tx.gradient,
            descent,
            params,
            key=jax.random.key(step),
            step=step,
            memory=memory,
            ascent_value_fn=uphill,
        )
        if name in {"wsam", "esam", "looksam"}:
            with pytest.raises(ValueError, match="Leave out ascent_value_fn"):
                call()
            return
        found = call()
        memory = found.memory
        looks, moved = uphill.take(), descent.take()
        total = found.info.forward_evaluations + found.info.backward_evaluations
        assert float(total) == sum(p.share for p in [*looks, *moved])
        assert len(moved) == (2 if name == "zosam-zeroth-order" else 1)
        assert bool(looks) == (name not in BLIND or ("every" in name and step == 0))


ADVICE = 'must be known before tracing.*static_args=\\("{}"'


@pytest.mark.parametrize(
    ("method", "argument", "value", "message"),
    [
        (zs.sam, "rho", -1.0, "rho=-1.0 must be a finite number >= 0"),
        (zs.sam, "steps", 0, "steps=0 must be an integer >= 1"),
        (zs.sam, "microbatches", 1.5, "microbatches=1.5 must be an integer"),
        (zs.sam, "norm_over", "al", "norm_over='al' is unknown. Did you mean 'all'"),
        (zs.sam, "aux_from", "decent", "Did you mean 'descent'"),
        (zs.sam, "sync_ascent", True, "needs axis_name="),
        (zs.rwp, "norm_over", "all", "zs.rwp normalises nothing"),
        (zs.asam, "eta", -0.1, "eta=-0.1"),
        (zs.gsam, "alpha", float("nan"), "alpha=nan"),
        (zs.fsam, "decay", 1.0, "decay=1.0 must be a finite number >= 0 and < 1"),
        (zs.vasso, "theta", 0.0, "theta=0.0 must be a finite number > 0 and <= 1"),
        (zs.wsam, "gamma", 1.0, "gamma=1.0"),
        (zs.wsam, "max_norm", 0.0, "max_norm=0.0 must be a finite number > 0"),
        (zs.esam, "beta", 0.0, "beta=0.0"),
        (zs.esam, "gamma", 2.0, "gamma=2.0"),
        (zs.looksam, "every", 0, "every=0"),
        (zs.ssam, "mask", "fischer", "Did you mean 'fisher'"),
        (zs.ssam, "mask", "dynamic", "needs total_steps="),
        (zs.msam, "momentum", 1.0, "momentum=1.0"),
        (zs.mrwp, "alpha", 1.5, "alpha=1.5"),
        (zs.arwp, "beta", 1.0, "beta=1.0"),
        (zs.zosam, "directions", "gausian", "Did you mean 'gaussian'"),
        (zs.zosam, "descent", "zeroth", "Did you mean 'zeroth_order'"),
        (zs.zosam, "every", 0, "every=0"),
        (zs.zosam, "exploration", 1.5, "exploration=1.5"),
        (zs.zeroth_order, "distribution", "sphear", "Did you mean 'sphere'"),
    ],
)
def test_wrong_values_are_named(method, argument, value, message):
    with pytest.raises(ValueError, match=message):
        method(**{argument: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": 1}, "include=1 must be a glob pattern .* or a sequence of these"),
        ({"exclude": ("*/bias", 2)}, "exclude=.* must be a glob pattern"),
        ({"include": {"head/*": 1}}, "include=.* must be a glob pattern"),
        ({"when": 100}, r"zs.sam\(when=100\): when must be a function"),
    ],
)
def test_options_of_a_wrong_type_are_named(options, message):
    with pytest.raises(TypeError, match=message):
        zs.sam(**options)


def test_patterns_and_pairs_of_a_wrong_type_are_named_in_the_call():
    w = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="unscaled=1 must be a glob pattern"):
        zs.asam_gradient(lambda p: p["bias"].sum(), w, unscaled=1)
    with pytest.raises(TypeError, match="include=1 must be a glob pattern"):
        zs.zeroth_order_gradient(lambda p: p["bias"].sum(), w, key, include=1)
    with pytest.raises(TypeError, match="must return a pair"):
        zs.esam_gradient(lambda p, examples: p["bias"], w, key, has_aux=True)
    with pytest.raises(TypeError, match="predicate=3 must be a function"):
        zs.when(zs.sam(), 3)


@pytest.mark.parametrize(
    ("function", "argument", "meant"),
    [
        (zs.sam, "roh", "rho"),
        (zs.sam, "microbatch", "microbatches"),
        (zs.gsam, "alhpa", "alpha"),
        (zs.gsam_gradient, "alhpa", "alpha"),
        (zs.zosam_gradient, "setp", "step"),
        (zs.zo_sgd, "momentun", "momentum"),
        (zs.zo_adam, "num_direction", "num_directions"),
        (zs.sam().with_options, "aux_form", "aux_from"),
        (zs.backprop().with_options, "aux_lik", "aux_like"),
    ],
)
def test_an_unknown_option_names_the_nearest(function, argument, meant):
    message = rf"zs\..*\(\) got an unexpected.*'{argument}'. Did you mean '{meant}'"
    with pytest.raises(TypeError, match=message):
        function(**{argument: 1})


def test_what_draws_needs_a_key_and_total_steps_are_asked_for():
    params, losses = network()
    with pytest.raises(TypeError, match=r"zs.rwp draws at random: give it key="):
        zs.rwp_gradient(lambda p: jnp.mean(losses(p)), params)
    with pytest.raises(TypeError, match=r"zs.aesam: missing.*'total_steps'"):
        zs.aesam()  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match=r"shape \[n\].*returned the shape \(\)"):
        zs.sam_gradient(lambda p, examples: jnp.mean(losses(p)), params, microbatches=2)
    with pytest.raises(ValueError, match="microbatches=3 must divide the batch of 8"):
        zs.sam_gradient(losses, params, microbatches=3)
    with pytest.raises(ValueError, match=r"zs.cram compresses kernels.*has none"):
        zs.cram_gradient(jnp.sum, jnp.ones(3), jax.random.key(0))
    with pytest.raises(ValueError, match="sparsities"):
        zs.cram(sparsities=(0.5, 1.0))


@every_method
def test_numbers_are_hyperparameters_under_jit(name):
    """Every number that a method takes may be traced, but the integers that are not."""
    method = METHODS[name]
    params, losses = network()
    # What is annotated as a plain number must be known before tracing.
    constructor, own = method.make.func, method.make.keywords
    parameters = inspect.signature(constructor).parameters.values()
    given = set(own)
    static = {p.name for p in parameters if p.annotation in (int, float)} & given
    tx = optax.inject_hyperparams(constructor, static_args=static)(
        **own | {"rho": optax.linear_schedule(0.4, 0.0, 4)}
    )
    state = tx.init(params)
    value_fn = value_fn_of(method, losses)
    _, after = jax.eval_shape(
        lambda state: tx.update(None, state, params, value_fn=value_fn), state
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {"rho", "seed"} <= set(state.hyperparams)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (zs.looksam, {"alpha": 0.3, "every": 2}),
        (zs.zosam, {"directions": "guided", "exploration": 0.2}),
    ],
    ids=["looksam", "zosam"],
)
def test_injected_numbers_are_those_that_are_used(method, options):
    params, losses = network()
    schedule = optax.linear_schedule(0.4, 0.0, 4)
    results = []
    for make in (optax.inject_hyperparams(method), method):
        tx = make(rho=schedule, **options)

        step = jax.jit(
            lambda state, tx=tx: tx.update(
                None, state, params, value_fn=lambda p: jnp.mean(losses(p))
            ),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        state = tx.init(params)
        for _ in range(3):
            grad, state = step(state)
        results.append(grad)
    # Traced numbers are folded into the arithmetic in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results
    )


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (zs.sam, {"steps": 2}),
        (zs.sam, {"microbatches": 2}),
        (zs.esam, {"gamma": 0.5}),
        (zs.ssam, {"num_examples": 2}),
        (zs.zosam, {"every": 2}),
        (zs.zosam, {"num_directions": 2, "directions": "guided"}),
    ],
)
def test_what_cannot_be_traced_is_said_with_what_works(method, options):
    params, _ = network()
    (argument, *_) = options
    with pytest.raises(ValueError, match=ADVICE.format(argument)):
        optax.inject_hyperparams(method)(**options).init(params)
    optax.inject_hyperparams(method, static_args=argument)(**options).init(params)


def test_decoupled_wsam_in_sparse_training(eager):
    """w - lr (g + a (g_p - g)) on the mask; the topology follows the gradient at w."""
    params, losses = network()
    tx = zs.sparsify(
        zs.decoupled(optax.sgd(0.05, momentum=0.9), 0.02),
        topology(),
        gradient=zs.wsam(0.3, gamma=0.8, decouple=True),
    )
    state = tx.init(params)
    masks = zs.sparsity.masks(state)
    params = zs.sparsity.apply_masks(params, masks)
    loss = lambda p: jnp.mean(losses(p))  # noqa: E731
    updates, state = tx.update(None, state, params, value_fn=loss)
    clean = jax.grad(loss)(params)
    moved = zs.sam_gradient(loss, params, rho=0.3, masks=masks).grad
    expected = jax.tree.map(
        lambda m, g, p: np.where(m, -0.05 * g - 0.02 * 4 * (p - g), 0),
        masks,
        clean,
        moved,
    )
    # a = gamma / (1 - gamma) = 4 up to rounding.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        updates,
        expected,
    )
    for _ in range(2):
        params = optax.apply_updates(params, updates)
        masks = zs.sparsity.masks(state)
        assert equal(tree.mask(params, masks), params)
        updates, state = tx.update(None, state, params, value_fn=loss)
    several = zs.sparsify(
        zs.decoupled(optax.sgd(0.05), 0.02),
        zs.sparsity.rigl(0.5, 200),
        gradient=zs.wsam(0.3, decouple=True),
        accumulate_steps=2,
    )
    with pytest.raises(ValueError, match="Say decouple=False"):
        several.update(None, several.init(params), params, value_fn=loss)
