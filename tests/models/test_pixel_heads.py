"""Heads with a class for every pixel: against NumPy, pruned, and cut out."""

import functools

import jax
import jax.numpy as jnp
import model_references as references
import numpy as np
import pytest
import small_models

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.models import pixel_heads

SMALL = {
    "basic": {"channels": (6, 8, 10, 12), "blocks": 1, "stem": "cifar"},
    "bottleneck": {"channels": (4, 6, 8), "blocks": 1},
    "vit": {},
    "deit": {"distillation": False},
}
SIDES = {"basic": 13, "bottleneck": 19, "vit": 8, "deit": 8}


def network(family):
    """A small model for pixels, a batch, and random variables."""
    model = small_models.make(family, segmentation=True, **SMALL[family])
    side = SIDES[family]
    x = np.random.default_rng(0).normal(size=(2, side, side + 4, 3))
    if family in ("vit", "deit"):
        x = x[:, :, :side]
    x = jnp.asarray(x, jnp.float32)
    return model, x, small_models.drawn(model, x)


def run(model, variables, x):
    apply = functools.partial(model.apply, train=False)
    return jax.jit(apply, compiler_options=small_models.QUICK)(variables, x)


def upsampled(x, size):
    """Bilinear interpolation between the centers of pixels, at the border the last."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(at.astype(int), max(old - 2, 0))
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        high = np.minimum(low + 1, old - 1)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def features(model, variables, x, names):
    found = models.intermediates(model, variables, x)
    return [np.asarray(found[name], np.float64) for name in names]


@pytest.mark.parametrize(
    ("family", "read"),
    [
        # Of four stages the first is not read; the stem's pooling is before it.
        ("basic", ["stage2_block0", "stage3_block0", "stage4_block0"]),
        ("bottleneck", ["stage1_block0", "stage2_block0", "stage3_block0"]),
        ("vit", ["norm"]),
        ("deit", ["norm"]),
    ],
)
def test_logits_are_those_of_the_paper(family, read):
    """The features are the model's own, and what follows is written out here."""
    model, x, variables = network(family)
    params, size = variables["params"], x.shape[1:3]
    *finer, last = features(model, variables, x, read)
    if family in ("vit", "deit"):
        side = x.shape[1] // model.patch
        last = last.reshape(2, side, side, -1)
        # The token of the class is read by no head.
        assert last.shape[-1] == model.features
    wanted = references.linear(last, params["head"])
    for name, map_ in zip(reversed(read[:-1]), reversed(finer), strict=True):
        layer = params[f"{name.partition('_')[0]}_head"]
        assert set(layer) == {"kernel"}
        wanted = upsampled(wanted, map_.shape[1:3]) + references.linear(map_, layer)
    wanted = upsampled(wanted, size)
    found = run(model, variables, x)
    assert found.shape == (2, *size, small_models.CLASSES)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert np.ptp(wanted, axis=(1, 2)).min() > 0.02  # pixels differ


def test_the_sizes_need_not_be_multiples():
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 4))
    found = pixel_heads.upsampled(jnp.asarray(x, jnp.float32), (7, 5))
    np.testing.assert_allclose(found, upsampled(x, (7, 5)), rtol=1e-5, atol=1e-6)


def test_heads_are_pruned_as_the_head_of_classes_is():
    model = models.create("resnet20", num_classes=4, width=0.25, segmentation=True)
    params = small_models.shapes(model, jnp.zeros((1, 16, 16, 3)))["params"]
    heads = {"head", "stage1_head", "stage2_head"}
    assert heads < set(params)

    def masks(**options):
        return jax.eval_shape(zs.sparsity.rigl(0.5, 1000, **options).init, params).masks

    assert all(masks()[name]["kernel"].ndim for name in heads)
    assert not masks()["head"]["bias"].ndim
    dense = masks(dense=("*head/*",))
    assert not any(dense[name]["kernel"].ndim for name in heads)
    paths = zs.tree.paths(params)
    depths = dict(zip(paths, models.depths(paths), strict=True))
    assert {depths[f"{name}/kernel"] for name in heads} == {10}


@pytest.mark.parametrize("family", ["basic", "bottleneck"])
def test_the_cut_network_computes_the_same(family):
    model, x, variables = network(family)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    rng, flat = np.random.default_rng(1), small_models.flat(params)
    masks = {p: np.ones(w.shape, bool) if w.ndim > 1 else True for p, w in flat.items()}
    for row in model.cuts().values():
        live = rng.permutation(flat[row.outgoing].shape[-2]) < 3
        for path in (row.outgoing, *row.others):
            masks[path] = masks[path] & live[:, None]
    masks = small_models.nested(masks)
    small = zs.sparsity.compact(model, params, masks, model_state=state)
    # Every stage that a head reads is cut.
    assert {f"trunk{s}" for s in range(1, len(SMALL[family]["channels"]))} < set(
        small.widths
    )
    assert small.params["head"]["kernel"].shape == (3, small_models.CLASSES)
    pruned = zs.sparsity.apply_masks(params, masks)
    expected = run(model, {"params": pruned, **state}, x)
    found = run(small.model, {"params": small.params, **small.model_state}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_live_skip_keeps_its_channels():
    """Channels that the skip alone reads stay, whatever the next stage does."""
    model, _, variables = network("bottleneck")
    flat = small_models.flat(variables["params"])
    masks = {p: True for p in flat}
    row = model.cuts()["trunk1"]
    assert "stage1_head/kernel" in row.others
    for path in (row.outgoing, *row.others):
        if path != "stage1_head/kernel":
            masks[path] = np.zeros(flat[path].shape, bool)
    small = zs.sparsity.compact(
        *(model, variables["params"], small_models.nested(masks)),
        model_state={"batch_stats": variables["batch_stats"]},
    )
    assert "trunk1" not in small.widths


def test_tokens_of_distillation_have_no_pixels():
    with pytest.raises(ValueError, match="exclude each other"):
        models.create(
            "deit-tiny",
            **{"num_classes": 4, "distillation": True, "segmentation": True},
            image_size=32,
        )
