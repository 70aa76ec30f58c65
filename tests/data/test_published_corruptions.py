"""The reader of the published corrupted sets."""

import io

import numpy as np
import pytest
from PIL import Image

from zosam_jax.data import DatasetError
from zosam_jax.data.corruptions import published


@pytest.fixture
def released(tmp_path):
    """Seven images in the layout of CIFAR-10-C's archive."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (35, 32, 32, 3), np.uint8)
    labels = np.tile(rng.integers(0, 10, 7).astype(np.uint8), 5)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path, images, labels


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_files_are_read_by_severity(released, dataset):
    folder, images, labels = released
    for severity in (1, 4, 5):
        found = published.load(dataset, "fog", severity, folder=folder)
        assert found.size == 7
        first = 7 * (severity - 1)
        pixels, classes = found.read(2, 99)
        np.testing.assert_array_equal(pixels, images[first + 2 : first + 7])
        np.testing.assert_array_equal(classes, labels[first + 2 : first + 7])
        assert (pixels.dtype, classes.dtype) == (np.uint8, np.int32)


def test_what_is_wrong_with_files_is_said(released):
    folder, images, labels = released
    with pytest.raises(DatasetError, match=r"no snow\.npy.*zenodo"):
        published.load("cifar10", "snow", 1, folder=folder)
    (folder / "snow.npy").write_bytes(b"not an array")
    with pytest.raises(DatasetError, match=r"snow\.npy cannot be read"):
        published.load("cifar10", "snow", 1, folder=folder)
    for wrong in (images[:34], images.astype(np.float32), images[..., 0]):
        np.save(folder / "frost.npy", wrong)
        with pytest.raises(DatasetError, match="five times as many"):
            published.load("cifar10", "frost", 1, folder=folder)
    np.save(folder / "labels.npy", labels[:7])
    with pytest.raises(DatasetError, match="five times as many"):
        published.load("cifar10", "fog", 1, folder=folder)


def test_what_is_not_published_is_said(tmp_path):
    with pytest.raises(DatasetError, match=r"no corrupted set of digits.*cifar10"):
        published.load("digits", "fog", 1)
    with pytest.raises(DatasetError, match=r"TFDS has no CIFAR-100-C.*published-dir"):
        published.load("cifar100", "fog", 1, data_dir=tmp_path)
    with pytest.raises(ValueError, match="frost_standin"):
        published.load("cifar10", "frost_standin", 1)
    with pytest.raises(ValueError, match="severity=0"):
        published.load("cifar10", "fog", 0)


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet2012"])
def test_a_missing_set_names_the_place_and_the_command(tmp_path, dataset):
    with pytest.raises(DatasetError) as error:
        published.load(dataset, "glass_blur", 3, data_dir=tmp_path)
    name = {"cifar10": "cifar10_corrupted/frosted_glass_blur_3"}
    full = name.get(dataset, "imagenet2012_corrupted/glass_blur_3")
    assert f"{full} is not in {tmp_path / full}" in str(error.value)
    assert f"tfds.builder('{full}', data_dir='{tmp_path}'" in str(error.value)
    assert "array_record" in str(error.value)


@pytest.fixture
def prepared(tmp_path):
    """A set of TFDS's own builder, with images of ours in it."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 6)

    def examples():
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file, "label": int(label)}

    builder = tfds.builder(
        "cifar10_corrupted/elastic_2",
        data_dir=str(tmp_path),
        file_format="array_record",
    )
    builder._split_generators = lambda _: {"test": examples()}
    builder._log_download_bytes = builder._log_download_done = lambda: None
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return tmp_path, builder.data_path, images, labels


def test_a_prepared_set_is_read(prepared):
    data_dir, place, images, labels = prepared
    found = published.load("cifar10", "elastic_transform", 2, data_dir=data_dir)
    assert found.size == 6
    pixels, classes = found.read(0, 4)
    rest, others = found.read(4, 9)
    pixels, classes = np.concatenate([pixels, rest]), np.concatenate([classes, others])
    # TFDS orders examples by the hash of their key.
    order = [np.flatnonzero((images == p).all((1, 2, 3)))[0] for p in pixels]
    assert sorted(order) == list(range(6))
    np.testing.assert_array_equal(classes, labels[order])
    assert pixels.dtype == np.uint8

    records = next(place.glob("*array_record*"))
    records.write_bytes(records.read_bytes()[:1000])
    with pytest.raises(DatasetError, match="incomplete or damaged"):
        published.load("cifar10", "elastic_transform", 2, data_dir=data_dir).read(0, 6)
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DatasetError, match=r"as tfrecord.*array_record is needed"):
        published.load("cifar10", "elastic_transform", 2, data_dir=data_dir)
