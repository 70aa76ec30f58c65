"""CIFAR from archive to arrays, on small archives in CIFAR's binary layout."""

import json
import shutil

import cifar_archive
import numpy as np
import pytest

from zosam_jax import data
from zosam_jax.data import tfds_writer
from zosam_jax.data.sets import cifar

NAMES = ("cifar10", "cifar100")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A function that writes the archive of a set and makes TFDS expect it."""

    def make(name):
        path = tmp_path / "remote" / f"{name}.tar.gz"
        path.parent.mkdir(exist_ok=True)
        truth = cifar_archive.write(path, name)
        cifar_archive.accept(monkeypatch, name, path)
        return path, truth

    return make


@pytest.fixture
def prepared(small, tmp_path):
    """A data directory with cifar10, and the directory of the set in it."""
    small("cifar10")
    data.prepare("cifar10", tmp_path / "tfds")
    (place,) = (tmp_path / "tfds" / "cifar10").iterdir()
    return tmp_path / "tfds", place


def as_sorted(images, labels):
    return sorted((int(y), x.tobytes()) for x, y in zip(images, labels, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_prepared_is_what_is_loaded(small, tmp_path, name):
    path, truth = small(name)
    lines = []
    data.prepare(name, tmp_path / "tfds", on_progress=lines.append)
    total = sum(len(labels) for _, labels in truth.values())
    size = path.stat().st_size
    assert lines[0] == f"{name}.tar.gz: {size:,} of {size:,} bytes"
    tenths = [total * k // 10 for k in range(1, 11)]
    assert lines[1:-1] == [f"written: {n:,} of {total:,} images" for n in tenths]
    assert lines[-1].startswith(f"{name} is ready in {tmp_path / 'tfds' / name}")

    found = data.load(name, tmp_path / "tfds")
    assert as_sorted(found.train_images, found.train_labels) == as_sorted(
        *truth["train"]
    )
    assert as_sorted(found.test_images, found.test_labels) == as_sorted(*truth["test"])
    word, classes = ("class", 10) if name == "cifar10" else ("fine", 100)
    assert found.class_names == tuple(f"{word}{i}" for i in range(classes))
    assert (found.num_classes, found.image_shape) == (classes, (32, 32, 3))
    assert found.train_images.dtype == np.uint8
    assert found.train_labels.dtype == np.int32
    assert (found.crop_padding, found.flip) == (4, True)
    np.testing.assert_allclose(
        found.mean, truth["train"][0].reshape(-1, 3).mean(0) / 255, rtol=1e-9
    )


def test_the_set_is_tfds_own(prepared):
    _, place = prepared
    info = json.loads((place / "dataset_info.json").read_text())
    assert info["name"] == "cifar10"
    assert info["version"] == place.name
    assert info["fileFormat"] == "array_record"
    assert info["moduleName"].startswith("tensorflow_datasets.")
    assert [s["shardLengths"] for s in info["splits"]] == [["10"], ["30"]] or [
        s["shardLengths"] for s in info["splits"]
    ] == [["30"], ["10"]]


def test_the_environment_names_the_directory_as_tfds_has_it(prepared, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared[0]))
    assert data.load("cifar10").num_classes == 10


def test_a_local_archive_needs_no_address(small, tmp_path):
    path, _ = small("cifar10")
    copy = tmp_path / "copy.tar.gz"
    path.rename(copy)
    data.prepare("cifar10", tmp_path / "tfds", archive=copy)
    assert len(data.load("cifar10", tmp_path / "tfds").test_labels) == 10
    assert copy.exists()  # it is the user's


def test_a_prepared_set_is_left_alone(prepared, monkeypatch):
    monkeypatch.setattr(tfds_writer, "_write", None)
    lines = []
    data.prepare("cifar10", prepared[0], on_progress=lines.append)
    assert len(lines) == 1
    assert "30 training and 10 test images" in lines[0]


def test_a_missing_set_names_the_place_and_the_command(tmp_path):
    place = tmp_path / "with space"
    with pytest.raises(data.DatasetError) as error:
        data.load("cifar10", place)
    assert str(place / "cifar10") in str(error.value)
    command = f"python -m zosam_jax data prepare cifar10 --data-dir '{place}'"
    assert f"`{command}`" in str(error.value)
    assert isinstance(error.value, RuntimeError)
    assert not place.exists()


def records(place):
    return next(place.glob("*train*"))


def halve(place):
    path = records(place)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_an_example(place):
    path = place / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["shardLengths"] = [str(int(split["shardLengths"][0]) + 1)]
    path.write_text(json.dumps(info))


DAMAGES = {
    "no records": lambda place: records(place).unlink(),
    "empty records": lambda place: records(place).write_bytes(b""),
    "half of the records": halve,
    "fewer records than stated": lose_an_example,
    "no description": lambda place: (place / "dataset_info.json").unlink(),
    "damaged description": lambda p: (p / "dataset_info.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_the_command_repairs_it(prepared, damage):
    data_dir, place = prepared
    damage(place)
    with pytest.raises(data.DatasetError) as error:
        data.load("cifar10", data_dir)
    message = str(error.value)
    assert f"python -m zosam_jax data prepare cifar10 --data-dir {data_dir}" in message
    if "Remove that directory" in message:
        named = message.split(" in ", 1)[1].split(" is incomplete")[0]
        shutil.rmtree(named)
    data.prepare("cifar10", data_dir)
    assert len(data.load("cifar10", data_dir).train_labels) == 30


def test_an_incomplete_set_is_replaced_without_removing_it(prepared):
    data_dir, place = prepared
    halve(place)
    data.prepare("cifar10", data_dir)
    assert len(data.load("cifar10", data_dir).train_labels) == 30


@pytest.mark.parametrize("function", [data.load, data.prepare])
def test_another_format_is_left_alone(prepared, function):
    data_dir, place = prepared
    path = place / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    before = sorted(place.iterdir())
    with pytest.raises(data.DatasetError, match=r"as tfrecord.*another directory"):
        function("cifar10", data_dir)
    assert sorted(place.iterdir()) == before


def nothing_is_there(data_dir):
    with pytest.raises(data.DatasetError, match="is not in"):
        data.load("cifar10", data_dir)
    return not list(data_dir.rglob("*.part")) and not list(data_dir.rglob("*record*"))


def test_a_cut_download_leaves_nothing(small, tmp_path):
    path, _ = small("cifar10")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(data.DatasetError, match=r"1,000 bytes.*Fetch it again"):
        data.prepare("cifar10", tmp_path / "tfds")
    assert nothing_is_there(tmp_path / "tfds")


def test_no_network_is_said_with_the_way_around(small, tmp_path):
    path, _ = small("cifar10")
    path.unlink()
    with pytest.raises(data.DatasetError, match=r"could not be downloaded.*--archive"):
        data.prepare("cifar10", tmp_path / "tfds")
    assert nothing_is_there(tmp_path / "tfds")


def test_a_wrong_archive_is_refused(small, tmp_path):
    small("cifar10")
    wrong = tmp_path / "wrong.tar.gz"
    wrong.write_bytes(b"something else")
    with pytest.raises(data.DatasetError, match=r"wrong.tar.gz is not cifar10.tar.gz"):
        data.prepare("cifar10", tmp_path / "tfds", archive=wrong)
    with pytest.raises(data.DatasetError, match=r"archive=.*none is not a file"):
        data.prepare("cifar10", tmp_path / "tfds", archive=tmp_path / "none")


def test_a_failure_while_writing_leaves_nothing(small, tmp_path, monkeypatch):
    small("cifar10")
    save = cifar.Image.Image.save
    images = []

    def fill_the_disk(self, *args):
        images.append(self)
        if len(images) > 20:
            raise OSError(28, "No space left on device")
        save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(cifar.Image.Image, "save", fill_the_disk)
        with pytest.raises(data.DatasetError, match="No space left on device"):
            data.prepare("cifar10", tmp_path / "tfds")
    assert nothing_is_there(tmp_path / "tfds")
    data.prepare("cifar10", tmp_path / "tfds")
    assert len(data.load("cifar10", tmp_path / "tfds").train_labels) == 30
