"""Label maps: what they must be, how augmentation moves them, and the drawn set."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zosam_jax import data
from zosam_jax.data import augment, label_maps
from zosam_jax.data.augment import Box, crops
from zosam_jax.data.sets import shapes

RNG = np.random.default_rng(0)
MAPS = RNG.integers(1, 5, (6, 12, 12)).astype(np.uint8)
# The level of a pixel is its class.
IMAGES = np.repeat(MAPS[..., None], 3, -1)
KEY = jax.random.key(3)


def run(*options):
    made = augment.compose(
        options,
        **{"num_classes": 5, "crop_padding": 2, "flip": True},
        **{"mean": (0.5,) * 3, "std": (0.2,) * 3, "of_maps": True},
    )
    return map(np.asarray, jax.jit(made)(KEY, IMAGES, MAPS.astype(np.int32)))


@pytest.mark.parametrize("options", [("crop=3", "flip"), ("flip",), ("crop=2",)])
def test_crops_and_flips_move_image_and_map_alike(options):
    images, maps = run(*options)
    assert not np.array_equal(images, IMAGES)
    # What the crop adds is black in the image, and does not count in the map.
    np.testing.assert_array_equal(np.where(maps == 255, 0, maps), images[..., 0])
    assert (maps == 255).any() == ("crop" in options[0])


def test_a_resized_crop_takes_the_nearest_pixel():
    boxes = [(0, 3, 12, 6), (2, 1, 5, 11)]
    box = Box(*jnp.array(boxes).T)
    found = np.asarray(crops.resized_maps(MAPS[:2, ..., None], box, (12, 12)))[..., 0]
    for each, labels, (top, left, height, width) in zip(
        found, MAPS, boxes, strict=False
    ):
        for i, j in np.ndindex(12, 12):
            at = top + int((i + 0.5) * height / 12), left + int((j + 0.5) * width / 12)
            assert each[i, j] == labels[at]
    # The whole augmentation has one window for both: blocks stay with their level.
    blocks = np.kron(MAPS[:, :2, :2], np.ones((6, 6), np.uint8))
    made = augment.compose(
        ("resized_crop=0.5",),
        **{"num_classes": 5, "crop_padding": 0, "flip": False, "of_maps": True},
        **{"mean": (0.5,), "std": (0.2,)},
    )
    images, maps = jax.jit(made)(KEY, 50 * blocks[..., None], blocks.astype(np.int32))
    near = np.abs(np.asarray(images)[..., 0] / 50 - np.asarray(maps)) < 0.5
    assert near.mean() > 0.85
    assert not np.array_equal(maps, blocks)


def test_covered_pixels_keep_their_class():
    images, maps = run("cutout=6", "erasing=1")
    np.testing.assert_array_equal(maps, MAPS)
    assert not np.array_equal(images, IMAGES)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "randaugment"])
def test_what_label_maps_cannot_follow_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' mixes or moves .* take crop, resi"):
        run("flip", name)


@pytest.fixture(scope="module")
def drawn():
    return data.load("shapes")


def test_the_drawn_set_is_the_same_every_time(drawn):
    assert (drawn.task, drawn.num_train, drawn.num_test) == ("segmentation", 1024, 256)
    assert drawn.train_labels.dtype == np.uint8
    assert drawn.train_labels.shape == (1024, 32, 32)
    again, maps = shapes.draw(shapes.TEST, seed=1)
    np.testing.assert_array_equal(again, drawn.test_images)
    np.testing.assert_array_equal(maps, drawn.test_labels)
    # As first released: runs depend on it.
    counts = np.bincount(drawn.train_labels.ravel()).tolist()
    assert counts == COUNTS
    shares = np.array(COUNTS) / drawn.train_labels.size
    assert shares[1:].min() > 0.05


COUNTS = [829031, 79947, 75857, 63741]


def test_a_shape_is_told_by_its_outline_alone(drawn):
    """The mean color of a class says nothing: it is that of all others."""
    images, maps = drawn.train_images.astype(float), drawn.train_labels
    means = [images[maps == k].mean(0) for k in range(1, 4)]
    assert np.ptp(means, axis=0).max() < 12
    # But it differs from the background of its image.
    for image, labels in zip(images[:50], maps[:50], strict=True):
        behind = image[labels == 0].mean(0)
        assert all(
            np.abs(image[labels == k].mean(0) - behind).max() > 15
            for k in np.unique(labels[labels > 0])
        )


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"train_labels": MAPS[:, :8]}, r"must be integers \[6, 12, 12\], a class for"),
        ({"test_labels": MAPS[:, 0, 0]}, r"test_labels .* got uint8 \[6\]"),
        ({"test_labels": MAPS.astype(float)}, "test_labels must be integers"),
        (
            {"train_labels": MAPS + 4},
            "run from 5 to 8, and 5 class_names .* 255 do not",
        ),
        ({"train_labels": MAPS.astype(int) - 2}, "run from -1 to 2"),
        ({"test_labels": np.full_like(MAPS, 255)}, "no pixel of test_labels counts"),
        (
            {"train_labels": np.where(MAPS > 2, 0, 255).astype(np.uint8)},
            "have class 0, so there is nothing to learn.* masks of 0 and 255 as 0 and",
        ),
        ({"class_names": tuple(map(str, range(256)))}, "at most 255"),
    ],
)
def test_maps_that_do_not_fit_are_refused(changed, part):
    with pytest.raises(ValueError, match=part):
        dataclasses.replace(maps_of_five(), **changed)


def maps_of_five():
    return data.Dataset(
        name="mine",
        train_images=IMAGES,
        train_labels=MAPS,
        test_images=IMAGES,
        test_labels=MAPS.astype(np.int64),
        class_names=tuple("abcde"),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        crop_padding=1,
        flip=True,
    )


def test_maps_are_kept_as_bytes():
    found = maps_of_five()
    assert (found.task, found.test_labels.dtype) == ("segmentation", np.uint8)


def test_label_maps_are_files_with_a_palette(tmp_path):
    labels = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
    label_maps.write(tmp_path / "map.png", labels)
    np.testing.assert_array_equal(label_maps.read(tmp_path / "map.png"), labels)
    with Image.open(tmp_path / "map.png") as image:
        colors = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(colors, label_maps.palette()[labels])
    # The colors of Pascal VOC: person and potted plant.
    assert label_maps.palette()[[15, 16, 255]].tolist() == [
        *([192, 128, 128], [0, 64, 0], [224, 224, 192])
    ]
    Image.fromarray(labels).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(label_maps.read(tmp_path / "gray.png"), labels)
    Image.new("RGB", (3, 3)).save(tmp_path / "color.png")
    (tmp_path / "text.png").write_text("no image")
    for name, part in (
        ("color", "pixels are RGB"),
        ("text", "no header"),
        ("no", "No"),
    ):
        with pytest.raises(data.DatasetError, match=f"{name}.png is no .*{part}"):
            label_maps.read(tmp_path / f"{name}.png")


def folder(root, *, names=("a", "b", "c", "d", "e", "f"), size=(12, 12)):
    """Images and label maps of these names."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for name, image, labels in zip(names, IMAGES, MAPS, strict=False):
        rows, columns = size
        Image.fromarray(image[:rows, :columns]).save(root / f"images/{name}.png")
        label_maps.write(root / f"masks/{name}.png", labels[:rows, :columns])
    return root


