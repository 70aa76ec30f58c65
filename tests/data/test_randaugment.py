"""RandAugment against Pillow with timm's rules, operation by operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from zosam_jax.data import augment
from zosam_jax.data.augment.rand_augment import OPERATIONS, RandAugment

HEIGHT, WIDTH = 21, 26
MEAN = (0.485, 0.456, 0.406)
MAGNITUDES = (0.0, 2.3, 9.1, 9.83)
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
BLENDS = ("color", "contrast", "brightness", "sharpness")

apply = jax.jit(augment.randaugment, static_argnums=(2, 3))


def timm(image, name, magnitude, sign, fill, resample):
    """One operation of timm's `rand-...-inc1`, from its definition."""
    t, s = magnitude / 10, sign * magnitude / 10
    factor = max(0.1, 1 + 0.9 * s)
    affine = {
        "shear_x": (1, 0.3 * s, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * s, 1, 0),
        "translate_x": (1, 0, 0.45 * s * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * s * image.height),
    }
    if name in affine:
        options = {"resample": resample, "fillcolor": fill}
        return image.transform(image.size, Image.AFFINE, affine[name], **options)
    added = [min(255, i + int(t * 110)) if i < 128 else i for i in range(256)]
    operations = {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(30 * s, resample=resample, fillcolor=fill),
        # Without a bit, Pillow made black of it, until it refused.
        "posterize": lambda: (
            ImageOps.posterize(image, 4 - int(t * 4))
            if t < 1
            else Image.new(image.mode, image.size)
        ),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(t * 256)),
        "solarize_add": lambda: image.point(added * len(image.getbands())),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
    }
    return operations[name]()


def picture(channels):
    """Noise on a slope, with a flat corner, and not from 0 to 255."""
    rng = np.random.default_rng(0)
    slope = np.linspace(20, 190, WIDTH) + np.linspace(0, 30, HEIGHT)[:, None]
    noise = rng.normal(0, 12, (HEIGHT, WIDTH, channels))
    image = np.clip(slope[..., None] + noise, 17, 240).astype(np.uint8)
    image[:5, :6] = 90
    return image


def single(names, magnitudes, signs):
    """One layer for a batch."""
    operation = np.array([[OPERATIONS.index(name) for name in names]], np.int32)
    return RandAugment(operation, np.float32([magnitudes]), np.float32([signs]))


# At magnitude 10, rotation by 30 degrees puts points on the border itself, and many
# blends are whole: there rounding decides. It is tried where there is nothing to round.
CASES = [(o, m, s) for o in OPERATIONS for m in MAGNITUDES for s in (1, -1)]
CASES += [(o, 10.0, 1) for o in OPERATIONS if o not in (*GEOMETRIC, *BLENDS)]


@pytest.mark.parametrize(
    ("channels", "interpolation"), [(3, "bicubic"), (1, "bicubic"), (3, "bilinear")]
)
def test_every_operation_is_pillows(channels, interpolation):
    image = picture(channels)
    mean = MEAN[:channels]
    batch = np.broadcast_to(image, (len(CASES), *image.shape))
    result = apply(batch, single(*zip(*CASES, strict=True)), mean, interpolation)
    assert result.dtype == jnp.uint8
    fill = tuple(round(255 * m) for m in mean)
    resample = getattr(Image, interpolation.upper())
    pillow = Image.fromarray(image.squeeze())
    for (name, magnitude, sign), ours in zip(CASES, np.asarray(result), strict=True):
        level = fill if channels == 3 else fill[0]
        theirs = timm(pillow, name, magnitude, sign, level, resample)
        theirs = np.asarray(theirs).reshape(image.shape)
        off = np.abs(theirs.astype(int) - ours)
        case = name, magnitude, sign
        # Pillow cuts doubles down to levels, we cut float32: a value that is whole up
        # to their rounding may come out one level lower.
        if name in (*GEOMETRIC, *BLENDS):
            assert off.max() <= 1, case
            assert np.mean(off > 0) < 0.002, case
        elif name == "autocontrast":
            assert off.max() <= 1, case
        else:
            assert off.max() == 0, case


