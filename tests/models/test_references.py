"""The outputs of every architecture against NumPy written from the papers."""

import functools

import jax
import jax.numpy as jnp
import model_references as references
import numpy as np
import pytest
import small_models

from zosam_jax import models

# float32 against float64, with outputs of the order of 1.
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def run(model, variables, x, **arguments):
    apply = functools.partial(model.apply, **arguments)
    return jax.jit(apply, compiler_options=small_models.QUICK)(variables, x)


CONVOLUTIONAL = {
    "basic": functools.partial(references.imagenet_resnet, blocks=(1, 2)),
    "bottleneck": functools.partial(references.imagenet_resnet, blocks=(1, 2)),
    "wide": functools.partial(references.wide_resnet, blocks=1),
}


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@pytest.mark.parametrize("train", [False, True])
def test_residual_networks(family, train):
    model, x = small_models.make(family), small_models.inputs(family)
    variables = small_models.drawn(model, x)
    norms = references.Norms(variables["params"], variables["batch_stats"], train)
    wanted = CONVOLUTIONAL[family](variables["params"], norms, np.float64(x))
    assert np.ptp(wanted, axis=0).min() > 0.02  # images differ
    mutable = ["batch_stats"] if train else []
    logits, state = run(model, variables, x, train=train, mutable=mutable)
    close(logits, wanted)
    if not train:
        return
    flat = small_models.flat(state["batch_stats"])
    assert len(flat) == 2 * len(norms.after)
    for path, (mean, var) in norms.after.items():
        close(flat[f"{path}/mean"], mean)
        close(flat[f"{path}/var"], var)


def test_vgg19_which_ends_in_an_average_over_two_by_two():
    model = models.create("vgg19", num_classes=5, width=1 / 8)
    x = np.random.default_rng(1).normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = small_models.drawn(model, x)
    norms = references.Norms(variables["params"], variables["batch_stats"], False)
    expected, before = references.vgg19(variables["params"], norms, x)
    assert before == (4, 2, 2, 64)
    # Images differ by more than the tolerance.
    assert np.ptp(expected, axis=0).max() > 0.05
    close(run(model, variables, x, train=False), expected)


@pytest.mark.parametrize("distillation", [False, True])
def test_deit(distillation):
    model = small_models.make("deit", distillation=distillation)
    x = small_models.inputs("deit")
    variables = small_models.drawn(model, x)
    expected = references.deit(variables["params"], np.float64(x), 4, 2, 2)
    logits = run(model, variables, x, train=False)
    close(logits, np.mean(expected, axis=0))
    if not distillation:
        return
    both = run(model, variables, x, train=True)
    assert isinstance(both, tuple)
    for found, wanted in zip(both, expected, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("family", ["tinylm", "tied"])
def test_language_model(family):
    model, tokens = small_models.make(family), small_models.inputs(family)
    variables = small_models.drawn(model, tokens)
    expected = references.tinylm(variables["params"], np.asarray(tokens), 2, 2)
    logits = run(model, variables, tokens, train=False)
    assert logits.shape == (4, 6, small_models.CLASSES)
    close(logits, expected)
    # Shorter sequences take the first positions; ids of another type are the same.
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


@pytest.mark.quick
def test_mlp():
    model, x = small_models.make("mlp"), small_models.inputs("mlp")
    variables = small_models.drawn(model, x)
    expected = references.mlp(variables["params"], np.asarray(x, np.float64), 2)
    close(run(model, variables, x, train=False), expected)


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
