"""The wrapper: what it passes on, what it resets, what it refuses."""

import functools
import itertools
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import mlp

import zosam_jax as zs
from zosam_jax import tree


def training(tx, params, value_fn, steps):
    """States after each of `steps` jitted steps, beginning with the start."""
    state = tx.init(params)
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    history = [(params, state)]
    for _ in range(steps):
        params, state = step(params, state)
        history.append((params, state))
    return history


def test_masks_reach_the_perturbation_and_the_dense_gradient_the_grow_rule():
    params, loss = mlp()
    rule = zs.sparsity.rigl(0.6, 100, interval=2, drop_fraction=0.5, seed=1)
    tx = zs.sparsify(optax.sgd(0.1), rule, gradient=zs.zosam(0.3, seed=9))
    history = training(tx, params, loss, 5)
    changes = 0
    gradient = jax.jit(
        lambda params, key, masks: zs.zosam_gradient(
            loss, params, key, 0.3, masks=masks
        )
    )
    for i, ((params, state), (after, new)) in enumerate(itertools.pairwise(history)):
        key = jax.random.fold_in(jax.random.key(9), i)
        masks = zs.sparsity.masks(state)
        pure = gradient(params, key, masks)
        if i in (2, 4):
            # Grown by the gradient at pruned weights, which a masked one would hide.
            topology = zs.sparsity.Topology(masks, state.memory)
            topology = rule.change(topology, params, pure.grad, jnp.int32(i))
            masks = topology.masks
            changes += 1
        jax.tree.map(np.testing.assert_array_equal, zs.sparsity.masks(new), masks)
        expected = jax.tree.map(
            lambda w, g: w - 0.1 * g,
            tree.mask(params, masks),
            tree.mask(pure.grad, masks),
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            after,
            expected,
        )
    assert changes == 2


@pytest.mark.parametrize(
    "inner",
    [
        optax.sgd(0.05, momentum=0.9),
        optax.adamw(1e-2),
        optax.adagrad(0.1, initial_accumulator_value=0.3),
        optax.contrib.schedule_free_sgd(0.1),
    ],
    ids=["momentum", "adamw", "adagrad", "schedule_free"],
)
def test_moments_of_changed_weights_begin_anew_and_others_stay(inner):
    """A change of topology equals: set the moments by hand, then step on the masks."""
    params, loss = mlp()
    rule = zs.sparsity.rigl(0.5, 100, interval=4, drop_fraction=0.5)
    tx = zs.sparsify(inner, rule)
    state = tx.init(params)
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    update, gradient = jax.jit(tx.update), jax.jit(jax.grad(loss))
    for _ in range(4):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    grads = gradient(params)
    topology = zs.sparsity.Topology(zs.sparsity.masks(state), state.memory)
    masks = rule.change(topology, params, grads, jnp.int32(4)).masks
    changed = jax.tree.map(jnp.logical_xor, masks, zs.sparsity.masks(state))
    assert sum(int(c.sum()) for c in jax.tree.leaves(changed) if c.ndim) >= 8
    fresh = inner.init(tree.mask(params, masks))
    by_shape = {c.shape: c for c in jax.tree.leaves(changed) if c.ndim}
    moments = jax.tree.map(
        lambda old, new: (
            jnp.where(by_shape[old.shape], new, old) if old.shape in by_shape else old
        ),
        state.inner,
        fresh,
    )
    expected, _ = inner.update(
        tree.mask(grads, masks), moments, tree.mask(params, masks)
    )
    updates, state = update(grads, state, params)
    for m, u, e, w in zip(
        *map(jax.tree.leaves, (masks, updates, expected, params)), strict=True
    ):
        np.testing.assert_allclose(u, jnp.where(m, e, -w), rtol=1e-6, atol=1e-7)


def test_a_topology_change_is_a_cond_branch_and_nothing_leaves_the_device():
    params, loss = mlp()
    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.rigl(0.5, 200))
    state = tx.init(params)
    text = str(jax.make_jaxpr(tx.update)(jax.grad(loss)(params), state, params))
    assert text.count("cond[") == 1
    assert "callback" not in text


