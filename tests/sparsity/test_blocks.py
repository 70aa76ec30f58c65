"""Block sparsity against loops over the blocks in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from structured import normal, train, train_in_numpy

import zosam_jax as zs

SHAPES = {"a": (8, 6), "b": (3, 2, 4, 6), "bias": (6,)}
SIZE, INTERVAL, STEPS = (2, 3), 5, 40
BLOCKS = {"a": 4 * 2, "b": 6 * 2 * 2}
SPARSE = ("a", "b")


def of_blocks(shape):
    """The index of the block of every weight, by loops over the indices."""
    numbers, found = {}, np.zeros(shape, int)
    for index in np.ndindex(*shape):
        *rest, i, o = index
        key = (*rest, i // SIZE[0], o // SIZE[1])
        found[index] = numbers.setdefault(key, len(numbers))
    # In the order in which a reshaped array has its blocks.
    order = {key: n for n, key in enumerate(sorted(numbers))}
    renumbered = {number: order[key] for key, number in numbers.items()}
    return np.vectorize(renumbered.get)(found)


PLACES = {k: of_blocks(SHAPES[k]) for k in SPARSE}


def norms(k, x):
    """The sum of the absolute values of every block."""
    sums = np.bincount(PLACES[k].reshape(-1), np.abs(x).reshape(-1).astype(float))
    return sums.astype(np.float32)


def live(k, mask):
    """Which blocks are live; a block is live as a whole."""
    found = np.zeros(BLOCKS[k], int)
    np.add.at(found, PLACES[k].reshape(-1), np.asarray(mask).reshape(-1).astype(int))
    assert set(found) <= {0, SIZE[0] * SIZE[1]}
    return found > 0


def best(score, among, count):
    chosen = sorted(np.flatnonzero(among), key=lambda i: (-score[i], i))[:count]
    return np.isin(np.arange(len(score)), chosen)


OPTIONS = {"budget": "uniform", "interval": INTERVAL, "stop_fraction": 1.0}
FIXED = {**OPTIONS, "drop_fraction": optax.constant_schedule(0.4)}


def exchanged(step, w, g, masks):
    """RigL on blocks."""
    del step
    new = {}
    for k, mask in masks.items():
        old = live(k, mask)
        dropped = int(np.float32(0.4) * np.float32(old.sum()))
        kept = best(norms(k, w[k]), old, old.sum() - dropped)
        grown = best(norms(k, g[k]), ~kept, dropped)
        new[k] = (kept | grown)[PLACES[k]]
    return new


@pytest.fixture(scope="module")
def trained():
    """RigL on blocks: state after each step."""
    method = zs.sparsity.blocks(zs.sparsity.rigl(0.5, STEPS, **FIXED), SIZE)
    return list(train(method, normal(SHAPES), STEPS))


def test_rigl_on_blocks_is_the_replica(trained):
    (_, w, masks, _), *after = trained
    masks = {k: masks[k] for k in SPARSE}
    replica = train_in_numpy(
        normal(SHAPES), w, masks, STEPS, lambda t: t and t % INTERVAL == 0, exchanged
    )
    changes = 0
    for (step, found, mine, _), (_, wanted, theirs) in zip(after, replica, strict=True):
        for k in SPARSE:
            np.testing.assert_array_equal(mine[k], theirs[k], err_msg=f"{k}, {step}")
            np.testing.assert_allclose(found[k], wanted[k], atol=1e-5)
        changes += any(not np.array_equal(mine[k], masks[k]) for k in SPARSE)
        masks = theirs
    assert changes > 3


def test_counts_are_exact_in_blocks(trained):
    for _, w, masks, memory in trained:
        for k in SPARSE:
            assert live(k, masks[k]).sum() == BLOCKS[k] // 2
            assert not np.any(w[k][~masks[k]])
        assert memory.live.tolist() == [n // 2 for n in BLOCKS.values()]
        assert masks["bias"].ndim == 0


def test_magnitude_keeps_the_blocks_of_the_largest_sums():
    params = normal(SHAPES)
    made = zs.sparsity.static(0.75, "magnitude", budget="uniform")
    masks = zs.sparsity.blocks(made, SIZE).init(params).masks
    for k in SPARSE:
        wanted = best(norms(k, params[k]), np.ones(BLOCKS[k], bool), BLOCKS[k] // 4)
        np.testing.assert_array_equal(masks[k], wanted[PLACES[k]])


def test_gradual_pruning_ends_at_the_count_and_keeps_the_largest():
    made = zs.sparsity.gmp(0.75, 20, interval=4, stop_fraction=0.7, budget="uniform")
    method = zs.sparsity.blocks(made, SIZE)
    before = BLOCKS
    for step, w, masks, _ in train(method, normal(SHAPES), 20):
        found = {k: live(k, masks[k]).sum() for k in SPARSE}
        assert all(found[k] <= before[k] for k in SPARSE), step
        before = found
        assert not np.any(w["a"][~masks["a"]])
    assert before == {k: n // 4 for k, n in BLOCKS.items()}


METHODS = {
    "static": zs.sparsity.static(0.6, seed=3),
    "magnitude": zs.sparsity.static(0.6, "magnitude"),
    "set_": zs.sparsity.set_(0.6, STEPS, interval=INTERVAL, seed=3),
    "rigl": zs.sparsity.rigl(0.6, STEPS, interval=INTERVAL),
    "gmp": zs.sparsity.gmp(0.6, STEPS, interval=INTERVAL),
}


@pytest.mark.parametrize("name", METHODS)
def test_blocks_of_one_weight_are_the_method_itself(name):
    """Bit for bit, draws and budgets too."""
    params = jax.tree.map(jnp.asarray, normal(SHAPES))
    grads = jax.tree.map(jnp.asarray, normal(SHAPES, 1))
    made = METHODS[name]
    pair = [made, zs.sparsity.blocks(made, 1)]
    found = [method.init(params) for method in pair]
    for step in range(2):
        a, b = (topology.masks for topology in found)
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
            np.testing.assert_array_equal(x, y)
        if made.change is None:
            break
        at = jnp.int32(10 * (step + 1))
        found = [
            jax.jit(method.change)(topology, params, grads, at)
            for method, topology in zip(pair, found, strict=True)
        ]


def test_the_axes_may_be_those_of_equinox():
    w = normal({"w": (6, 8, 3, 3)})["w"]
    made = zs.sparsity.static(0.5, "magnitude", budget="uniform")
    theirs = zs.sparsity.blocks(made, SIZE, axes=(1, 0)).init({"w": w}).masks["w"]
    ours = zs.sparsity.blocks(made, SIZE).init({"w": w.transpose(2, 3, 1, 0)})
    # In another order of the blocks, which matters for ties alone.
    np.testing.assert_array_equal(theirs.transpose(2, 3, 1, 0), ours.masks["w"])


def test_layers_that_are_not_whole_blocks_are_named_or_dense():
    params = normal({"a": (8, 6), "head": (8, 5)})
    made = zs.sparsity.rigl(0.5, 100, interval=10)
    with pytest.raises(ValueError, match=r"2 x 3 do not divide head of shape \(8, 5\)"):
        zs.sparsity.blocks(made, SIZE).init(params)
    open_ = functools.partial(zs.sparsity.blocks, made, undivided="dense")
    masks = open_(SIZE).init(params).masks
    assert masks["head"].ndim == 0
    assert masks["a"].shape == (8, 6)
    with pytest.raises(ValueError, match=r"do not divide a of .* nothing is sparse"):
        open_(7).init(params)


@pytest.mark.parametrize(
    "method",
    [
        zs.sparsity.nm(2, 4, 1000),
        zs.sparsity.ste(0.5),
        zs.sparsity.static(0.5, "snip", value_fn=lambda p: p["a"].sum()),
    ],
)
def test_methods_of_a_structure_have_no_blocks(method):
    with pytest.raises(ValueError, match="a structure or a criterion of its own"):
        zs.sparsity.blocks(method, 2)


def whole_blocks():
    """Masks of whole blocks, other than any method would draw; the bias is dense."""
    drawn = np.random.default_rng(5)
    masks = {k: (drawn.random(BLOCKS[k]) < 0.3)[PLACES[k]] for k in SPARSE}
    return {**masks, "bias": True}


def test_a_method_starts_from_given_masks_of_blocks_and_keeps_their_counts():
    masks = whole_blocks()
    made = zs.sparsity.blocks(zs.sparsity.rigl(0.5, STEPS, **FIXED), SIZE)
    states = list(train(zs.sparsity.start_from(made, masks), normal(SHAPES), STEPS))
    for k in SPARSE:
        np.testing.assert_array_equal(states[0][2][k], masks[k])
        counts = {int(live(k, state[2][k]).sum()) for state in states}
        assert counts == {int(live(k, masks[k]).sum())}
        assert not np.array_equal(states[-1][2][k], masks[k])


@pytest.mark.parametrize("name", ["static", "magnitude"])
def test_fixed_masks_of_blocks_stay_as_they_are_given(name):
    made = zs.sparsity.blocks(METHODS[name], SIZE)
    masks = jax.tree.map(jnp.asarray, whole_blocks())
    begun = zs.sparsity.start_from(made, masks)
    for found in (begun.init(normal(SHAPES)), jax.jit(begun.init)(normal(SHAPES))):
        for x, y in zip(*map(jax.tree.leaves, (found.masks, masks)), strict=True):
            np.testing.assert_array_equal(x, y)


def test_given_masks_that_are_not_whole_blocks_are_named():
    masks = whole_blocks()
    masks["b"][0, 0, 0, 0] ^= True
    begun = zs.sparsity.start_from(zs.sparsity.blocks(METHODS["rigl"], SIZE), masks)
    said = r"masks: b of shape \(3, 2, 4, 6\) is not made of whole blocks of 2 x 3"
    with pytest.raises(ValueError, match=said):
        begun.init(normal(SHAPES))


def test_a_refused_method_is_named_by_its_call():
    scored = zs.sparsity.static(0.5, "snip", value_fn=lambda p: p["a"].sum())
    said = r"zs\.sparsity\.static\(sparsity=0\.5, criterion='snip', .*\) "
    with pytest.raises(ValueError, match=f"blocks: {said}has a structure"):
        zs.sparsity.blocks(scored, 2)
    with pytest.raises(ValueError, match=f"^{said}chooses its first masks itself"):
        zs.sparsity.start_from(scored, {})


@pytest.mark.parametrize("size", [0, (2, 0), (1, 2, 3), 1.5])
def test_a_size_is_whole(size):
    with pytest.raises(ValueError, match="size"):
        zs.sparsity.blocks(METHODS["rigl"], size)


def test_a_layer_of_one_block_is_named():
    """A kernel of one weight for each position counts as no kernel."""
    params = normal({"a": (8, 6), "b": (1, 1, 2, 3)})
    with pytest.raises(ValueError, match="of b too few blocks are left"):
        zs.sparsity.blocks(METHODS["magnitude"], SIZE).init(params)
