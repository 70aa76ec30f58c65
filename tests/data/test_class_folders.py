"""Folders of images: which files, which classes, which split."""

import dataclasses
import io
import os

import numpy as np
import pytest
import small_sets
from PIL import Image

from zosam_jax import data
from zosam_jax.data import in_memory
from zosam_jax.data.sets import class_folders

solid = small_sets.solid


def load(root, **options):
    return data.load(f"folder:{root}", **options)


def test_train_and_validation_folders(tmp_path):
    files = {f"train/cat/{i}.png": solid(i) for i in range(4)}
    files |= {f"train/ant/{i}.PNG": solid(10 + i) for i in range(3)}
    files |= {"val/ant/a.png": solid(20), "val/cat/deeper/b.png": solid(21)}
    files |= {"train/cat/README.txt": b"", "train/.cache/x.png": b"", "labels.csv": b""}
    found = load(small_sets.write(tmp_path, files))
    assert isinstance(found, data.Dataset)
    assert found.class_names == ("ant", "cat")
    assert list(small_sets.numbers(found.train_images)) == [10, 11, 12, 0, 1, 2, 3]
    assert list(found.train_labels) == [0, 0, 0, 1, 1, 1, 1]
    assert list(small_sets.numbers(found.test_images)) == [20, 21]
    assert list(found.test_labels) == [0, 1]
    assert (found.image_shape, found.crop_padding, found.flip) == ((20, 20, 3), 2, True)


def test_a_fifth_of_every_class_is_held_out(tmp_path):
    files = {f"a/{i:02d}.png": solid(i) for i in range(11)}
    files |= {f"b/{i:02d}.png": solid(100 + i) for i in range(4)}
    found = load(small_sets.write(tmp_path, files))
    assert list(small_sets.numbers(found.test_images)) == [4, 9]
    shown = list(small_sets.numbers(found.train_images))
    assert shown == [0, 1, 2, 3, 5, 6, 7, 8, 10, 100, 101, 102, 103]


def test_images_of_many_sizes_are_streamed(tmp_path):
    files = {f"a/{i}.jpg": solid(i, 20 + i, 20, "JPEG") for i in range(5)}
    small_sets.write(tmp_path, files)
    found = load(tmp_path)
    assert isinstance(found, data.Streamed)
    assert (found.image_shape, found.resize) == ((224, 224, 3), 256)
    assert load(tmp_path, image_size=32).image_shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"image_size=100000 must be at most 4,096"):
        load(tmp_path, image_size=100_000)


def test_large_images_of_one_size_are_streamed(tmp_path):
    side = in_memory.SIDE + 1
    small_sets.write(tmp_path, {f"a/{i}.png": solid(i, side, side) for i in range(5)})
    assert load(tmp_path).image_shape == (side, side, 3)
    assert isinstance(load(tmp_path), data.Streamed)


def test_every_kind_of_image_becomes_rgb(tmp_path):
    """Grey, palette, transparent, CMYK: as Pillow converts them."""
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8))
    colour = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    cases = {
        "grey.png": grey,
        "grey.jpg": grey,
        "palette.gif": colour.quantize(16),
        "alpha.png": colour.convert("RGBA"),
        "cmyk.jpg": colour.convert("CMYK"),
        "plain.webp": colour,
        "plain.bmp": colour,
    }
    wanted = {}
    for name, image in cases.items():
        file = io.BytesIO()
        image.save(file, {"jpg": "JPEG"}.get(name[-3:], name.split(".")[1]))
        small_sets.write(
            tmp_path,
            {
                f"train/c/{name}": file.getvalue(),
                "test/c/0.bmp": small_sets.encode(
                    np.zeros((12, 12, 3), np.uint8), "BMP"
                ),
            },
        )
        with Image.open(file) as image:
            wanted[name] = np.asarray(image.convert("RGB"))
    found = load(tmp_path)
    for name, image in zip(sorted(cases), found.train_images, strict=True):
        np.testing.assert_array_equal(image, wanted[name])