def test_accumulation_equals_one_step_on_the_mean_gradient():
    params, loss = mlp()
    rule = zs.sparsity.rigl(0.5, 100, interval=2, drop_fraction=0.5)
    history = training(
        zs.sparsify(
            optax.adam(1e-2),
            rule,
            gradient=zs.zosam(optax.linear_schedule(0.4, 0.0, 8)),
            accumulate_steps=3,
        ),
        params,
        loss,
        12,
    )
    plain = zs.sparsify(optax.adam(1e-2), rule)
    params = history[0][0]
    state = plain.init(params)
    for step in range(4):
        grads = [
            zs.zosam_gradient(
                loss,
                params,
                jax.random.fold_in(jax.random.key(0), 3 * step + i),
                # The schedule counts optimizer steps, not micro-batches.
                0.4 * (1 - step / 8),
                masks=zs.sparsity.masks(state),
            ).grad
            for i in range(3)
        ]
        mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
        updates, state = plain.update(mean, state, params)
        params = optax.apply_updates(params, updates)
        for held in history[3 * step + 1 : 3 * step + 3]:
            jax.tree.map(np.testing.assert_array_equal, held[0], history[3 * step][0])
        after, after_state = history[3 * step + 3]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            after,
            params,
        )
        jax.tree.map(
            np.testing.assert_array_equal,
            zs.sparsity.masks(after_state),
            zs.sparsity.masks(state),
        )
    assert int(history[-1][1].step) == 4


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_penalty_is_added_once_a_step_and_the_masks_follow_the_step(accumulated):
    """Of a method of one's own: a pull of 2 w, and of the largest weight at the end."""
    w, g = jnp.array([[3.0, -2.0], [1.0, 4.0]]), jnp.array([[1.0, 0.0], [2.0, 30.0]])

    def change(topology, params, grads, step):
        return zs.sparsity.Topology(jnp.abs(params) == jnp.max(jnp.abs(params)))

    method = zs.sparsity.SparseMethod(
        lambda params: zs.sparsity.Topology(jnp.ones(params.shape, bool)),
        lambda step: step == 0,
        change,
        after_step=True,
        penalty=lambda topology, params, step: 2 * params,
    )
    tx = zs.sparsify(optax.sgd(0.1), method, accumulate_steps=accumulated)
    state, updates = tx.init(w), jnp.zeros(())
    for _ in range(accumulated):
        updates, state = tx.update(g, state, w)
    # w - 0.1 (g + 2 w) is 2.3, -1.6, 0.6, 0.2: not the 4 is the largest any more.
    np.testing.assert_allclose(w + updates, [[2.3, 0.0], [0.0, 0.0]], rtol=1e-6)
    held = np.asarray(zs.sparsity.masks(state)).tolist()
    assert held == [[True, False], [False, False]]


def test_clipping_inside_sees_live_weights_alone():
    params = {"w": jnp.ones((2, 2))}
    masks = {"w": jnp.array([[True, False], [False, False]])}
    tx = zs.sparsify(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)),
        zs.sparsity.static(masks=masks),
    )
    grads = {"w": jnp.array([[0.5, 9.0], [9.0, 9.0]])}
    updates: Any = tx.update(grads, tx.init(params), params)[0]
    np.testing.assert_allclose(updates["w"], [[-0.5, -1], [-1, -1]])


def test_a_state_from_an_eager_init_can_be_donated():
    params, loss = mlp()
    given = zs.sparsity.masks(
        zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.5)).init(params)
    )
    for method in (zs.sparsity.rigl(0.5, 200), zs.sparsity.static(masks=given)):
        tx = zs.sparsify(optax.sgd(0.1, momentum=0.9), method, gradient=zs.zosam())
        for _ in range(2):
            copy = jax.tree.map(jnp.array, params)

            @functools.partial(jax.jit, donate_argnums=(0, 1))
            def step(params, state, tx=tx):
                updates, state = tx.update(None, state, params, value_fn=loss)
                return optax.apply_updates(params, updates), state

            step(*step(copy, tx.init(copy)))


def test_a_gradient_with_nan_leaves_the_topology_as_it_is():
    params, loss = mlp()
    rule = zs.sparsity.rigl(0.5, 100, interval=1, drop_fraction=0.5)
    tx = zs.sparsify(optax.apply_if_finite(optax.sgd(0.1), 9), rule)
    state = tx.init(params)
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    state = state._replace(step=jnp.int32(2))
    for poison, changed in ((0.0, True), (jnp.nan, False)):
        grads = jax.tree.map(lambda g, p=poison: g + p, jax.grad(loss)(params))
        _, after = tx.update(grads, state, params)
        same = jax.tree.map(
            jnp.array_equal, zs.sparsity.masks(after), zs.sparsity.masks(state)
        )
        assert all(jax.tree.leaves(same)) != changed


