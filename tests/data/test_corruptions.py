"""The generated corruptions against their definitions, written out."""

import colorsys
import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from zosam_jax.data import DatasetError, corruptions
from zosam_jax.data.corruptions import blur, definitions, noise, weather

RELEASED = json.loads(Path(__file__).with_name("released_corruptions.json").read_text())
ALL = (*corruptions.COMMON, *corruptions.EXTRA)
DRAWN = tuple(n for n in corruptions.NAMES if n != "frost")
SIZES = {"CIFAR-10-C": 32, "ImageNet-C": 128}
# The definitions alone. The last section has the JPEG files of ImageNet-C.
corrupt = functools.partial(corruptions.corrupt, jpeg=False)


@functools.cache
def some(n=4, height=32, width=32, channels=3, seed=0):
    """Images of smooth colours with noise on them: every level, every hue."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-60, 315, (n, 5, 5, channels))
    zoom = (1, height / 5, width / 5, 1)
    x = np.asarray(ndimage.zoom(coarse, zoom, order=1))
    x += rng.normal(0, 8, (n, height, width, 1))
    return np.clip(x, 0, 255).astype(np.uint8)


def generators(name, severity, n, seed=0):
    return [noise.generator(seed, name, severity, i) for i in range(n)]


def truncated(x):
    """As the published code makes levels, but for errors of rounding."""
    return np.floor(np.clip(x, 0, 1) * 255 + 1e-6).astype(np.uint8)


def parameters(table):
    side = SIZES[table]
    return lambda name, severity: corruptions.parameters(name, severity, (side, side))


both = pytest.mark.parametrize("side", SIZES.values(), ids=SIZES)
every = pytest.mark.parametrize("severity", corruptions.SEVERITIES)


# Common to all corruptions


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (6, 7, 3), (24, 40, 1)])
@pytest.mark.parametrize("name", DRAWN)
def test_shape_and_type_stay_and_the_input_too(name, shape):
    images = some(3, *shape)
    before = images.copy()
    if name == "saturate" and shape[-1] == 1:
        with pytest.raises(ValueError, match="no saturation"):
            corrupt(images, name, 1)
        return
    for severity in (1, 5):
        out = corrupt(images, name, severity)
        assert (out.shape, out.dtype) == (images.shape, np.uint8)
        # Digits at the lowest severities may be within a level of what they were.
        assert severity == 1 or (out != images).any()
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", DRAWN)
def test_an_image_depends_on_its_index_and_not_on_its_batch(name, monkeypatch):
    images = some(5)
    whole = corrupt(images, name, 3, seed=7)
    np.testing.assert_array_equal(whole, corrupt(images, name, 3, seed=7))
    part = corrupt(images[[4, 1]], name, 3, seed=7, indices=[4, 1])
    np.testing.assert_array_equal(part, whole[[4, 1]])
    monkeypatch.setattr(definitions, "_CHUNK", 2 * images[:1].size)
    np.testing.assert_array_equal(corrupt(images, name, 3, seed=7), whole)


RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
RANDOM += ("glass_blur", "motion_blur", "snow", "fog", "spatter", "elastic_transform")
RANDOM += (corruptions.STANDIN,)


@pytest.mark.parametrize("name", RANDOM)
def test_no_two_images_share_their_random_numbers(name):
    images = np.repeat(some(1), 40, axis=0)
    out = corrupt(images, name, 3)
    found = len(np.unique(out.reshape(40, -1), axis=0))
    changed = (out != corrupt(images, name, 3, seed=1)).any((1, 2, 3)).mean()
    if name == "motion_blur":
        # Directions that are close go through the same pixels.
        assert found > 20
        assert changed > 0.9
    else:
        assert (found, changed) == (40, 1)


@pytest.mark.parametrize("name", sorted(set(DRAWN) - set(RANDOM)))
def test_the_others_are_functions_of_the_image(name):
    images = np.repeat(some(1), 2, axis=0)
    first, second = corrupt(images, name, 3)
    np.testing.assert_array_equal(first, second)


MORE_AND_MORE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
MORE_AND_MORE += ("defocus_blur", "gaussian_blur", "zoom_blur", "fog", "brightness")
MORE_AND_MORE += ("contrast", "pixelate", "jpeg_compression", "snow")


@pytest.mark.parametrize("name", MORE_AND_MORE)
def test_damage_grows_with_severity(name):
    images = some(24)
    change = [
        np.abs(corrupt(images, name, s).astype(int) - images).mean()
        for s in corruptions.SEVERITIES
    ]
    assert change == sorted(change)
    assert change[0] > 0.3


def test_the_sets_are_the_published_ones():
    assert (len(corruptions.COMMON), len(ALL)) == (15, 19)
    assert (*ALL, corruptions.STANDIN) == corruptions.NAMES


def lacks(name):
    """Returns what a row of the table of corruptions still lacks, in words."""
    row, found = corruptions.CORRUPTIONS[name], []
    if row.group not in (*corruptions.GROUPS, "stand-in"):
        found.append("a group: one of " + ", ".join(corruptions.GROUPS))
    if len(row.cifar) != 5 or len(row.imagenet) != 5:
        found.append("the parameters of all five severities, for both sizes")
    if not row.function.__doc__:
        found.append("a docstring that says what it returns")
    if row.group != "stand-in" and name not in RELEASED["32"]:
        found.append("its published mean effect, in released_corruptions.json")
    return found


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_rows_are_complete(name):
    missing = lacks(name)
    assert not missing, f"the corruption {name} lacks " + "; ".join(missing)


def test_the_completeness_test_says_what_is_missing(monkeypatch):
    row = definitions.Corruption(lambda x, rngs, c: x, "sand", (1, 2), (1, 2))
    monkeypatch.setitem(corruptions.CORRUPTIONS, "dunes", row)
    assert len(lacks("dunes")) == 4


def test_what_cannot_be_is_said():
    images = some(2)
    for arguments, part in (
        (("fogg", 1), "Did you mean 'fog'"),
        (("fog", 6), "severity=6 is unknown"),
    ):
        with pytest.raises(ValueError, match=part):
            corrupt(images, *arguments)
    with pytest.raises(ValueError, match="uint8"):
        corrupt(images / 255, "fog", 1)
    with pytest.raises(ValueError, match="4 channels"):
        corrupt(np.zeros((1, 8, 8, 4), np.uint8), "fog", 1)
    with pytest.raises(ValueError, match="smaller than 6"):
        corrupt(np.zeros((1, 4, 8, 3), np.uint8), "fog", 1)
    with pytest.raises(ValueError, match="3 indices for 2 images"):
        corrupt(images, "fog", 1, indices=[0, 1, 2])
    with pytest.raises(ValueError, match="seed=-1"):
        corrupt(images, "fog", 1, seed=-1)
    with pytest.raises(DatasetError, match=r"needs photographs.*'frost_standin'"):
        corrupt(images, "frost", 1)
    assert corrupt(images[:0], "fog", 1).shape == (0, 32, 32, 3)


# Noise: its moments on a grey image, on which nothing is cut off. A deviation of n
# draws is known to within 1/sqrt(2 n), here 0.4 %, and 4 of those are allowed; that
# levels are whole adds a variance of 1/12 and takes 1/2 from the mean.

GREY = 128 / 255


def grey(count=10):
    return np.full((count, 32, 32, 3), 128, np.uint8)


def moments(name, severity):
    levels = corrupt(grey(), name, severity).astype(float)
    return levels.mean() + 0.5 - 128, np.sqrt(levels.var() - 1 / 12) / 255


@every
def test_gaussian_noise_has_its_deviation(severity):
    shift, deviation = moments("gaussian_noise", severity)
    expected = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    assert deviation == pytest.approx(expected, rel=0.016)
    assert abs(shift) < 4 * 255 * expected / np.sqrt(30720)


@every
def test_speckle_noise_is_proportional(severity):
    shift, deviation = moments("speckle_noise", severity)
    expected = GREY * (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1]
    assert deviation == pytest.approx(expected, rel=0.016)
    assert abs(shift) < 4 * 255 * expected / np.sqrt(30720)


@every
def test_shot_noise_is_poisson(severity):
    photons = (500, 250, 100, 75, 50)[severity - 1]
    levels = corrupt(grey(), "shot_noise", severity).astype(float)
    deviation = np.sqrt(GREY / photons)
    assert levels.std() / 255 == pytest.approx(deviation, rel=0.02)
    counts = np.unique(np.rint((levels + 0.5) / 255 * photons))
    possible = np.floor(np.minimum(counts / photons, 1) * 255)
    assert set(np.unique(levels)) <= set(possible)
    black = corrupt(np.zeros((1, 32, 32, 3), np.uint8), "shot_noise", severity)
    assert not black.any()


@every
@both
def test_impulse_noise_replaces_its_share(severity, side):
    share = corruptions.parameters("impulse_noise", severity, (side, side))
    n = 10 if side == 32 else 1
    images = np.full((n, side, side, 3), 128, np.uint8)
    levels = corrupt(images, "impulse_noise", severity)
    assert set(np.unique(levels)) == {0, 128, 255}
    for level in (0, 255):
        found = (levels == level).mean()
        error = np.sqrt(share / 2 * (1 - share / 2) / levels.size)
        assert abs(found - share / 2) < 4 * error


# Colour, against the standard library and the formulas written out


def hsv(images, change):
    out = np.empty(images.shape)
    for index in np.ndindex(images.shape[:3]):
        out[index] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*images[index])))
    return truncated(out)


@pytest.mark.parametrize("severity", [1, 5])
@both
def test_brightness_is_added_to_the_value(severity, side):
    c = corruptions.parameters("brightness", severity, (side, side))
    images = np.tile(some(1), (1, side // 32, side // 32, 1))
    images[0, 0, :2] = [[0], [200]]
    expected = hsv(images[:, :32] / 255, lambda h, s, v: (h, s, min(v + c, 1)))
    np.testing.assert_array_equal(
        corrupt(images, "brightness", severity)[:, :32], expected
    )


@every
def test_saturation_is_scaled_and_shifted(severity):
    a, b = corruptions.parameters("saturate", severity, (32, 32))
    images = some(1).copy()
    images[0, 0, :3] = [[0] * 3, [200] * 3, [255] * 3]
    expected = hsv(images / 255, lambda h, s, v: (h, min(a * s + b, 1), v))
    np.testing.assert_array_equal(corrupt(images, "saturate", severity), expected)


@every
@both
def test_contrast_keeps_the_mean_of_each_channel(severity, side):
    c = corruptions.parameters("contrast", severity, (side, side))
    images = some(2, side, side)
    expected = np.empty(images.shape)
    for n in range(2):
        for channel in range(3):
            x = images[n, ..., channel] / 255
            expected[n, ..., channel] = c * x + (1 - c) * x.mean()
    np.testing.assert_array_equal(
        corrupt(images, "contrast", severity), truncated(expected)
    )


@every
@both
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pillow_makes_jpeg_and_pixels(severity, side, mode):
    images = some(2, side, side, len(mode) if mode == "RGB" else 1)
    quality, factor = (
        corruptions.parameters(name, severity, (side, side))
        for name in ("jpeg_compression", "pixelate")
    )
    for name in ("jpeg_compression", "pixelate"):
        out = corrupt(images, name, severity)
        for image, found in zip(images, out, strict=True):
            picture = Image.fromarray(image if mode == "RGB" else image[..., 0])
            if name == "pixelate":
                small = int(side * factor)
                picture = picture.resize((small, small), Image.Resampling.BOX)
                picture = picture.resize((side, side), Image.Resampling.BOX)
            else:
                file = io.BytesIO()
                picture.save(file, "JPEG", quality=quality)
                picture = Image.open(file)
            np.testing.assert_array_equal(
                found, np.asarray(picture).reshape(found.shape)
            )


# Blurs


@every
@both
def test_gaussian_blur_is_scipys(severity, side):
    sigma = corruptions.parameters("gaussian_blur", severity, (side, side))
    images = some(2, side, side)
    blurred = ndimage.gaussian_filter(
        images / 255, (0, sigma, sigma, 0), mode="nearest"
    )
    np.testing.assert_array_equal(
        corrupt(images, "gaussian_blur", severity), truncated(blurred)
    )


def lens(radius, sigma):
    """The disk, pixel by pixel, and its smoothing as a plain convolution."""
    reach = max(radius, 8)
    pixels = [
        (i, j)
        for i in range(-reach, reach + 1)
        for j in range(-reach, reach + 1)
        if i * i + j * j <= radius * radius
    ]
    taps = range(-2, 3) if radius > 8 else range(-1, 2)
    weights = {t: np.exp(-t * t / (2 * sigma**2)) for t in taps}
    total = sum(weights.values())
    kernel = np.zeros((2 * reach + 5, 2 * reach + 5))
    for i, j in pixels:
        for a in taps:
            for b in taps:
                share = weights[a] * weights[b] / total**2 / len(pixels)
                kernel[i + a + reach + 2, j + b + reach + 2] += share
    return kernel


@pytest.mark.parametrize("c", [(0.3, 0.4), (1, 0.2), (1.5, 0.1), (3, 0.1), (6, 0.5)])
def test_the_disk_is_a_smoothed_disk(c):
    kernel = blur.disk(*c)
    expected = lens(*c)
    cut = (len(expected) - len(kernel)) // 2
    inner = expected[cut : len(expected) - cut, cut : len(expected) - cut]
    np.testing.assert_allclose(kernel, inner, atol=1e-12)
    assert kernel.sum() == pytest.approx(1, abs=1e-9)


def test_the_largest_disks_are_mirrored_at_the_end_of_their_grid():
    # 1.3 % and 1.1 % more light than came in, as in the published code.
    assert blur.disk(8, 0.5).sum() == pytest.approx(1.01297, abs=1e-5)
    assert blur.disk(10, 0.5).sum() == pytest.approx(1.01079, abs=1e-5)


@pytest.mark.parametrize(("side", "severity"), [(32, 3), (32, 5), (128, 1), (128, 4)])
def test_defocus_is_a_mirrored_correlation(side, severity):
    images = some(1, side, side)
    kernel = blur.disk(*corruptions.parameters("defocus_blur", severity, (side, side)))
    expected = [
        ndimage.correlate(images[0, ..., channel] / 255, kernel, mode="mirror")
        for channel in range(3)
    ]
    np.testing.assert_array_equal(
        corrupt(images, "defocus_blur", severity)[0], truncated(np.stack(expected, -1))
    )


@pytest.mark.parametrize(("side", "severity"), [(32, 2), (32, 5), (128, 2), (128, 4)])
def test_glass_moves_pixels_one_after_another(side, severity):
    sigma, reach, passes = corruptions.parameters("glass_blur", severity, (side, side))
    image = some(1, side, side)[0]
    (rng,) = generators("glass_blur", severity, 1)
    inner = side - 2 * reach
    shifts = rng.integers(-reach, reach, (passes, 2, inner, inner))
    smooth = functools.partial(
        ndimage.gaussian_filter, sigma=(sigma, sigma, 0), mode="nearest"
    )
    x = truncated(smooth(image / 255))
    for turn in range(passes):
        for h in range(side - reach, reach, -1):
            for w in range(side - reach, reach, -1):
                dy, dx = shifts[turn, :, h - reach - 1, w - reach - 1]
                x[h, w] = x[h + dy, w + dx]
    expected = truncated(smooth(x / 255))
    np.testing.assert_array_equal(
        corrupt(image[None], "glass_blur", severity)[0], expected
    )


def test_motion_is_a_weighted_line():
    x = np.zeros((2, 41, 41, 1))
    x[:, 20, 20] = 1
    angles = np.array([0.0, 30.0])
    out = blur.motion(x, angles, 10, 4)
    weights = np.exp(-(np.arange(21) ** 2) / 32)
    weights = np.rint(255 * weights / weights.sum())
    # At 0 degrees a pixel takes from its right: light appears on the left.
    np.testing.assert_allclose(255 * out[0, 20, 20::-1, 0], weights, atol=1e-9)
    np.testing.assert_allclose(255 * out[0].sum(), weights.sum(), atol=1e-9)
    rows, columns, _ = np.nonzero(out[1])
    across = (rows - 20) * np.cos(np.pi / 6) - (columns - 20) * np.sin(np.pi / 6)
    assert np.abs(across).max() <= np.sqrt(0.5)
    assert len(rows) == np.count_nonzero(weights)
    flat = blur.motion(np.full((1, 9, 9, 3), 77 / 255), angles[:1], 9, 2.5)
    np.testing.assert_allclose(flat, 77 / 255, atol=1e-12)


@every
def test_motion_blur_is_within_45_degrees(severity):
    angles = [rng.uniform(-45, 45) for rng in generators("motion_blur", severity, 3)]
    c = corruptions.parameters("motion_blur", severity, (32, 32))
    images = some(3)
    expected = blur.motion(images / 255, np.array(angles), *c)
    np.testing.assert_array_equal(
        corrupt(images, "motion_blur", severity), truncated(expected)
    )


@pytest.mark.parametrize(
    ("side", "severity", "last", "count"),
    [(32, 1, 1.06, 7), (32, 5, 1.25, 26), (128, 3, 1.20, 11), (128, 5, 1.30, 11)],
)
def test_zoom_blur_is_the_mean_of_enlarged_middles(side, severity, last, count):
    image = some(1, side, side)[0] / 255
    stop, step = corruptions.parameters("zoom_blur", severity, (side, side))
    factors = np.arange(1, stop, step)
    assert (len(factors), factors[-1]) == (count, pytest.approx(last))
    total = image.copy()
    for factor in factors:
        part = int(np.ceil(side / factor))
        first = (side - part) // 2
        middle = image[first : first + part, first : first + part]
        large = ndimage.zoom(middle, (factor, factor, 1), order=1)
        cut = (len(large) - side) // 2
        total += large[cut : cut + side, cut : cut + side]
    found = corrupt(truncated(image)[None], "zoom_blur", severity)[0]
    np.testing.assert_array_equal(found, truncated(total / (count + 1)))


@pytest.mark.parametrize(("side", "severity"), [(32, 1), (32, 4), (128, 2), (128, 3)])
def test_elastic_is_an_affine_map_and_a_smooth_field(side, severity):
    (rng,) = generators("elastic_transform", severity, 1)
    alpha, sigma, reach = (
        c * side
        for c in corruptions.parameters("elastic_transform", severity, (side, side))
    )
    image = some(1, side, side)[0]
    third, half = side // 3, side // 2
    corners = [(half + third, half + third), (half + third, half - third)]
    corners = np.array([*corners, (half - third, half - third)], float)
    moved = corners + rng.uniform(-reach, reach, (3, 2))
    dx, dy = rng.uniform(-1, 1, (2, side, side))
    # The 2 x 3 matrix in (x, y) that takes each corner to where it moved.
    there = np.linalg.solve(np.c_[corners, np.ones(3)], moved).T
    back = np.linalg.inv(np.vstack([there, [0, 0, 1]]))
    y, x = np.mgrid[:side, :side]
    u, v, _ = np.tensordot(back, np.stack([x, y, np.ones_like(x)]), 1)
    warped = [
        ndimage.map_coordinates(image[..., k] / 255, [v, u], order=1, mode="mirror")
        for k in range(3)
    ]
    dx, dy = (
        ndimage.gaussian_filter(f, sigma, mode="reflect", truncate=3) * alpha
        for f in (dx, dy)
    )
    expected = [
        ndimage.map_coordinates(w, [y + dy, x + dx], order=1, mode="reflect")
        for w in warped
    ]
    found = corrupt(image[None], "elastic_transform", severity)[0]
    np.testing.assert_array_equal(found, truncated(np.stack(expected, -1)))


# Weather


def diamond_square(noise, size, decay):
    """Point by point, with the noise in the order in which the points are set."""
    field = np.zeros((size, size))
    draws = iter(noise)
    step, amplitude = size, 100.0

    def put(i, j, around):
        value = sum(field[a % size, b % size] for a, b in around)
        new[i, j] = value / 4 + amplitude**2 * next(draws)

    while step >= 2:
        half = step // 2
        new = field.copy()
        for i in range(half, size, step):
            for j in range(half, size, step):
                put(
                    i, j, [(i + a, j + b) for a in (-half, half) for b in (-half, half)]
                )
        field = new
        new = field.copy()
        for first in (0, half):
            for i in range(first, size, step):
                for j in range(half - first, size, step):
                    beside = [
                        (i - half, j),
                        (i + half, j),
                        (i, j - half),
                        (i, j + half),
                    ]
                    put(i, j, beside)
        field = new
        step, amplitude = half, amplitude / decay
    field -= field.min()
    return field / field.max()


@pytest.mark.parametrize("decay", [3, 1.75])
def test_clouds_are_by_diamonds_and_squares(decay):
    found = weather.plasma(generators("fog", 1, 2), (16, 16), decay)
    for cloud, rng in zip(found, generators("fog", 1, 2), strict=True):
        expected = diamond_square(rng.uniform(-1, 1, 255), 16, decay)
        np.testing.assert_allclose(cloud, expected, atol=1e-12)


def test_fog_keeps_the_brightest_possible_level():
    images = some(3)
    c = corruptions.parameters("fog", 3, (32, 32))
    clouds = weather.plasma(generators("fog", 3, 3), (32, 32), c[1])
    top = images.max((1, 2, 3), keepdims=True) / 255
    expected = (images / 255 + c[0] * clouds[..., None]) * top / (top + c[0])
    np.testing.assert_array_equal(corrupt(images, "fog", 3), truncated(expected))


def test_snow_is_pale_and_falls_on_both_sides():
    black = np.zeros((6, 32, 32, 3), np.uint8)
    out = corrupt(black, "snow", 5).astype(int)
    pale = np.floor(255 * 0.2 * 0.5)
    assert out.min() >= pale
    assert (out[..., 0] == out[..., 1]).all()
    # The flakes and the flakes turned by 180 degrees: the sum is symmetric.
    np.testing.assert_array_equal(out, out[:, ::-1, ::-1])
    assert (out > pale + 40).any((1, 2, 3)).all()


def test_mud_covers_and_water_shines():
    images = np.full((40, 32, 32, 3), 100, np.uint8)
    mud = corrupt(images, "spatter", 5)
    spots = (mud != 100).any(-1)
    assert 0.03 < spots.mean() < 0.12
    # Mud is at least 0.8 opaque where it is.
    np.testing.assert_allclose(
        mud[spots], np.broadcast_to([63, 42, 20], mud[spots].shape), atol=20
    )
    water = corrupt(images, "spatter", 3).astype(int)
    wet = (water != 100).any(-1)
    assert (water[wet] >= 100).all()
    # Pale turquoise: 175, 238, 238, cut off to whole levels.
    added = water[wet] - 100
    np.testing.assert_allclose(added[:, 0], added[:, 1] * 175 / 238, atol=1)
    np.testing.assert_array_equal(added[:, 1], added[:, 2])


def test_edges_are_the_border_of_a_square():
    x = np.zeros((20, 20))
    x[6:14, 5:15] = 200
    edges = weather._edges(x, 50, 150)
    inner = np.zeros((20, 20), bool)
    inner[8:12, 7:13] = True
    outer = np.zeros((20, 20), bool)
    outer[5:15, 4:16] = True
    assert not edges[inner].any()
    assert not edges[~outer].any()
    # Closed: what is inside does not reach what is outside.
    outside = np.zeros((20, 20), bool)
    outside[0, 0] = True
    outside = ndimage.binary_propagation(outside, mask=~edges)
    assert not outside[10, 10]
    # A step of 24 has a gradient of 96, and of 144 at a corner: weak, and alone.
    assert not weather._edges(x * 0.12, 50, 150).any()


def test_levels_are_spread_evenly():
    levels = np.repeat(np.array([3, 7, 20, 200]), [4, 2, 1, 1]).reshape(2, 4)
    expected = np.array([[0, 0, 0, 0], [128, 128, 191, 255]])
    np.testing.assert_array_equal(weather._equalized(levels), expected)
    np.testing.assert_array_equal(weather._equalized(np.full((2, 2), 9)), 9)


# Frost


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = rng.integers(0, 256, (200, 240, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "note.txt").write_text("not a picture")
    return tmp_path


@pytest.mark.parametrize(("side", "every_"), [(32, 5), (128, 1)])
def test_frost_is_a_part_of_a_photograph(photographs, side, every_):
    images = some(6, side, side)
    a, b = corruptions.parameters("frost", 3, (side, side))
    out = corrupt(images, "frost", 3, frost_dir=photographs)
    pictures = [np.asarray(Image.open(photographs / n)) for n in ("a.png", "b.png")]
    pictures = [p[every_ // 2 :: every_, every_ // 2 :: every_] for p in pictures]
    used = set()
    for image, found, rng in zip(images, out, generators("frost", 3, 6), strict=True):
        which = int(rng.integers(2))
        i, j = (
            int(rng.integers(pictures[which].shape[k] - side + 1)) for k in range(2)
        )
        used.add(which)
        part = pictures[which][i : i + side, j : j + side]
        np.testing.assert_array_equal(found, truncated((a * image + b * part) / 255.0))
    assert used == {0, 1}


def test_frost_without_photographs_of_its_size_is_an_error(photographs):
    with pytest.raises(DatasetError, match=r"no pictures.*256 x 256"):
        corrupt(some(1, 256, 256), "frost", 1, frost_dir=photographs)
    with pytest.raises(DatasetError, match="cannot be read"):
        corrupt(some(1), "frost", 1, frost_dir=photographs / "none")
    (photographs / "c.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"c\.png is not a picture .* no header"):
        corrupt(some(1, 30, 30), "frost", 1, frost_dir=photographs / ".")


def test_the_stand_in_adds_to_a_darker_image():
    images = np.full((50, 32, 32, 3), 100, np.uint8)
    for severity, (a, b) in enumerate(corruptions.CORRUPTIONS["frost"].cifar, 1):
        layer = (corrupt(images, corruptions.STANDIN, severity) - a * 100) / b / 255
        # A bluish grey, as bright as the published photographs are: 0.63 on average.
        assert layer.mean() == pytest.approx(0.63, abs=0.06)
        red, green, blue = layer.mean((0, 1, 2))
        assert red < green < blue


# JPEG


def rms(x):
    return np.sqrt(np.mean((x - 128.0) ** 2))


def test_imagenet_c_is_saved_as_jpeg_of_quality_85():
    """Gray 128 with noise of deviation 0.18: RMS 45 levels before, 33 after."""
    gray = np.full((2, 224, 224, 3), 128, np.uint8)
    before = corrupt(gray, "gaussian_noise", 3)
    after = corruptions.corrupt(gray, "gaussian_noise", 3)
    for image, found in zip(before, after, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=85, optimize=True)
        with Image.open(file) as wanted:
            np.testing.assert_array_equal(found, np.asarray(wanted))
    assert rms(before) == pytest.approx(45.6, abs=0.3)
    assert rms(after) == pytest.approx(33.2, abs=0.3)
    # The most of it is that color is kept for 2 x 2 pixels together.
    ycc = np.stack([np.asarray(Image.fromarray(x).convert("YCbCr")) for x in before])
    color = ycc[..., 1:].reshape(2, 112, 2, 112, 2, 2).mean((2, 4), keepdims=True) - 128
    cb, cr = np.moveaxis(np.broadcast_to(color, (2, 112, 2, 112, 2, 2)), -1, 0)
    cb, cr = (x.reshape(2, 224, 224) for x in (cb, cr))
    y = ycc[..., 0]
    rgb = y + 1.402 * cr, y - 0.344 * cb - 0.714 * cr, y + 1.772 * cb
    assert rms(np.clip(rgb, 0, 255)) == pytest.approx(rms(after), rel=0.07)


def test_gray_images_are_saved_as_jpeg_too_and_small_ones_are_not():
    large, small = some(1, 128, 130, 1), some(2)
    found = corruptions.corrupt(large, "contrast", 1)
    file = io.BytesIO()
    before = corrupt(large, "contrast", 1)[0, ..., 0]
    Image.fromarray(before).save(file, "JPEG", quality=85)
    with Image.open(file) as wanted:
        np.testing.assert_array_equal(found[0, ..., 0], np.asarray(wanted))
    assert np.any(found != before[..., None])
    np.testing.assert_array_equal(
        corruptions.corrupt(small, "contrast", 1), corrupt(small, "contrast", 1)
    )
