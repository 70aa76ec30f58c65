"""Every sparse method over every base optimizer, those that jaxpruner rejects too."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import zosam_jax as zs

OPTIMIZERS = zoo.BASES | {
    "nadam": lambda lr=0.05: optax.nadam(lr),
    "lamb": lambda lr=0.05: optax.lamb(lr, weight_decay=0.1),
    "muon": lambda lr=0.05: optax.contrib.muon(lr),
    "inject_hyperparams": lambda lr=0.05: optax.inject_hyperparams(optax.adamw)(lr),
    "multi_transform": lambda lr=0.05: optax.multi_transform(
        {"a": optax.adamw(lr), "b": optax.sgd(lr, momentum=0.9)},
        {"kernel": "a", "bias": "b"},
    ),
    "clip_in_a_chain": lambda lr=0.05: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adagrad(lr)
    ),
}
# The whole product for a method that grows by the gradient and for one whose counts
# come from stages; of the others, each meets one optimizer, and each optimizer one.
OTHERS = [m for m in zoo.METHODS if m not in ("rigl", "mest")]
PAIRS = [(m, o) for m in ("rigl", "mest") for o in OPTIMIZERS]
BOTH = itertools.cycle(OTHERS), itertools.cycle(OPTIMIZERS)
PAIRS += itertools.islice(zip(*BOTH, strict=True), max(len(OTHERS), len(OPTIMIZERS)))
STEPS = 12


def states(tx, every=1):
    """`(network's parameters, state of sparsify)` before and after each step."""
    params, state = zoo.start(), tx.init(zoo.start())
    masks = zs.sparsity.masks(state)

    @jax.jit
    def step(params, state):
        network = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
        updates, state = tx.update(jax.grad(zoo.loss)(network), state, params)
        return optax.apply_updates(params, updates), state

    params = zs.sparsity.apply_masks(params, masks)
    for i in range(STEPS * every + 1):
        if i % every == 0:
            found = [x for x in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(x)]
            yield params, found[0]
        params, state = step(params, state)


def is_ours(x):
    return isinstance(x, zs.sparsity.SparsifyState)


def check(method, tx, inner, every=1):
    begun = inner.init(jax.tree.map(jnp.zeros_like, zoo.start()))
    history, of_a_shape = [], 0
    for params, state in states(tx, every):
        mask = np.asarray(zs.sparsity.masks(state)["kernel"])
        history.append(mask)
        if state.memory != ():
            sparse = [m for m in zs.sparsity.masks(state).values() if m.ndim]
            assert state.memory.live.tolist() == [int(m.sum()) for m in sparse]
        assert np.all(np.isfinite(params["kernel"]))
        if method == "ste":
            continue
        assert method == "chex" or np.all(np.asarray(params["kernel"])[~mask] == 0)
        assert jax.tree.structure(state.inner) == jax.tree.structure(begun)
        # What drops or grows begins anew, so that off the mask nothing ever gathers:
        # a state there is that of a weight which is zero.
        of_a_shape = 0
        for held, new in zip(*map(jax.tree.leaves, (state.inner, begun)), strict=True):
            assert held.dtype == new.dtype
            if held.shape == mask.shape:
                of_a_shape += 1
                np.testing.assert_array_equal(
                    np.asarray(held)[~mask], np.asarray(new)[~mask]
                )
    counts = [int(mask.sum()) for mask in history]
    assert counts[-1] == 24
    assert counts == sorted(counts, reverse=True)
    assert method in ("gmp", "safe", "chex") or set(counts) == {24}
    changes = sum(np.any(a != b) for a, b in itertools.pairwise(history))
    assert changes == 0 if method == "static" else changes >= (method != "ste")
    return of_a_shape


@pytest.mark.parametrize(("method", "optimizer"), PAIRS)
def test_zeros_counts_and_moments_are_exact(method, optimizer):
    inner = OPTIMIZERS[optimizer]()
    moments = check(method, zs.sparsify(inner, zoo.METHODS[method]()), inner)
    assert moments or method == "ste" or optimizer == "adafactor"


@pytest.mark.parametrize("method", ["rigl", "mest", "gmp", "safe"])
def test_accumulation_around_them(method):
    inner = optax.adamw(0.05)
    tx = optax.MultiSteps(zs.sparsify(inner, zoo.METHODS[method]()), 2)
    check(method, tx, inner, every=2)