@pytest.mark.parametrize("labels", ["by leaf", "by prefix"])
def test_masks_of_several_groups_are_put_together(labels):
    params, _ = mlp()
    group = lambda seed: zs.sparsify(  # noqa: E731
        optax.sgd(0.1), zs.sparsity.static(0.5, seed=seed)
    )
    names = {"hidden": "x", "out": "y"}
    if labels == "by leaf":
        names = {k: dict.fromkeys(params[k], v) for k, v in names.items()}
    tx = optax.multi_transform({"x": group(0), "y": group(1)}, names)
    masks = zs.sparsity.masks(tx.init(params))
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    applied = zs.sparsity.apply_masks(params, masks)
    for k in params:
        size = params[k]["kernel"].size
        assert int((applied[k]["kernel"] != 0).sum()) == size // 2


def test_extra_arguments_reach_the_inner_optimizer():
    params, loss = mlp()
    inner = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, factor=0.5)
    )
    tx = zs.sparsify(inner, zs.sparsity.static(0.5), gradient=zs.zosam())
    state = tx.init(params)
    updates, _ = tx.update(
        None, state, params, value_fn=loss, value=loss(params), unknown="ignored"
    )
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_what_cannot_work_is_refused_with_what_can():
    params, loss = mlp()
    rule = zs.sparsity.static(0.5)
    tx = zs.sparsify(optax.sgd(0.1), rule)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"gradient=zs.zosam\(...\)"):
        tx.update(None, state, params, value_fn=loss)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(params, state)
    accumulated = optax.MultiSteps(optax.sgd(0.1), 2)
    wrapped = optax.chain(optax.clip(1.0), accumulated.gradient_transformation())
    for inner in (accumulated, wrapped):
        with pytest.raises(TypeError, match="accumulate_steps=k"):
            zs.sparsify(inner, rule).init(params)
    with pytest.raises(TypeError, match="knows no masks"):
        zs.sparsify(optax.chain(zs.zosam(), optax.sgd(0.1)), rule).init(params)
    with pytest.raises(TypeError, match=r"Call it: zs.sparsity.rigl\("):
        zs.sparsify(optax.sgd(0.1), zs.sparsity.rigl)
    with pytest.raises(TypeError, match="The optimizer comes first"):
        zs.sparsify(rule, optax.sgd(0.1))
    with pytest.raises(ValueError, match="structure of params"):
        tx.update({"hidden": 1.0}, state, params)
    with pytest.raises(TypeError, match=r"Call it: zs.zosam\(rho=0.05\)"):
        zs.sparsify(optax.sgd(0.1), rule, gradient=zs.zosam)
    with pytest.raises(TypeError, match="inner must be an Optax transformation"):
        zs.sparsify(0.1, rule)
    with pytest.raises(ValueError, match="accumulate_steps=0"):
        zs.sparsify(optax.sgd(0.1), rule, accumulate_steps=0)
    with pytest.raises(ValueError, match="holds no masks"):
        zs.sparsity.masks(optax.sgd(0.1).init(params))


@pytest.mark.parametrize(
    "gradient",
    [
        zs.zeroth_order(),
        zs.zosam(0.1, descent="zeroth_order"),
        optax.chain(zs.zeroth_order(), optax.clip_by_global_norm(1.0)),
        optax.inject_hyperparams(zs.zeroth_order)(delta=0.1),
    ],
    ids=["zeroth_order", "zosam", "chained", "injected"],
)
def test_growth_by_gradient_needs_one_at_pruned_weights(gradient):
    w = jnp.ones((4, 4))
    with pytest.raises(ValueError, match="nothing would ever grow"):
        zs.sparsify(optax.sgd(0.1), zs.sparsity.rigl(0.5, 1000), gradient).init(w)
    zs.sparsify(optax.sgd(0.1), zs.sparsity.set_(0.5, 1000), gradient).init(w)


def rounded_gradient(params, grads, key):
    """A score of whole numbers, in which no |w| of less than 1 has a rank."""
    del params, key
    return jax.tree.map(lambda g: jnp.round(10 * g).astype(jnp.int32), grads)