def broken(kind):
    whole = small_sets.texture(0, 40, 40)
    return {
        "cut": whole[: len(whole) - 200],
        "text": b"not an image",
        "empty": b"",
        "cut png": solid(1)[:50],
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "cut png"])
def test_a_broken_image_is_named(tmp_path, kind):
    files = {f"a/{i}.jpg": small_sets.texture(i, 40, 40) for i in range(6)}
    small_sets.write(tmp_path, files | {"a/3.jpg": broken(kind)})
    with pytest.raises(data.DatasetError) as error:
        load(tmp_path)
    assert str(tmp_path / "a" / "3.jpg") in str(error.value)
    assert "Replace that file, or remove it." in str(error.value)
    assert "object at" not in str(error.value)


def test_a_broken_image_stops_a_stream(tmp_path):
    files = {f"a/{i}.jpg": small_sets.texture(i, 40 + i, 40) for i in range(6)}
    small_sets.write(tmp_path, files)
    found = load(tmp_path, image_size=16)
    small_sets.write(tmp_path, {"a/3.jpg": broken("cut")})
    with pytest.raises(data.DatasetError, match=r"a/3.jpg cannot be used"):
        list(zip(range(3), found.batches(0, 2), strict=False))
    (tmp_path / "a" / "3.jpg").unlink()
    with pytest.raises(data.DatasetError, match=r"a/3.jpg cannot be read .No such"):
        list(zip(range(3), found.batches(0, 2), strict=False))


FOLDERS = {
    "is not a folder": {},
    r"has no folders; one for each class": {"x.png": b""},
    r"no image in .*/b: no file ends in .bmp": {"a/0.png": b"", "b/notes.txt": b""},
    r"a folder train and none of test, val, validation": {"train/a/0.png": b""},
    r"/test has no folder for the class b": {
        "train/a/0.png": b"",
        "train/b/0.png": b"",
        "test/a/0.png": b"",
    },
    r"/train has no folder for the class c": {
        "train/a/0.png": b"",
        "test/a/0.png": b"",
        "test/c/0.png": b"",
    },
    r"fewer than 5 images of every class": {"a/0.png": b"", "b/0.png": b""},
}


@pytest.mark.parametrize("message", FOLDERS)
def test_a_folder_that_does_not_fit_is_explained(tmp_path, message):
    small_sets.write(tmp_path / "set", FOLDERS[message])
    with pytest.raises(data.DatasetError, match=message):
        load(tmp_path / "set")


def test_labels_outside_the_classes_are_refused(tmp_path):
    small_sets.write(tmp_path, {f"a/{i}.png": solid(i) for i in range(5)})
    found = class_folders.find(tmp_path)
    for label in (-1, 1):
        labels = np.array([0, 0, label, 0], np.int32)
        wrong = dataclasses.replace(
            found, train=dataclasses.replace(found.train, labels=labels)
        )
        message = rf"a/2.png has the label {label}; the 1 classes of .* are 0 to 0"
        with pytest.raises(data.DatasetError, match=message):
            in_memory.decode_all(wrong)


def test_an_image_of_another_size_is_named_in_a_set_of_one(tmp_path):
    small_sets.write(tmp_path, {f"a/{i}.png": solid(i) for i in range(5)})
    found = class_folders.find(tmp_path)
    small_sets.write(tmp_path, {"a/1.png": solid(1, 20, 21)})
    with pytest.raises(
        data.DatasetError,
        match=r"a/1.png cannot be used: it has 20 x 21 pixels, not 20",
    ):
        in_memory.decode_all(found)


@pytest.fixture
def linked(tmp_path):
    """Twelve images of two classes in a folder, and one image outside of it."""
    files = {f"set/{c}/{i}.png": solid(i) for c in "ab" for i in range(6)}
    small_sets.write(tmp_path, files | {"outside/deep/99.png": solid(99)})
    return tmp_path / "set"


def shown(root):
    found = load(root)
    return sorted(
        np.concatenate(
            [
                small_sets.numbers(x) + 1000 * y
                for x, y in (
                    (found.train_images, found.train_labels),
                    (found.test_images, found.test_labels),
                )
            ]
        )
    )


TWELVE = [1000 * c + i for c in range(2) for i in range(6)]


