"""Resized crops against Pillow's crop and resize, with the drawn windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from zosam_jax.data import augment

HEIGHT, WIDTH = 30, 41
SMOOTH = np.add.outer(np.linspace(0, 120, HEIGHT), np.linspace(0, 90, WIDTH))
NOISE = np.random.default_rng(0).integers(0, 46, (HEIGHT, WIDTH, 3))
IMAGE = (SMOOTH[..., None] + NOISE).astype(np.uint8)

resized_crop = jax.jit(augment.resized_crop, static_argnums=(2, 3))
parameters = jax.jit(augment.resized_crop_parameters, static_argnums=(1, 2, 3))
evaluation_crop = jax.jit(augment.evaluation_crop, static_argnums=(1, 2, 3))


def pillow(image, size, interpolation, box=None):
    """Across, then down, in two calls: since 13, Pillow takes the cheaper order."""
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture = picture.crop(box) if box else picture
    resample = getattr(Image, interpolation.upper())
    across = picture.resize((size[1], picture.height), resample)
    result = np.asarray(across.resize((size[1], size[0]), resample))
    return result.reshape(*size, image.shape[-1]).astype(int)


# Pillow's weights are multiples of 2^-22, ours float32: a value half way between two
# levels may be rounded to either. A bilinear one is a multiple of 1 / (2 side), so that
# about one in 2 side is of that kind, in each of the two passes; few bicubic ones are.
def assert_pillows(ours, theirs, interpolation):
    off = np.abs(np.asarray(ours, int) - theirs)
    assert off.max() <= 1
    assert np.mean(off > 0) < (0.03 if interpolation == "bilinear" else 0.005)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(13, 17), (23, 31), (47, 61)])
def test_resized_crop_is_pillows_crop_and_resize(size, channels, interpolation):
    image = IMAGE[..., :channels]
    batch = np.broadcast_to(image, (24, *image.shape))
    box = parameters(jax.random.key(0), batch.shape, (0.08, 1.0), (3 / 4, 4 / 3))
    result = resized_crop(batch, box, size, interpolation)
    assert result.dtype == jnp.uint8
    for ours, top, left, rows, columns in zip(result, *box, strict=True):
        window = tuple(int(x) for x in (left, top, left + columns, top + rows))
        assert_pillows(ours, pillow(image, size, interpolation, window), interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_window_of_the_size_of_the_result_is_only_cut_out(interpolation):
    box = augment.Box(*(jnp.array([x]) for x in (3, 5, 20, 16)))
    result = resized_crop(IMAGE[None], box, (20, 16), interpolation)
    np.testing.assert_array_equal(result[0], IMAGE[3:23, 5:21])


def test_a_window_of_one_pixel_becomes_its_level():
    box = augment.Box(*(jnp.array([x]) for x in (3, 5, 1, 1)))
    result = resized_crop(IMAGE[None], box, (4, 5), "bicubic")
    np.testing.assert_array_equal(result[0], np.broadcast_to(IMAGE[3, 5], (4, 5, 3)))


def test_windows_have_torchvisions_areas_ratios_and_places():
    n, height, width = 4000, 3000, 4000
    least, most = 0.08, 0.5  # all of them fit at the first attempt
    box = parameters(
        jax.random.key(1), (n, height, width, 3), (least, most), (3 / 4, 4 / 3)
    )
    top, left, rows, columns = (np.asarray(x) for x in box)
    assert min(top.min(), left.min()) >= 0
    assert np.all((top + rows <= height) & (left + columns <= width))
    area = stats.uniform(least, most - least)
    assert stats.kstest(rows * columns / height / width, area.cdf).pvalue > 0.01
    bound = np.log(4 / 3)
    ratio = stats.uniform(-bound, 2 * bound)
    assert stats.kstest(np.log(columns / rows), ratio.cdf).pvalue > 0.01
    for first, length, side in ((top, rows, height), (left, columns, width)):
        place = (first + 0.5) / (side - length + 1)
        assert stats.kstest(place, "uniform").pvalue > 0.01


def published_window(rng, height, width, area, aspect):
    """torchvision's loop of ten attempts, and its way out: top, left, rows, columns."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        columns, rows = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top = rng.integers(height - rows + 1)
            return top, rng.integers(width - columns + 1), rows, columns
    if width / height < aspect[0]:
        rows, columns = round(width / aspect[0]), width
    elif width / height > aspect[1]:
        rows, columns = height, round(height * aspect[1])
    else:
        rows, columns = height, width
    return (height - rows) // 2, (width - columns) // 2, rows, columns


@pytest.mark.parametrize(("height", "width"), [(40, 40), (25, 60), (60, 25)])
def test_windows_that_seldom_fit_are_drawn_as_by_torchvisions_loop(height, width):
    """Three attempts in ten fail on a square, and most on the others."""
    options = (0.4, 1.0), (3 / 4, 4 / 3)
    rng = np.random.default_rng(0)
    published = [published_window(rng, height, width, *options) for _ in range(6000)]
    drawn = parameters(jax.random.key(0), (3000, height, width, 3), *options)
    for ours, theirs in zip(drawn, np.array(published).T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [(10, 40, (0, 13, 10, 13)), (40, 10, (13, 0, 13, 10)), (10, 11, (0, 0, 10, 11))],
)
def test_without_a_window_that_fits_it_is_the_middle(height, width, window):
    """torchvision's: whole where its ratio is allowed, else as long as that allows."""
    box = parameters(
        jax.random.key(0), (3, height, width, 3), (3.9, 4.0), (3 / 4, 4 / 3)
    )
    np.testing.assert_array_equal(np.array(box).T, [window] * 3)


@pytest.mark.parametrize("shape", [(30, 41, 3), (41, 30, 1), (33, 33, 3)])
@pytest.mark.parametrize(("size", "share"), [(16, 0.875), (28, 1.0), (45, 0.9)])
def test_evaluation_crop_is_torchvisions_resize_and_middle(shape, size, share):
    image = np.resize(IMAGE, shape)
    height, width, _ = shape
    shorter = int(size / share)
    resized = [shorter * x // min(height, width) for x in (height, width)]
    whole = pillow(image, resized, "bicubic")
    top, left = (round((x - size) / 2) for x in resized)
    middle = whole[top : top + size, left : left + size]
    result = evaluation_crop(image[None], size, share, "bicubic")
    assert result.dtype == jnp.uint8
    assert_pillows(result[0], middle, "bicubic")


def test_evaluation_crop_of_the_same_size_changes_nothing():
    square = IMAGE[:, :HEIGHT][None]
    result = evaluation_crop(square, HEIGHT, 1.0, "bicubic")
    np.testing.assert_array_equal(result, square)


def test_a_single_pixel_is_cropped():
    image = np.full((2, 1, 1, 1), 9, np.uint8)
    box = parameters(jax.random.key(0), image.shape, (0.08, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(np.array(box).T, [[0, 0, 1, 1]] * 2)
    assert np.all(np.asarray(resized_crop(image, box, (3, 2), "bicubic")) == 9)
    assert augment.evaluation_crop(image, 1).shape == (2, 1, 1, 1)


def test_unknown_interpolation_and_share_are_refused():
    box = augment.Box(*(jnp.array([x]) for x in (3, 5, 1, 1)))
    with pytest.raises(ValueError, match="Did you mean 'bicubic'"):
        augment.resized_crop(IMAGE[None], box, (2, 2), "cubic")
    with pytest.raises(ValueError, match=r"share=1\.5"):
        augment.evaluation_crop(IMAGE[None], 8, 1.5)