def test_autocontrast_is_the_exact_quotient():
    image = picture(3)
    result = apply(image[None], single(["autocontrast"], [9], [1]), MEAN, "bicubic")
    low, high = (f(image.astype(int), (0, 1)) for f in (np.min, np.max))
    np.testing.assert_array_equal(result[0], (image - low) * 255 // (high - low))


def test_images_go_through_their_layers_in_order():
    image = picture(3)
    batch = np.stack([image, image, 255 - image])
    names = ("invert", "posterize", "solarize", "translate_x")
    invert, posterize, solarize, translate = map(OPERATIONS.index, names)
    drawn = RandAugment(
        jnp.array([[invert, -1, posterize], [solarize, -1, translate]]),
        jnp.full((2, 3), 9.0),
        jnp.ones((2, 3)),
    )
    result = np.asarray(apply(batch, drawn, MEAN, "bicubic"))
    for one, operations in zip(range(3), ((0, 2), (), (1, 3)), strict=True):
        expected = Image.fromarray(batch[one])
        for operation in operations:
            expected = timm(expected, names[operation], 9, 1, (124, 116, 104), 3)
        np.testing.assert_array_equal(result[one], np.asarray(expected))


def test_all_images_at_once_give_what_one_after_another_gives():
    """What runs on an accelerator; a batch of vmapped ones takes that way here."""
    image = picture(3)
    batch = np.broadcast_to(image, (len(CASES), *image.shape))
    drawn = single(*zip(*CASES, strict=True))
    loop = np.asarray(apply(batch, drawn, MEAN, "bicubic"), int)

    def one(image, *layers):
        layers = RandAugment(*(x[:, None] for x in layers))
        return augment.randaugment(image[None], layers, MEAN)[0]

    at_once = jax.jit(jax.vmap(one, (0, 1, 1, 1)))(batch, *drawn)
    # Compiled apart, a product and a sum may be rounded once or twice.
    assert np.abs(loop - np.asarray(at_once)).max() <= 1
    assert np.mean(loop != np.asarray(at_once)) < 1e-3


def test_parameters_follow_timms_distributions():
    n = 4000
    draw = jax.jit(augment.randaugment_parameters, static_argnums=(1, 2, 3, 4, 5))
    drawn = draw(jax.random.key(0), n, 9.0, 0.5, 2, 0.5)
    operation, magnitude, sign = (np.asarray(x) for x in drawn)
    assert operation.shape == magnitude.shape == sign.shape == (2, n)
    assert stats.binomtest(int(np.sum(operation < 0)), 2 * n, 0.5).pvalue > 0.01
    counts = np.bincount(operation[operation >= 0], minlength=len(OPERATIONS))
    assert len(counts) == len(OPERATIONS)
    assert stats.chisquare(counts).pvalue > 0.01
    # Both layers draw on their own.
    edges = np.array([-1.5, -0.5, 4.5, 9.5, 15.5])
    pairs = np.histogram2d(operation[0], operation[1], bins=[edges, edges])[0]
    assert stats.chi2_contingency(pairs).pvalue > 0.01
    below = magnitude[magnitude < 10]
    normal = stats.truncnorm(-np.inf, 2, 9, 0.5)
    assert stats.kstest(below, normal.cdf).pvalue > 0.01
    share = stats.norm.sf(2)  # two deviations above 9, cut to 10
    assert stats.binomtest(int(np.sum(magnitude == 10)), 2 * n, share).pvalue > 0.01
    assert stats.binomtest(int(np.sum(sign == 1)), 2 * n, 0.5).pvalue > 0.01
    assert set(np.unique(sign)) == {-1, 1}

    drawn = draw(jax.random.key(0), n, 0.0, 0.0, 1, 1.0)
    assert np.all(np.asarray(drawn.operation) >= 0)
    assert not np.any(drawn.magnitude)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 3)])
def test_tiny_images(shape):
    image = np.full(shape, 7, np.uint8)
    batch = np.broadcast_to(image, (len(CASES), *shape))
    result = apply(
        batch, single(*zip(*CASES, strict=True)), MEAN[: shape[-1]], "bicubic"
    )
    for (name, *_), ours in zip(CASES, np.asarray(result), strict=True):
        if name in ("autocontrast", "equalize", "color", "contrast", "sharpness"):
            np.testing.assert_array_equal(ours, image)
        if name == "invert":
            np.testing.assert_array_equal(ours, 248)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels and got 2"):
        augment.randaugment(
            np.zeros((1, 4, 4, 2), np.uint8), single(["invert"], [9], [1]), (0.5, 0.5)
        )
    with pytest.raises(ValueError, match="Did you mean 'bicubic'"):
        augment.randaugment(
            np.zeros((1, 4, 4, 1), np.uint8),
            single(["invert"], [9], [1]),
            (0.5,),
            "cubic",
        )
