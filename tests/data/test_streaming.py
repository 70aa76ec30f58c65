"""The order, the parts and the ends of streamed sets."""

import dataclasses
import io
import itertools
import math
import os
import sys

import numpy as np
import pytest
import small_sets
from PIL import Image

from zosam_jax import data
from zosam_jax.data import encoded_images, streaming
from zosam_jax.data.sets import class_folders

COUNT, BATCH, SIDE = 23, 4, 8
STEPS = COUNT // BATCH


@pytest.fixture(scope="module")
def solid(tmp_path_factory):
    """23 training images, each of its own colour and size, and 7 test images."""
    root = tmp_path_factory.mktemp("solid")
    files = {
        f"train/{'ab'[i % 2]}/{i:02d}.png": small_sets.solid(i, 20 + i, 30)
        for i in range(COUNT)
    }
    files |= {
        f"test/{'ab'[i % 2]}/{i}.png": small_sets.solid(100 + i, 30, 20 + i)
        for i in range(7)
    }
    return data.load(f"folder:{small_sets.write(root, files)}", image_size=SIDE)


@pytest.fixture(scope="module")
def textured(tmp_path_factory):
    """JPEGs of which every part differs: the cuts show."""
    root = tmp_path_factory.mktemp("textured")
    files = {
        f"{split}/a/{i}.jpg": small_sets.texture(i, 50 + 7 * i, 90 - 5 * i)
        for split in ("train", "test")
        for i in range(9)
    }
    return data.load(f"folder:{small_sets.write(root, files)}", image_size=24)


def take(found, count, *args, **options):
    batches = found.batches(*args, **options)
    result = [tuple(x.copy() for x in b) for b in itertools.islice(batches, count)]
    batches.close()
    return result


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_an_epoch_is_a_permutation_without_its_last_batch(solid):
    epochs = []
    found = take(solid, 3 * STEPS, 5, BATCH)
    for start in range(0, 3 * STEPS, STEPS):
        shown = [small_sets.numbers(x) for x, _ in found[start : start + STEPS]]
        epochs.append(tuple(np.concatenate(shown)))
        assert len(set(epochs[-1])) == STEPS * BATCH == 20
    assert len(set(epochs)) == 3
    for shown, labels in ((small_sets.numbers(x), y) for x, y in found):
        np.testing.assert_array_equal(labels, shown % 2)
        assert labels.dtype == np.int32