@pytest.mark.parametrize(
    ("by_gradient", "by_magnitude"),
    [
        (
            zs.sparsity.gmp(0.5, 10, interval=1, score=zs.sparsity.scores.saliency),
            zs.sparsity.gmp(0.5, 10, interval=1),
        ),
        (
            zs.sparsity.mest(0.5, 100, gradient_weight=1.0),
            zs.sparsity.mest(0.5, 100, gradient_weight=0.0),
        ),
        (
            zs.sparsity.gmp(0.5, 10, interval=1, score=rounded_gradient),
            zs.sparsity.gmp(0.5, 10, interval=1),
        ),
    ],
    ids=["gmp", "mest", "integers"],
)
def test_a_gradient_with_nan_leaves_pruning_to_the_magnitude(by_gradient, by_magnitude):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)}
    grad = jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)
    step = jnp.int32(7)

    def changed(method, grad):
        return np.asarray(
            method.change(method.init(params), params, {"w": grad}, step).masks["w"]
        )

    expected = changed(by_magnitude, grad)
    np.testing.assert_array_equal(
        changed(by_gradient, grad.at[0, 0].set(jnp.nan)), expected
    )
    assert (changed(by_gradient, grad) != expected).any()


def square(params):
    return sum(jnp.sum(jnp.square(x - 1)) for x in jax.tree.leaves(params))


KERNELS = {"a": jnp.linspace(-1.0, 2.0, 24).reshape(4, 6), "b": jnp.full((4, 6), 0.5)}
LOSS_USERS = {
    "polyak_sgd": optax.polyak_sgd(max_learning_rate=0.1),
    "momo": optax.contrib.momo(0.1),
    "reduce_on_plateau": optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)
    ),
    "sophia": optax.contrib.sophia(0.01),
    "line_search": optax.chain(
        optax.sgd(0.5), optax.scale_by_backtracking_linesearch(max_backtracking_steps=4)
    ),
    "lbfgs": optax.lbfgs(memory_size=2),
}


@pytest.mark.parametrize("name", LOSS_USERS)
def test_optimizers_that_want_the_loss_are_told_it(name):
    """As the optimizer alone, told by hand, on live weights; aux is no hindrance."""
    inner = LOSS_USERS[name]
    method = zs.sparsity.static(0.5, "magnitude")
    tx = zs.sparsify(inner, method, zs.backprop(has_aux=True))
    state = tx.init(KERNELS)
    masks = zs.sparsity.masks(state)
    w: Any = zs.sparsity.apply_masks(KERNELS, masks)
    alone: Any = w
    by_hand = optax.with_extra_args_support(inner)
    told = by_hand.init(alone)
    objective = lambda p: square(tree.mask(p, masks))  # noqa: E731
    for _ in range(3):
        updates, state = tx.update(
            None, state, w, value_fn=lambda p: (square(p), {"logits": p["a"]})
        )
        w = cast(Any, optax.apply_updates(w, updates))
        value, grad = jax.value_and_grad(square)(alone)
        grad = tree.mask(grad, masks)
        updates, told = by_hand.update(
            *(grad, told, alone),
            value=value,
            grad=grad,
            value_fn=square,
            **({"obj_fn": objective} if name == "sophia" else {}),
        )
        alone = cast(Any, optax.apply_updates(alone, updates))
    for k in KERNELS:
        np.testing.assert_allclose(w[k], alone[k], rtol=1e-6, atol=1e-7)
        assert np.all(np.asarray(w[k])[~np.asarray(masks[k])] == 0)
        assert float(jnp.max(jnp.abs(w[k] - tree.mask(KERNELS, masks)[k]))) > 1e-4


def test_an_accumulated_step_is_told_the_mean_loss():
    """Told the loss of the second batch alone, Polyak's step would be another."""
    tx = zs.sparsify(
        optax.polyak_sgd(max_learning_rate=1e9),
        zs.sparsity.static(0.0),
        zs.backprop(),
        accumulate_steps=2,
    )
    w = jnp.full((2, 2), 3.0)
    state = tx.init(w)
    updates, state = tx.update(None, state, w, value_fn=lambda w: jnp.sum(w**2))
    np.testing.assert_array_equal(updates, 0)
    updates, state = tx.update(None, state, w, value_fn=lambda w: 3 * jnp.sum(w**2))
    # The mean loss is 2 w^2, 72 with a gradient of 12: loss / |g|^2 * g.
    np.testing.assert_allclose(np.asarray(updates), -72 / (4 * 12**2) * 12, rtol=1e-6)
    assert float(state.accumulated[2]) == 0


FREEZERS = {
    "before": optax.chain(
        optax.freeze({"a": True, "b": False}),
        optax.clip_by_global_norm(1.0),
        optax.sgd(0.1),
    ),
    "behind": optax.chain(optax.sgd(0.1), optax.freeze({"a": True, "b": False})),
    "multi_transform": optax.multi_transform(
        {"still": optax.set_to_zero(), "train": optax.adam(0.1)},
        {"a": "still", "b": "train"},
    ),
}


