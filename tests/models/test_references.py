"""The outputs of every architecture against NumPy written from the papers."""

import functools

import jax
import jax.numpy as jnp
import model_references as references
import numpy as np
import pytest
import small_models
from marks import quick

from zosam_jax import models

# float32 against float64, with outputs of the order of 1.
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def run(model, variables, x, **arguments):
    apply = functools.partial(model.apply, **arguments)
    return jax.jit(apply, compiler_options=small_models.QUICK)(variables, x)


def compared(family, train):
    """Returns the outputs of the library and of the reference, and their statistics."""
    model, x = small_models.make(family), small_models.inputs(family)
    variables = small_models.drawn(model, x)
    stats = variables.get("batch_stats", {})
    norms = references.Norms(variables["params"], stats, train)
    x64 = np.asarray(x, np.float64 if jnp.isdtype(x.dtype, "real floating") else None)
    wanted = small_models.FAMILIES[family].reference(variables["params"], norms, x64)
    assert np.ptp(wanted, axis=0).min() > 0.02  # examples differ
    mutable = ["batch_stats"] if train else []
    logits, state = run(model, variables, x, train=train, mutable=mutable)
    return logits, wanted, small_models.flat(state.get("batch_stats", {})), norms.after


@pytest.mark.parametrize("family", quick(small_models.FAMILIES, "mlp"))
def test_outputs_are_those_of_the_reference(family):
    logits, wanted, _, _ = compared(family, train=False)
    close(logits, wanted)


NORMALIZED = ("basic", "bottleneck", "wide", "vgg")


@pytest.mark.parametrize("family", NORMALIZED)
def test_training_normalizes_by_the_batch(family):
    logits, wanted, found, after = compared(family, train=True)
    close(logits, wanted)
    assert len(found) == 2 * len(after)
    for path, (mean, var) in after.items():
        close(found[f"{path}/mean"], mean)
        close(found[f"{path}/var"], var)


def test_the_other_families_have_no_statistics():
    for family in set(small_models.FAMILIES) - set(NORMALIZED):
        model = small_models.make(family)
        assert set(small_models.shapes(model, small_models.inputs(family))) == {
            "params"
        }


def test_vgg19_which_ends_in_an_average_over_two_by_two():
    model = models.create("vgg19", num_classes=5, width=1 / 8)
    x = np.random.default_rng(1).normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = small_models.drawn(model, x)
    norms = references.Norms(variables["params"], variables["batch_stats"], False)
    expected = references.vgg(variables["params"], norms, x, (2, 2, 4, 4, 4))
    # Images differ by more than the tolerance.
    assert np.ptp(expected, axis=0).max() > 0.05
    close(run(model, variables, x, train=False), expected)


def test_deit_without_distillation():
    model = small_models.make("deit", distillation=False)
    x = small_models.inputs("deit")
    variables = small_models.drawn(model, x)
    (expected,) = references.deit(variables["params"], np.float64(x), 4, 2, 2)
    close(run(model, variables, x, train=False), expected)


def test_deit_trains_both_heads():
    model, x = small_models.make("deit"), small_models.inputs("deit")
    variables = small_models.drawn(model, x)
    expected = references.deit(variables["params"], np.float64(x), 4, 2, 2)
    both = run(model, variables, x, train=True)
    assert isinstance(both, tuple)
    for found, wanted in zip(both, expected, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("family", ["tinylm", "tied"])
def test_shorter_sequences_take_the_first_positions(family):
    model, tokens = small_models.make(family), small_models.inputs(family)
    variables = small_models.drawn(model, tokens)
    expected = references.tinylm(variables["params"], np.asarray(tokens), 2, 2)
    # Ids of another type are the same.
    short = run(model, variables, tokens[:, :4].astype(jnp.uint8), train=False)
    close(short, expected[:, :4])


@pytest.mark.parametrize("family", ["tinylm", "tied"])
def test_a_later_token_changes_no_earlier_logits(family):
    model, tokens = small_models.make(family), small_models.inputs(family)
    variables = small_models.drawn(model, tokens)
    apply = jax.jit(functools.partial(model.apply, train=False))
    before = apply(variables, tokens)
    for t in range(6):
        other = tokens.at[:, t].set((tokens[:, t] + 1) % small_models.CLASSES)
        changed = np.abs(apply(variables, other) - before).max((0, 2)) > 0
        np.testing.assert_array_equal(changed, np.arange(6) >= t)


def test_blocks_start_as_their_shortcuts_on_demand():
    model = models.resnet.ResNet(
        1, 3, channels=(4,), bottleneck=True, zero_init_residual=True
    )
    params, _ = models.initialize(model, jax.random.key(0), (4, 4, 3))
    zero = {
        path
        for path, leaf in small_models.flat(params).items()
        if path.endswith("scale") and not leaf.any()
    }
    assert zero == {f"{b}/norm3/scale" for b in params if b.startswith("stage")}


def test_language_models_start_as_gpt2_does():
    model = models.create("tinylm", num_classes=50, depth=2, width=0.25)
    params, state = models.initialize(model, jax.random.key(0), (16,))
    assert state == {}
    assert params["position_embedding"].shape == (16, 32)
    for path, leaf in small_models.flat(params).items():
        if leaf.ndim == 2:
            last = path.endswith(("out/kernel", "mlp2/kernel"))
            z = np.asarray(leaf).ravel() / (0.01 if last else 0.02)
            assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / z.size), path