def test_a_folder_of_images_and_masks_is_a_data_set(tmp_path):
    root = folder(tmp_path / "mine")
    found = data.load(f"masks:{root}")
    assert (found.task, found.num_train, found.num_test) == ("segmentation", 4, 2)
    np.testing.assert_array_equal(found.test_labels, MAPS[[0, 5]])
    np.testing.assert_array_equal(found.train_images, IMAGES[1:5])
    assert found.class_names == tuple("01234")
    (root / "classes.txt").write_text("ground\nroad \ncar\ntree\nsky\n")
    assert data.load(f"masks:{root}").class_names[:2] == ("ground", "road")
    (root / "classes.txt").write_text("ground\nroad\n")
    with pytest.raises(data.DatasetError, match=r"b.png has class 4, and .* 0 to 1. "):
        data.load(f"masks:{root}")
    (root / "classes.txt").write_text("a\na\n")
    with pytest.raises(data.DatasetError, match="two names of classes are equal"):
        data.load(f"masks:{root}")
    both = tmp_path / "both"
    folder(both / "train", names="abcd")
    folder(both / "test", names="xy")
    found = data.load(f"masks:{both}")
    assert (found.num_train, found.num_test) == (4, 2)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    def refused(part, root=tmp_path / "mine"):
        with pytest.raises(data.DatasetError, match=part):
            data.load(f"masks:{root}")

    refused("is no folder of images and masks. It must have train/images")
    root = folder(tmp_path / "mine")
    (root / "masks/b.png").rename(root / "masks/z.png")
    refused("the image 'b' in .* has no mask of this name")
    (root / "images/b.png").unlink()
    refused("the mask 'z' in .* has no image of this name")
    (root / "masks/z.png").unlink()
    label_maps.write(root / "masks/d.png", MAPS[0, :6])
    refused("d.png has 6 x 12 pixels; the first image has 12 x 12")
    label_maps.write(root / "masks/d.png", MAPS[0])
    Image.fromarray(IMAGES[0, :6]).save(root / "images/d.png")
    refused("d.png cannot be used: it has 6 x 12 pixels, not 12 x 12. All images")
    (root / "images/d.jpg").write_bytes((root / "images/d.png").read_bytes())
    refused("two files in .* have one name, but for the suffix")
    # Of gray levels, few are classes.
    levels = folder(tmp_path / "levels")
    label_maps.write(levels / "masks/c.png", np.uint8(200) * (MAPS[2] > 2))
    refused("have the classes 0, 1, 2, 3, 4, ..., and most .* up to 200", levels)
    (levels / "classes.txt").write_text("\n".join(map(str, range(201))))
    assert data.load(f"masks:{levels}").num_classes == 201