def test_every_real_file_counts_once_whatever_links_say(linked):
    (linked / "a" / "again.png").symlink_to(linked / "a" / "3.png")
    (linked / "a" / "deep").mkdir()
    (linked / "a" / "deep" / "again.png").symlink_to("../3.png")
    assert shown(linked) == TWELVE
    # Files and folders outside come in through links, once.
    (linked / "b" / "x.png").symlink_to(linked.parent / "outside/deep/99.png")
    (linked / "b" / "y.png").symlink_to(linked.parent / "outside/deep/99.png")
    assert shown(linked) == [*TWELVE, 1099]
    (linked / "b" / "x.png").unlink()
    (linked / "b" / "y.png").unlink()
    for name in ("x", "y"):
        (linked / "b" / name).symlink_to(linked.parent / "outside")
    assert shown(linked) == [*TWELVE, 1099]


def test_folders_that_link_to_each_other_twice_are_walked_once(linked):
    """Two links at each of 40 levels would be 2^40 ways."""
    below = linked / "a"
    outside = linked.parent / "levels"
    for level in range(40):
        (outside / str(level)).mkdir(parents=True)
        for name in ("x", "y"):
            (below / name).symlink_to(outside / str(level))
        below = outside / str(level)
    (below / "98.png").write_bytes(solid(98))
    assert shown(linked) == sorted([*TWELVE, 98])


def test_a_class_may_be_a_link(linked):
    (linked / "c").symlink_to(linked.parent / "outside")
    assert shown(linked) == [*TWELVE, 2099]


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("a/loop", "..", r"a/loop is a link to .*set, a folder that it is in"),
        ("a/loop", ".", r"a/loop is a link to .*/a, a folder that it is in"),
        ("a/loop", "/", r"a/loop is a link to /, a folder that it is in"),
        ("c", ".", r"/c is a link to .*/set, a folder that it is in"),
        ("a/others", "../b", r"which is in .*/a too"),
        ("a/9.png", "../b/1.png", r"a/9.png is .*b/1.png, which is in .*/b too"),
        ("a/9.png", "nothing", r"a/9.png is a link that cannot be followed .No such"),
        ("a/9.png", "9.png", r"a/9.png is a link that cannot be followed"),
        ("a/9.png", "/dev/zero", r"a/9.png is a link to /dev/zero, which is not a reg"),
    ],
)
def test_links_that_cannot_be_right_are_refused(linked, link, target, message):
    (linked / link).symlink_to(target)
    with pytest.raises(data.DatasetError, match=message):
        load(linked)


def test_a_link_from_the_training_to_the_test_set_is_refused(tmp_path):
    files = {f"{s}/a/{i}.png": solid(i) for s in ("train", "test") for i in range(3)}
    small_sets.write(tmp_path, files)
    (tmp_path / "test" / "a" / "1.png").unlink()
    (tmp_path / "test" / "a" / "1.png").symlink_to("../../train/a/1.png")
    with pytest.raises(data.DatasetError, match=r"belongs to one class, and to one"):
        load(tmp_path)


def test_a_fifo_does_not_hang(linked):
    os.mkfifo(linked / "a" / "7.png")
    with pytest.raises(data.DatasetError, match=r"a/7.png is not a regular file"):
        load(linked)
    (linked / "a" / "7.png").unlink()
    found = class_folders.find(linked)
    (linked / "a" / "1.png").unlink()
    os.mkfifo(linked / "a" / "1.png")  # after the folder was read
    with pytest.raises(data.DatasetError, match=r"it is a FIFO and not a regular"):
        in_memory.decode_all(found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:a\0b", "has a NUL byte"),
        ("folder:~nobody-at-all/x", "there is no such user"),
        ("text:/dev/zero", "cannot be read: it is a device and not a regular file"),
        ("text:/tmp", "cannot be read: it is a folder and not a regular file"),
    ],
)
def test_paths_that_lead_nowhere(name, message):
    with pytest.raises(data.DatasetError, match=message):
        data.load(name)


def test_a_class_that_cannot_be_printed_is_refused(linked):
    os.mkdir(os.fsencode(linked) + b"/\xff")
    with pytest.raises(
        data.DatasetError, match=r"a folder .*udcff.* cannot be printed"
    ):
        load(linked)
