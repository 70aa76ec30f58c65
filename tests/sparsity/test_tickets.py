"""Lottery tickets against NumPy, where a sort stands for the threshold search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zosam_jax as zs

SHAPES = {"a": (4, 3), "b": (2, 2, 5), "bias": (7,), "one": (1, 1)}


def replica(params, masks, sparsity, per_layer):
    """The largest live magnitudes by a stable sort: ties to the lower index."""
    names = [n for n in params if np.ndim(masks[n])]
    groups = [[n] for n in names] if per_layer else [names]
    new = dict(masks)
    for group in groups:
        flat = np.concatenate([np.abs(params[n]).ravel() for n in group])
        live = np.concatenate([masks[n].ravel() for n in group])
        count = flat.size - round(sparsity * flat.size)
        count = min(max(count, int(per_layer)), live.sum())
        # NaN below every magnitude, pruned weights below NaN.
        score = np.where(live, np.where(np.isnan(flat), -1, flat), -2)
        kept = np.zeros(flat.size, bool)
        kept[np.argsort(-score, kind="stable")[:count]] = True
        start = 0
        for n in group:
            size = masks[n].size
            new[n] = kept[start : start + size].reshape(masks[n].shape)
            start += size
    return new


def dense_masks():
    return {n: True if n == "bias" else np.ones(s, bool) for n, s in SHAPES.items()}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.95]),
    rounds=st.integers(1, 7),
    per_layer=st.booleans(),
    levels=st.sampled_from([1, 3, 1000]),
)
def test_rounds_equal_the_replica(seed, sparsity, rounds, per_layer, levels):
    """Few levels make many ties; weights change between the rounds."""
    rng = np.random.default_rng(seed)
    masks = expected = dense_masks()
    total = sum(np.size(m) for m in masks.values() if np.ndim(m))
    before = total
    for s in zs.sparsity.ticket_sparsities(sparsity, rounds):
        params = {
            n: (rng.integers(-levels, levels + 1, shape) / 7).astype(np.float32)
            for n, shape in SHAPES.items()
        }
        if seed % 3 == 0:
            params["a"][0, 0] = np.nan
        masks = zs.sparsity.prune_ticket(params, masks, s, per_layer=per_layer)
        expected = replica(params, expected, s, per_layer)
        for n in SHAPES:
            np.testing.assert_array_equal(masks[n], expected[n])
        count = sum(int(np.sum(m)) for m in masks.values() if np.ndim(m))
        assert count <= before
        before = count
        if not per_layer:
            assert count == total - round(s * total)
    assert per_layer or before == total - round(sparsity * total)


@pytest.mark.parametrize("sparsity", [0.0, 1e-12, 0.5, 0.9, 0.95, 0.98, 1 - 1e-9])
@pytest.mark.parametrize("rounds", [1, 2, 10, 997])
def test_sparsities_rise_to_the_last_one_exactly(sparsity, rounds):
    found = zs.sparsity.ticket_sparsities(sparsity, rounds)
    assert len(found) == rounds + 1
    assert (found[0], found[-1]) == (0.0, sparsity)
    assert list(found) == sorted(found)
    # The same share of what is left each time. 1 - s_j has an error of 2**-53 in s_j.
    left = 1 - np.asarray(found)
    share = left[1:] / left[:-1]
    np.testing.assert_allclose(share, share[0], rtol=4e-16 / (1 - sparsity))
    # Ten million weights: the counts of the rounds never rise.
    counts = [10**7 - round(s * 10**7) for s in found]
    assert counts == sorted(counts, reverse=True)


def test_the_usual_fifth_per_round():
    """Sparsity 1 - 0.8**n after n rounds of pruning a fifth."""
    found = zs.sparsity.ticket_sparsities(1 - 0.8**10, 10)
    np.testing.assert_allclose(found, 1 - 0.8 ** np.arange(11), atol=1e-15)


def test_pruning_is_the_same_under_jit():
    params = {n: jax.random.normal(jax.random.key(3), s) for n, s in SHAPES.items()}
    prune = zs.sparsity.prune_ticket
    plain = prune(params, dense_masks(), 0.6)
    jitted = jax.jit(prune, static_argnums=2)(params, dense_masks(), 0.6)
    jax.tree.map(np.testing.assert_array_equal, plain, jitted)


def test_pruned_weights_stay_pruned_when_they_are_large_or_less_is_asked():
    masks = {"w": jnp.array([[True, False, True, False]])}
    params = {"w": jnp.array([[1.0, 9.0, 2.0, 9.0]])}
    same = zs.sparsity.prune_ticket(params, masks, 0.25)
    np.testing.assert_array_equal(same["w"], masks["w"])
    less = zs.sparsity.prune_ticket(params, masks, 0.75)
    np.testing.assert_array_equal(less["w"], [[False, False, True, False]])


def test_only_per_layer_keeps_a_weight_of_every_layer():
    params = {"large": jnp.full((4, 4), 2.0), "small": jnp.full((2, 2), 1.0)}
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    together = zs.sparsity.prune_ticket(params, masks, 0.9)
    assert (int(together["large"].sum()), int(together["small"].sum())) == (2, 0)
    apart = zs.sparsity.prune_ticket(params, masks, 0.9, per_layer=True)
    assert (int(apart["large"].sum()), int(apart["small"].sum())) == (2, 1)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: zs.sparsity.ticket_sparsities(1.0, 3), "sparsity=1.0 must be"),
        (lambda: zs.sparsity.ticket_sparsities(0.5, 0), "rounds=0"),
        (lambda: zs.sparsity.prune_ticket(jnp.ones(3), True, 0.5), "no sparse leaf"),
        (
            lambda: zs.sparsity.prune_ticket(jnp.ones((2, 2)), jnp.ones((2, 3)), 0.5),
            "masks are boolean",
        ),
        (lambda: zs.sparsity.early_bird(window=0), "window=0"),
        (lambda: zs.sparsity.early_bird(tolerance=0), "tolerance=0"),
        (lambda: zs.sparsity.early_bird().init(True), "no sparse leaf"),
    ],
)
def test_what_cannot_be_is_refused(call, part):
    with pytest.raises(ValueError, match=part):
        call()


def mask_sequence(seed, epochs):
    """Masks that change less and less, then once more, of 30 entries in two leaves."""
    rng = np.random.default_rng(seed)
    mask, masks = rng.random(30) < 0.4, []
    for epoch in range(epochs):
        share = 0.5 * 0.5**epoch if epoch != epochs - 3 else 0.5
        mask = mask ^ (rng.random(30) < share)
        masks.append(
            {"a": mask[:12].reshape(4, 3), "b": mask[12:].reshape(9, 2), "bias": True}
        )
    return masks


def found_at(masks, window, tolerance):
    """The rule as the paper says it: a list and a maximum, of whole entries."""
    flat = [np.concatenate([m["a"].ravel(), m["b"].ravel()]) for m in masks]
    queue, found = [], []
    for epoch, mask in enumerate(flat):
        if epoch:
            queue = [*queue, int((mask != flat[epoch - 1]).sum())][-window:]
        found.append(len(queue) == window and max(queue) < tolerance * 30)
    return found, queue


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("tolerance", [0.05, 0.1, 0.2])
def test_early_bird_equals_its_rule(window, tolerance):
    rule = zs.sparsity.early_bird(window=window, tolerance=tolerance)
    update = jax.jit(rule.update, donate_argnums=0)
    some = []
    for seed in range(4):
        masks = mask_sequence(seed, 14)
        state, found = rule.init(masks[0]), []
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
        for mask in masks:
            state = update(state, mask)
            found.append(bool(state.found))
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        expected, queue = found_at(masks, window, tolerance)
        assert found == expected
        np.testing.assert_array_equal(state.changed, queue)
        some += found
    assert not all(some)


def test_early_bird_needs_a_full_window_and_a_strictly_smaller_distance():
    mask = np.zeros((2, 5), bool)
    other = mask.copy()
    other[0, 0] = True
    rule = zs.sparsity.early_bird(window=2, tolerance=0.1)
    state, found = rule.init(mask), []
    # Distances 0.1 (not below 0.1), 0, 0.
    for seen in (mask, other, other, other):
        state = rule.update(state, seen)
        found.append(bool(state.found))
    assert found == [False, False, False, True]
    assert int(state.epochs) == 4
