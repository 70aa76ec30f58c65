"""Image sets in a file of arrays, `npz:PATH`. Hostile ones: `tests/faults`."""

import numpy as np
import pytest

from zosam_jax import data
from zosam_jax.data import dataset as dataset_module
from zosam_jax.data.sets import npz
from zosam_jax.runs import paths

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def arrays(**changed):
    """Returns the arrays of a set of 12 + 6 images; None leaves an array out."""
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 12), ("test", 6)):
        made[f"{part}_images"] = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
        made[f"{part}_labels"] = np.arange(count) % 3
    return {k: v for k, v in {**made, **changed}.items() if v is not None}


def load(folder, **changed):
    np.savez(folder / "set.npz", **arrays(**changed))
    return data.load(f"npz:{folder}/set.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_exported_set_is_the_set(tmp_path, save):
    digits = data.load("digits")
    kept = {name: getattr(digits, name) for name in ARRAYS}
    names = [f"class {name}" for name in digits.class_names]
    save(tmp_path / "digits.npz", **kept, class_names=names, flip=digits.flip)
    found = data.load(f"npz:{tmp_path}/digits.npz")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), kept[name])
        assert getattr(found, name).dtype == kept[name].dtype
    for name in ("mean", "std", "flip", "crop_padding", "kind"):
        assert getattr(found, name) == getattr(digits, name), name
    assert found.class_names == tuple(names)


def test_classes_are_numbered_and_flipped_by_default(tmp_path):
    labels = arrays()["train_labels"].astype(">u2")
    found = load(tmp_path, train_labels=labels)
    assert (found.class_names, found.flip) == (("0", "1", "2"), True)
    assert found.train_labels.dtype == np.int32
    np.testing.assert_array_equal(found.train_labels, labels)


def test_label_maps_make_a_set_for_segmentation(tmp_path):
    rng = np.random.default_rng(0)
    maps = {
        f"{part}_labels": rng.choice([0, 1, 3, 255], (count, 8, 8))
        for part, count in (("train", 12), ("test", 6))
    }
    found = load(tmp_path, **maps)
    assert (found.task, found.class_names) == ("segmentation", tuple("0123"))
    np.testing.assert_array_equal(found.train_labels, maps["train_labels"])
    with pytest.raises(
        data.DatasetError, match=r"must be integers \[6, 8, 8\], a class"
    ):
        load(tmp_path, **maps | {"test_labels": maps["test_labels"][:, :4]})
    with pytest.raises(data.DatasetError, match=r"test_labels .*a class for each"):
        load(tmp_path, **maps | {"test_labels": np.arange(6) % 3})


def test_arrays_in_the_order_of_fortran_are_read_in_order(tmp_path):
    images = arrays()["train_images"]
    found = load(tmp_path, train_images=np.asfortranarray(images))
    np.testing.assert_array_equal(found.train_images, images)
    assert found.train_images.flags.c_contiguous


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test_labels": None}, "has no array test_labels. The arrays are train_"),
        ({"class_name": ["a"]}, "an array 'class_name', which is not one of a set"),
        ({"train_images": np.zeros((12, 8, 8, 3))}, r"must be uint8 .*float64 \[12, 8"),
        ({"train_labels": np.zeros(12)}, "train_labels must be integers"),
        ({"train_labels": np.zeros(11, int)}, "12 train_images have 11 train_labels"),
        ({"test_images": np.zeros((6, 9, 8, 3), np.uint8)}, r"the test images \[9, 8"),
        ({"test_labels": np.arange(6) - 1}, "run from -1 to 4"),
        ({"class_names": ["a", "b"]}, "run from 0 to 2, and there are 2 class_names"),
        ({"class_names": ["a", "b", "a"]}, "two class_names are equal"),
        ({"class_names": np.array([print], object)}, "class_names must be strings"),
        ({"flip": 1}, "flip must be True or False"),
        ({"test_labels": np.full(6, 70_000)}, "has 70,001 classes; at most 65,536"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, changed, words):
    with pytest.raises(data.DatasetError, match=words) as raised:
        load(tmp_path, **changed)
    assert str(tmp_path) in str(raised.value)


def test_images_of_two_channels_are_refused(tmp_path):
    parts = {f"{p}_images": arrays()[f"{p}_images"][..., :2] for p in npz.PARTS}
    with pytest.raises(data.DatasetError, match="have 2 channels, not 1 or 3"):
        load(tmp_path, **parts)


def test_more_than_fits_is_refused_before_it_is_read(tmp_path, monkeypatch):
    size = sum(array.nbytes for array in arrays().values())
    monkeypatch.setattr(npz, "MOST_BYTES", size)
    assert load(tmp_path).num_train == 12
    monkeypatch.setattr(npz, "MOST_BYTES", size - 1)
    monkeypatch.setattr(npz.npy, "read_array", None)
    with pytest.raises(data.DatasetError, match="bytes of arrays, which are kept in"):
        load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(data.DatasetError, match=r"none\.npz cannot be read: No such"):
        data.load(f"npz:{tmp_path}/none.npz")


def test_a_run_keeps_the_path_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.dataset("npz:set.npz") == f"npz:{tmp_path}/set.npz"
    assert paths.is_moved("npz:/a/set.npz", "npz:/b/set.npz")


def test_channel_statistics_do_not_depend_on_blocks(monkeypatch):
    images = arrays()["train_images"]
    whole = data.channel_statistics(images)
    monkeypatch.setattr(dataset_module, "_BLOCK", 5)
    assert data.channel_statistics(images) == whole