def test_every_image_comes_to_every_place():
    """4 images in 24 orders: each as often as another, to five deviations."""
    orders = [tuple(streaming._order(s, e, 4)) for s in range(60) for e in range(40)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert np.abs(counts - 100).max() < 5 * math.sqrt(100)


def test_a_step_is_the_same_from_wherever_one_starts(textured):
    whole = take(textured, 13, 3, BATCH)  # 2 steps an epoch
    for start in (1, 2, 5, 12):
        same(take(textured, 13 - start, 3, BATCH, start), whole[start:])


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_a_step_is_the_same_with_any_number_of_threads(textured, monkeypatch, threads):
    wanted = [streaming._train_batch(textured, 3, BATCH, 0, 1, s) for s in range(2, 9)]
    monkeypatch.setattr(streaming, "_THREADS", threads)
    monkeypatch.setattr(streaming.os, "cpu_count", lambda: 8)
    same(take(textured, 7, 3, BATCH, 2), wanted)


def test_a_step_is_the_same_with_several_processes(textured):
    """One process is tested with a set of TFDS; each takes seconds to start."""
    pytest.importorskip("grain")
    wanted = take(textured, 5, 3, BATCH, 1)
    same(take(textured, 5, 3, BATCH, 1, workers=3), wanted)


def test_the_seed_decides_order_and_parts(textured):
    (first, labels), (other, _) = (take(textured, 1, s, 9)[0] for s in (0, 1))
    assert np.any(first != other)
    assert labels.shape == (9,)
    same(take(textured, 1, -1, 9), take(textured, 1, -1, 9))


def test_the_hosts_share_the_batch(textured):
    wanted = take(textured, 5, 1, 8, 2)
    parts = [take(textured, 5, 1, 8, 2, host=h, hosts=4) for h in range(4)]
    assert {x.shape[0] for part in parts for x, _ in part} == {2}
    joined = [
        tuple(np.concatenate(arrays) for arrays in zip(*step, strict=True))
        for step in zip(*parts, strict=True)
    ]
    same(joined, wanted)


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("batch", [2, 7, 8])
def test_every_test_image_is_shown_once(solid, batch, hosts):
    if batch % hosts:
        batch += 1
    shown = []
    for host in range(hosts):
        for x, y, count in solid.evaluation_batches(batch, host=host, hosts=hosts):
            assert x.shape == (batch // hosts, SIDE, SIDE, 3)
            assert not x[count:].any()
            assert not y[count:].any()
            np.testing.assert_array_equal(y[:count], small_sets.numbers(x[:count]) % 2)
            shown += small_sets.numbers(x[:count]).tolist()
    assert sorted(shown) == list(range(100, 107))


def test_test_images_in_a_process(solid):
    pytest.importorskip("grain")
    wanted = list(solid.evaluation_batches(3))
    found = list(solid.evaluation_batches(3, workers=1))
    assert [count for _, _, count in found] == [3, 3, 1]
    same(found, wanted)


def opened(source, row):
    with Image.open(io.BytesIO(source.read([row])[0][0])) as image:
        return image.convert("RGB")


def test_test_images_are_pillows_pixels(textured):
    """The shorter side to 24 / 0.875, then the middle."""
    assert textured.resize == 27
    ((x, _, _),) = textured.evaluation_batches(9)
    for row in range(9):
        image = opened(textured.encoded.test, row)
        w, h = image.size
        w, h = (27, 27 * h // w) if w < h else (27 * w // h, 27)
        image = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR))
        top, left = round((h - 24) / 2), round((w - 24) / 2)
        np.testing.assert_array_equal(x[row], image[top : top + 24, left : left + 24])


def test_training_images_are_parts_of_pillows_pixels(textured):
    """The published rule, on the draws of the seed, the epoch and the image."""
    epochs = take(textured, 2, 7, 9)
    rows = [(epoch, row) for epoch in (0, 1) for row in streaming._order(7, epoch, 9)]
    views = np.concatenate([x for x, _ in epochs])
    for shown, (epoch, row) in zip(views, rows, strict=True):
        image = opened(textured.encoded.train, row)
        raw = streaming._bits(7, streaming._CROP, epoch, int(row)).random_raw(40)
        w, h = image.size
        for draws in (raw / 2.0**64).reshape(10, 4):
            a, r, u, v = draws
            area = w * h * (0.08 + 0.92 * a)
            ratio = (3 / 4) ** (1 - r) * (4 / 3) ** r
            pw, ph = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if pw <= w and ph <= h:
                break
        left, top = int(u * (w - pw + 1)), int(v * (h - ph + 1))
        part = image.crop((left, top, left + pw, top + ph))
        wanted = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(shown, wanted)


def test_parts_have_the_published_areas_and_ratios():
    """Red says the column, green the row: the ends of a part are read off it."""
    side = 200
    ramp = np.arange(side, dtype=np.uint8)
    array = np.zeros((side, side, 3), np.uint8)
    array[..., 0], array[..., 1] = ramp, ramp[:, None]
    image = Image.fromarray(array)
    draws = np.random.default_rng(0).random((400, encoded_images.DRAWS))
    parts = np.stack(
        [
            encoded_images.pixels(encoded_images.random_resized_crop(image, d, side))
            for d in draws
        ]
    ).astype(int)
    # Enlarging by bilinear interpolation keeps the values of the ends.
    width = parts[:, 0, -1, 0] - parts[:, 0, 0, 0] + 1
    height = parts[:, -1, 0, 1] - parts[:, 0, 0, 1] + 1
    area, ratio = width * height / side**2, np.log(width / height)
    # Sides are whole pixels, of at least sqrt(0.08 * 0.75) * 200 = 49.
    assert 0.08 * (1 - 2 / 49) < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert np.abs(ratio).max() < math.log(4 / 3) + 2 / 49
    # Uniform before the largest are rejected: the small half is not.
    small = area[area < 0.54]
    assert abs(np.mean(small) - 0.31) < 5 * 0.46 / math.sqrt(12 * len(small))
    assert abs(np.mean(ratio)) < 5 * ratio.std() / math.sqrt(400)


@pytest.mark.parametrize(("width", "height"), [(400, 4), (3, 300)])
def test_a_narrow_image_shows_its_middle(width, height):
    ramp = np.zeros((height, width, 3), np.uint8)
    middle = (
        slice(height // 2 - 2, height // 2 + 2),
        slice(max(width // 2 - 2, 0), width // 2 + 2),
    )
    ramp[middle] = 255
    draws = np.zeros(encoded_images.DRAWS)  # the whole height or width never fits
    draws[0::4] = 0.9
    part = encoded_images.random_resized_crop(Image.fromarray(ramp), draws, 8)
    assert np.asarray(part).mean() > 200


def test_the_mean_is_the_training_images(textured):
    blank = np.concatenate(
        [
            np.asarray(textured.center(opened(textured.encoded.train, row))).reshape(
                -1, 3
            )
            for row in range(9)
        ]
    )
    np.testing.assert_allclose(textured.mean, blank.mean(0) / 255, rtol=1e-12)
    np.testing.assert_allclose(textured.std, blank.std(0) / 255, rtol=1e-12)


def test_a_broken_image_stops_the_processes(tmp_path):
    pytest.importorskip("grain")
    files = {f"a/{i}.jpg": small_sets.texture(i, 40 + i, 40) for i in range(9)}
    found = data.load(f"folder:{small_sets.write(tmp_path, files)}", image_size=8)
    small_sets.write(tmp_path, {"a/3.jpg": files["a/3.jpg"][:-200]})
    with pytest.raises(data.DatasetError, match=r"a/3.jpg cannot be used.*trunc"):
        take(found, 4, 0, 2, workers=1)


class Deadly(class_folders.Files):
    """Files whose reader ends."""

    def read(self, rows):
        os._exit(3)


def test_a_process_that_ends_is_reported(solid):
    pytest.importorskip("grain")
    train = Deadly(solid.encoded.train.paths, solid.encoded.train.labels)
    found = dataclasses.replace(
        solid, encoded=dataclasses.replace(solid.encoded, train=train)
    )
    with pytest.raises(data.DatasetError, match=r"reads images ended .*code 3.*memory"):
        take(found, 1, 0, 2, workers=1)


def test_without_grain_there_are_no_processes(solid, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(data.DatasetError, match=r"pip install 'grain>=0\.2\.18'"):
        take(solid, 1, 0, 2, workers=1)
    assert len(take(solid, 1, 0, 2)) == 1


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 24), {}, "batch_size=24 is more than the 23 training images"),
        ((0, 4), {"hosts": 3}, "batch_size=4 must be a multiple of hosts=3"),
        ((0, 4), {"hosts": 2, "host": 2}, "host=2 must be less than hosts=2"),
        ((0, 4, -1), {}, "start_step=-1 must be an integer >= 0"),
        ((0, 4), {"workers": -1}, "workers=-1 must be an integer >= 0"),
    ],
)
def test_arguments_are_checked_at_the_call(solid, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        solid.batches(*arguments, **options)


def test_the_window_has_the_least_area_that_is_chosen(textured):
    """A least area of 1 leaves the largest windows that fit; None, the center crop."""
    whole = dataclasses.replace(textured, least_area=1.0)
    draws = np.random.default_rng(0).random((50, encoded_images.DRAWS))
    image = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (100, 1)))
    for least in (0.3, 0.9):
        for draw in draws:
            part = np.asarray(
                encoded_images.random_resized_crop(image, draw, 100, least)
            ).astype(int)
            width = part[0, -1] - part[0, 0] + 1
            # The other side is at most 100 pixels.
            assert width * 100 >= least * 100 * 100 - 100
    assert np.any(take(whole, 1, 3, 9)[0][0] != take(textured, 1, 3, 9)[0][0])
    plain = dataclasses.replace(textured, least_area=None)
    for epoch in (0, 1):
        found, _ = take(plain, 2, 3, 9)[epoch]
        order = streaming._order(3, epoch, 9)
        for pixels, row in zip(found, order, strict=True):
            image = textured.center(opened(textured.encoded.train, row))
            np.testing.assert_array_equal(pixels, np.asarray(image))