@pytest.mark.parametrize("name", FREEZERS)
def test_a_leaf_that_never_trains_is_found_before_its_masks_change(name):
    def rule(**options):
        return zs.sparsity.set_(0.5, 100, interval=1, **options)

    tx = zs.sparsify(FREEZERS[name], rule())
    with pytest.raises(ValueError, match=r"never trains a .*dense=\('a',\)"):
        tx.update(KERNELS, tx.init(KERNELS), KERNELS)
    for good in (rule(dense="a"), zs.sparsity.static(0.5)):
        tx = zs.sparsify(FREEZERS[name], good)
        jax.eval_shape(tx.update, KERNELS, tx.init(KERNELS), KERNELS)


def test_wrappers_that_do_not_fit_around_it_say_what_does():
    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.5))
    slow = optax.lookahead(tx, 5, 0.5)
    pairs = optax.LookaheadParams.init_synced(KERNELS)
    for made, params in ((slow, pairs), (slow, KERNELS), (tx, pairs)):
        with pytest.raises(ValueError, match=r"around.*apply_masks\(average"):
            made.init(params)
    inside = zs.sparsify(optax.lookahead(optax.sgd(0.1), 5, 0.5), half())
    with pytest.raises(TypeError, match=r"lookahead inside.*apply_masks\(average"):
        inside.init(KERNELS)


JUDGES: Any = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda step: True),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step: True
    ),
}


@pytest.mark.parametrize("name", JUDGES)
def test_wrappers_that_judge_the_incoming_updates_go_inside(name):
    judge = JUDGES[name]
    tx = judge(zs.sparsify(optax.sgd(0.1), half(), zs.backprop()))
    with pytest.raises(ValueError, match=rf"inside: zs.sparsify\(optax.{name}"):
        tx.update(None, tx.init(KERNELS), KERNELS, value_fn=square)
    tx = zs.sparsify(optax.sgd(0.1), half(), judge(zs.sam()))
    with pytest.raises(ValueError, match=rf"behind: .*zs.sam.*optax.{name}"):
        tx.update(None, tx.init(KERNELS), KERNELS, value_fn=square)
    for good in (
        zs.sparsify(judge(optax.sgd(0.1)), half(), zs.sam()),
        zs.sparsify(
            optax.sgd(0.1), half(), optax.chain(zs.sam(), judge(optax.identity()))
        ),
    ):
        jax.eval_shape(
            lambda state, good=good: good.update(None, state, KERNELS, value_fn=square),
            good.init(KERNELS),
        )


def test_a_schedule_that_counts_estimates_is_refused_under_accumulation():
    """The method's own counts optimizer steps, and `rho` is 0.2, 0.2, 0.1, 0.1."""
    schedule = optax.linear_schedule(0.2, 0.0, 2)
    inject = optax.inject_hyperparams
    injected = inject(zs.sam)(rho=schedule)

    def made(gradient, k):
        return zs.sparsify(optax.sgd(0.1), half(), gradient, accumulate_steps=k)

    for gradient in (injected, optax.chain(optax.chain(injected), optax.clip(1.0))):
        with pytest.raises(ValueError, match=r"schedule of rho.*zs.zosam\(rho=sched"):
            made(gradient, 2).init(KERNELS)
    with pytest.raises(ValueError, match=r"Only rho can .* keep exploration constant"):
        made(inject(zs.zosam)(exploration=schedule), 2).init(KERNELS)
    # Without a schedule, or without accumulation, nothing disagrees.
    made(inject(zs.sam)(rho=0.1), 2).init(KERNELS)
    norms = {}
    for name, tx in (
        ("own", made(zs.sam(rho=schedule), 2)),
        ("injected", made(injected, 1)),
    ):
        state, norms[name] = tx.init(KERNELS), []
        params = zs.sparsity.apply_masks(KERNELS, zs.sparsity.masks(state))
        for _ in range(4):
            _, state = tx.update(None, state, params, value_fn=square)
            norms[name].append(float(zs.estimate(state).info.perturbation_norm))
    np.testing.assert_allclose(norms["own"], [0.2, 0.2, 0.1, 0.1], rtol=1e-4)
    np.testing.assert_allclose(norms["injected"], [0.2, 0.1, 0.0, 0.0], atol=1e-4)


def half():
    return zs.sparsity.static(0.5)
