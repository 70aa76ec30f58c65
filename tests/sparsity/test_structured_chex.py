"""CHEX against NumPy, and the smaller network that it leaves."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from structured import LEARNING_RATE, MOMENTUM, best, gradient, mask_of, normal, train

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.sparsity import Units

# Channels of a: 18 inputs each, of b: 6, fewer than its 9 channels; of c: 36.
SHAPES = {"a": (3, 3, 2, 6), "b": (6, 9), "c": (2, 2, 9, 7), "d": (7, 3)}
SHAPES |= {
    f"{k}_{leaf}": (n,)
    for k, n in zip("abc", (6, 9, 7), strict=True)
    for leaf in ("scale", "bias")
}
READERS = {"a": "b", "b": "c", "c": "d"}
GROUPS = {
    k: Units(reader, incoming=(k, f"{k}_scale", f"{k}_bias"), scale=f"{k}_scale")
    for k, reader in READERS.items()
}
CHANNELS = {k: SHAPES[k][-1] for k in READERS}
TOTAL = sum(CHANNELS.values())
STEPS, INTERVAL, LAST, SEED = 300, 10, 210, 3
SPARSITY, REGROW = 0.5, 0.3
# It compiles in half the time.
FAST = {"xla_backend_optimization_level": 0}


def chex(**options):
    return zs.sparsity.chex(
        **{
            "sparsity": SPARSITY,
            "total_steps": STEPS,
            "groups": GROUPS,
            "regrow_fraction": REGROW,
            "interval": INTERVAL,
            "seed": SEED,
            **options,
        }
    )


@functools.cache
def run(**options):
    """`(step, params, masks, live channels)` before the first and after each step."""
    return [
        (step, params, masks, jax.tree.map(np.array, memory.rule))
        for step, params, masks, memory in train(chex(**options), normal(SHAPES), STEPS)
    ]


def total_live(step):
    delta = REGROW / 2 * (1 + np.cos(np.pi * step / LAST))
    return TOTAL - round(SPARSITY * TOTAL) + round(delta * TOTAL)


def columns(w):
    return w.reshape(-1, w.shape[-1]).astype(np.float64)


def clear(score, among, count):
    """The best, where no two are so near that rounding decides."""
    order = sorted((score[i] for i in among), reverse=True)
    if 0 < count < len(order):
        low, high = order[count], order[count - 1]
        assert high == low or high - low > 1e-4, "too near to compare"
    return best(np.asarray(score), among, count)


def shares(scales, count):
    """How many of the largest scales of the network each layer has; one at least."""
    first = {k: int(np.argmax(s)) for k, s in scales.items()}
    rest = [(k, i) for k, s in scales.items() for i in range(len(s)) if i != first[k]]
    values = np.array([scales[k][i] for k, i in rest])
    chosen = clear(values, range(len(rest)), count - len(scales))
    return {k: 1 + sum(rest[j][0] == k for j in chosen) for k in scales}


def leverage(w, rank):
    if len(w) < w.shape[1]:
        return np.abs(w).sum(0)
    _, singular, rows = np.linalg.svd(w, full_matrices=False)
    rank = min(rank, int((singular > 1e-3 * singular[0]).sum()))
    return np.sqrt((rows[:rank] ** 2).sum(0))


def draws(step):
    stream = jax.random.fold_in(jax.random.key(SEED), np.uint32(2**32 - 1))
    key = jax.random.split(jax.random.fold_in(stream, step))[1]
    for i, k in enumerate(CHANNELS):
        u = np.asarray(jax.random.uniform(jax.random.fold_in(key, i), (1024,)))
        yield k, -np.log(-np.log(u[: CHANNELS[k]].astype(np.float64)))


def masks_of(live):
    """The product over the axes of each leaf."""
    masks = {k: np.ones(s, bool) for k, s in SHAPES.items()}
    for k, reader in READERS.items():
        for leaf in (k, f"{k}_scale", f"{k}_bias"):
            masks[leaf] &= live[k]
        masks[reader] &= live[k][:, None]
    return masks


def change(step, w, masks, live, wrong):
    seen = {k: np.where(masks[k], x, 0) for k, x in w.items()}
    scales = {k: np.abs(seen[f"{k}_scale"]) for k in CHANNELS}
    if wrong == "scale":
        scales = {k: -x for k, x in scales.items()}
    final = TOTAL - round(SPARSITY * TOTAL)
    now = 2 * final - total_live(step) if wrong == "delta" else total_live(step)
    fewer, more = shares(scales, final), shares(scales, max(now, len(CHANNELS)))
    new = {}
    for k, gumbel in draws(step):
        score = leverage(columns(seen[k]), fewer[k])
        score = -score if wrong == "leverage" else score
        kept = clear(score, np.flatnonzero(live[k]), fewer[k])
        full = columns(w[k])
        span = full if wrong == "span" else full[:, kept]
        distance = np.linalg.norm(full - span @ (np.linalg.pinv(span) @ full), axis=0)
        distance = -distance if wrong == "distance" else distance
        others = [i for i in range(len(score)) if i not in kept]
        drawn = clear(distance + gumbel, others, more[k] - len(kept))
        new[k] = mask_of(score.shape, [*kept, *drawn])
    return new


def replica(wrong=""):
    """Yields `(w, live channels)` after each step, with one thing wrong, if asked."""
    start = normal(SHAPES)
    w = dict(start)
    target = {k: np.roll(x, 1) * np.float32(0.7) for k, x in start.items()}
    moment = {k: np.zeros_like(x) for k, x in w.items()}
    live = {}
    first = {"a": 5, "b": 7, "c": 6}  # Of 22, 22 - 11 + 7; the largest remainders.
    for k in CHANNELS:
        norms = np.abs(columns(w[k])).sum(0)
        live[k] = mask_of(norms.shape, best(norms, range(len(norms)), first[k]))
    masks = masks_of(live)
    yield w, live
    for step in range(STEPS):
        seen = {k: np.where(masks[k], x, 0) for k, x in w.items()}
        g = gradient(seen, target, np.float32(step))
        if step and step % INTERVAL == 0 and step <= LAST:
            live = change(step, w, masks, live, wrong)
            new = masks_of(live)
            if wrong == "restore":
                w = {k: np.where(new[k] & ~masks[k], 0, x) for k, x in w.items()}
            moment = {k: np.where(new[k] != masks[k], 0, moment[k]) for k in w}
            masks = new
        for k in w:
            moment[k] = np.where(masks[k], g[k] + MOMENTUM * moment[k], 0)
            w[k] = (w[k] - LEARNING_RATE * moment[k]).astype(np.float32)
        yield w, live


def differences(wrong=""):
    """The first step whose channels differ, and the largest difference of weights."""
    largest = 0.0
    for (step, params, _, found), (w, live) in zip(run(), replica(wrong), strict=True):
        if any(np.any(x != live[k]) for k, x in zip(CHANNELS, found, strict=True)):
            return step, largest
        largest = max(largest, *(np.abs(params[k] - w[k]).max() for k in w))
    return None, largest


@pytest.mark.quick
def test_three_hundred_steps_equal_the_numpy_replica():
    step, largest = differences()
    assert step is None
    # Rounding, which momentum carries over steps.
    assert largest < 1e-5
    channels = [np.concatenate(found) for *_, found in run()]
    assert len({x.tobytes() for x in channels}) > 10
    back = sum(np.any(b & ~a) for a, b in itertools.pairwise(channels))
    assert back > 3


@pytest.mark.parametrize("wrong", ["scale", "delta", "leverage", "span", "distance"])
def test_a_wrong_sign_chooses_other_channels(wrong):
    assert differences(wrong)[0] is not None


def test_a_channel_that_comes_back_has_its_weights():
    step, largest = differences("restore")
    assert step is not None or largest > 1e-2


def test_counts_and_masks_are_exact_and_pruned_weights_do_not_move():
    before = normal(SHAPES)
    for step, params, masks, found in run():
        live = dict(zip(CHANNELS, found, strict=True))
        wanted = masks_of(live)
        for k in SHAPES:
            np.testing.assert_array_equal(masks[k], wanted[k])
            np.testing.assert_array_equal(params[k][~masks[k]], before[k][~masks[k]])
        at = min(step // INTERVAL * INTERVAL, LAST) if step >= 0 else 0
        assert sum(x.sum() for x in found) == total_live(at)
        assert all(x.any() for x in found)
        before = params
    assert total_live(LAST) == TOTAL - 11
    held = jax.tree.map(np.array, run()[-1][2])
    assert zs.sparsity.removable(before, held, GROUPS)["a"] == 18 * (~live["a"]).sum()


def test_weight_decay_and_adam_do_not_move_pruned_weights():
    tx = zs.sparsify(optax.adamw(0.1, weight_decay=0.5), chex(interval=1), zs.zosam())
    params = jax.tree.map(jnp.asarray, normal(SHAPES))
    state = tx.init(params)

    def loss(p):
        return sum(jnp.sum((x - 1) ** 2) for x in p.values())

    @functools.partial(jax.jit, compiler_options=FAST)
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        new, state = step(params, state)
        for k, mask in zs.sparsity.masks(state).items():
            moved = np.asarray(new[k] != params[k])
            np.testing.assert_array_equal(moved, np.broadcast_to(mask, moved.shape))
        params = new


def changed(method, params, step):
    """The topology after one change of the first one, as one program."""

    @functools.partial(jax.jit, compiler_options=FAST)
    def change(params):
        return method.change(method.init(params), params, None, jnp.int32(step))

    return change(params)


def leverage_by(method, w, scale):
    """Live channels after one change in which nothing regrows."""
    params = {"w": w, "scale": scale, "out": jnp.ones((w.shape[1], 1))}
    topology = changed(method, params, 1)
    return np.flatnonzero(topology.memory.rule[0]).tolist()


def test_copies_of_a_channel_go_before_a_smaller_one_that_is_alone():
    """Leverage, not size: of two equal columns one direction is left."""
    group = Units("out", incoming=("w", "scale"), scale="scale")
    method = zs.sparsity.chex(
        0.5, 2, {"u": group}, regrow_fraction=0.5, interval=1, stop_fraction=0.5
    )
    e = np.eye(6, dtype=np.float32)
    columns_ = np.stack([3 * e[0], 3 * e[0], 3 * e[0] + 0.1 * e[1], 2 * e[2]], 1)
    assert 3 in leverage_by(method, jnp.asarray(columns_), jnp.ones(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.2}, "regrow_fraction=0.3 must be at most sparsity=0.2"),
        ({"sparsity": 0.95}, "keeps 1 of 22 channels, but 3 layers need at least one"),
        ({"groups": models.unit_groups("vit")}, "heads: chex shares the channels"),
        ({"groups": models.unit_groups("mlp")}, "hidden1: chex shares the channels"),
        (
            {"groups": {"a": GROUPS["a"]._replace(incoming=("a_scale",))}},
            "a: chex needs one incoming kernel.*there are 0",
        ),
        (
            {"groups": {"a": GROUPS["a"]._replace(units=3)}},
            "a: chex prunes channels, and a of shape .* has several for each of 3",
        ),
        (
            {"groups": {"a": GROUPS["a"]._replace(scale="a_scales")}},
            "a: scale='a_scales' is unknown. Did you mean 'a_scale'",
        ),
        ({"groups": 3}, "groups must map names"),
        ({"interval": 0}, "interval=0"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        chex(**options).init(normal(SHAPES))


def test_every_convolutional_model_has_its_scales():
    for name in models.names():
        has_norms = name.startswith(("resnet", "wrn", "vgg"))
        assert all(
            bool(row.scale) == has_norms for row in models.unit_groups(name).values()
        )


@pytest.mark.parametrize(
    ("total", "options", "steps"),
    [
        (1000, {}, [*range(8, 721, 8)]),
        (100, {"interval": 30}, [30, 60]),
        (10, {"interval": 9}, [7]),
        (1, {}, [0]),
    ],
)
def test_the_last_change_leaves_the_sparsity(total, options, steps):
    method = zs.sparsity.chex(SPARSITY, total, GROUPS, **options)
    assert np.flatnonzero(jax.vmap(method.fires)(jnp.arange(total))).tolist() == steps
    if total < 1000:  # One program less.
        topology = changed(method, normal(SHAPES), steps[-1])
        assert sum(int(x.sum()) for x in topology.memory.rule) == 11
