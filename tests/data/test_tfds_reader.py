"""Sets of TFDS by name, written here as small sets with TFDS's own descriptions."""

import json
import os
import sys

import numpy as np
import pytest
import small_sets

from zosam_jax import data
from zosam_jax.data import in_memory, tfds_reader


def digits(count, start=0):
    rng = np.random.default_rng(start)
    arrays = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, count)
    examples = [
        {"id": str(i), "image": small_sets.encode(x), "label": int(y)}
        for i, (x, y) in enumerate(zip(arrays, labels, strict=True))
    ]
    return examples, sorted(
        (int(y), x.tobytes()) for x, y in zip(arrays, labels, strict=True)
    )


def as_sorted(images, labels):
    return sorted((int(y), x.tobytes()) for x, y in zip(images, labels, strict=True))


@pytest.mark.parametrize("name", ["svhn_cropped", "svhn_cropped:3.1.0"])
def test_a_set_of_one_small_size_is_in_memory(tmp_path, name):
    (train, wanted_train), (test, wanted_test) = digits(7), digits(3, 1)
    small_sets.prepare("svhn_cropped", tmp_path, {"train": train, "test": test})
    found = data.load(name, tmp_path)
    assert isinstance(found, data.Dataset)
    assert as_sorted(found.train_images, found.train_labels) == wanted_train
    assert as_sorted(found.test_images, found.test_labels) == wanted_test
    assert (found.kind, found.num_train, found.num_test) == ("image", 7, 3)
    assert found.class_names == tuple("0123456789")
    assert found.train_labels.dtype == np.int32
    # A digit in the mirror is none.
    assert (found.flip, found.crop_padding) == (False, 4)


def test_grey_images_have_one_channel(tmp_path):
    image = small_sets.encode(np.arange(784, dtype=np.uint8).reshape(28, 28))
    example = {"image": image, "label": 3}
    small_sets.prepare("mnist", tmp_path, {"train": [example], "test": [example]})
    found = data.load("mnist", tmp_path)
    assert found.image_shape == (28, 28, 1)
    np.testing.assert_array_equal(found.test_images.ravel(), np.arange(784) % 256)


def test_more_bytes_than_the_limit_are_streamed(tmp_path, monkeypatch):
    train, _ = digits(4)
    small_sets.prepare("svhn_cropped", tmp_path, {"train": train, "test": train})
    monkeypatch.setattr(in_memory, "MEMORY", 8 * 32 * 32 * 3 - 1)
    found = data.load("svhn_cropped", tmp_path)
    assert isinstance(found, data.Streamed)
    assert (found.image_shape, found.resize) == ((32, 32, 3), 32)  # as they are
    assert data.load("svhn_cropped", tmp_path, image_size=24).resize == round(
        24 / 0.875
    )


def colours(count):
    return [
        {"image": small_sets.solid(i, 20 + i, 30), "label": i % 10}
        for i in range(count)
    ]


@pytest.mark.parametrize("name", ["imagenette", "imagenette/320px-v2"])
def test_a_set_of_many_sizes_is_streamed(tmp_path, name):
    splits = {"train": colours(6), "validation": colours(4)}
    small_sets.prepare(name, tmp_path, splits)
    found = data.load(name, tmp_path, image_size=16)
    assert isinstance(found, data.Streamed)
    assert (found.kind, found.num_train, found.num_test) == ("image", 6, 4)
    assert (found.image_shape, found.crop_padding) == ((16, 16, 3), 0)
    assert found.class_names[0] == "n01440764"
    assert found.mean == (0.485, 0.456, 0.406)  # a part of ImageNet
    ((images, labels, count),) = found.evaluation_batches(4)
    assert count == 4
    shown = small_sets.numbers(images)
    assert sorted(shown) == [0, 1, 2, 3]
    np.testing.assert_array_equal(labels, shown % 10)


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path):
    def examples(count, label):
        return [
            {"image": small_sets.solid(i, 20, 30), "label": label, "file_name": str(i)}
            for i in range(count)
        ]

    splits = {
        "train": examples(5, 999),
        "validation": examples(3, 2),
        "test": examples(4, -1),
    }
    small_sets.prepare("imagenet2012", tmp_path, splits)
    found = data.load("imagenet2012", tmp_path)
    assert (found.num_train, found.num_test, found.num_classes) == (5, 3, 1000)
    assert found.image_shape == (224, 224, 3)
    images, labels = next(found.batches(0, 5))
    assert images.shape == (5, 224, 224, 3)
    assert set(labels) == {999}


def test_without_a_test_split_every_fifth_record_is_held_out(tmp_path):
    examples = [
        {"image": small_sets.solid(i, 64, 64), "label": i % 10, "filename": str(i)}
        for i in range(23)
    ]
    small_sets.prepare("eurosat", tmp_path, {"train": examples})
    found = data.load("eurosat", tmp_path)
    assert (found.num_train, found.num_test) == (19, 4)
    shown = [small_sets.numbers(x) for x in (found.train_images, found.test_images)]
    np.testing.assert_array_equal(shown[0] % 10, found.train_labels)
    np.testing.assert_array_equal(shown[1] % 10, found.test_labels)
    assert sorted(np.concatenate(shown)) == list(range(23))
    records = tfds_reader.find("eurosat", tmp_path)
    assert (
        records.test.where(1)
        == f"record 9 of the split train in {records_at(tmp_path)}"
    )


def records_at(tmp_path):
    (place,) = (tmp_path / "eurosat" / "rgb").iterdir()
    return place


def test_records_are_read_in_processes(tmp_path):
    pytest.importorskip("grain")
    splits = {"train": colours(9), "validation": colours(1)}
    small_sets.prepare("imagenette", tmp_path, splits)
    found = data.load("imagenette", tmp_path, image_size=8)
    batches = found.batches(0, 4, 1), found.batches(0, 4, 1, workers=1)
    for _ in range(3):
        for wanted, shown in zip(*[next(b) for b in batches], strict=True):
            np.testing.assert_array_equal(wanted, shown)
    for each in batches:
        each.close()


def test_a_set_that_only_the_directory_knows(tmp_path):
    """As a builder of one's own leaves it."""
    train, wanted = digits(3)
    place = small_sets.prepare(
        "svhn_cropped", tmp_path, {"train": train, "test": train}
    )
    place.parent.rename(tmp_path / "my_digits")
    for path in (tmp_path / "my_digits" / "3.1.0").iterdir():
        path.rename(path.with_name(path.name.replace("svhn_cropped", "my_digits")))
    info = tmp_path / "my_digits" / "3.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("svhn_cropped", "my_digits"))
    found = data.load("my_digits", tmp_path)
    assert as_sorted(found.train_images, found.train_labels) == wanted


def test_what_is_not_decoded_does_not_matter(tmp_path):
    """Masks and boxes of the pets are neither decoded nor missed."""
    import tensorflow_datasets as tfds

    example = {
        "image": small_sets.solid(5, 30, 20),
        "label": "pug",
        "species": "Dog",
        "file_name": "pug_1.jpg",
        "segmentation_mask": b"no image at all",
        "head_bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5),
    }
    small_sets.prepare(
        "oxford_iiit_pet", tmp_path, {"train": [example], "test": [example]}
    )
    found = data.load("oxford_iiit_pet", tmp_path)
    images, labels = next(found.batches(0, 1))
    assert small_sets.numbers(images) == [5]
    assert found.class_names[labels[0]] == "pug"


def test_a_broken_record_stops_with_its_number(tmp_path):
    examples = colours(6)
    whole = small_sets.texture(0, 60, 60)
    examples[4]["image"] = whole[: len(whole) - 200]
    place = small_sets.prepare(
        "imagenette", tmp_path, {"train": examples, "validation": examples[:2]}
    )
    found = data.load("imagenette", tmp_path)
    rows = found.encoded.train.read(range(6))
    (broken,) = [i for i, row in enumerate(rows) if row[0] == examples[4]["image"]]
    with pytest.raises(data.DatasetError) as error:
        next(found.batches(0, 6))
    assert f"record {broken} of the split train in {place} cannot" in str(error.value)
    assert "truncated" in str(error.value)
    assert f"data prepare imagenette --data-dir {tmp_path}" in str(error.value)


def test_other_tasks_are_refused_by_their_features(tmp_path):
    with pytest.raises(data.DatasetError, match=r"celeb_a is not image class.*landm"):
        data.load("celeb_a", tmp_path)
    # Its description needs TensorFlow.
    with pytest.raises(
        data.DatasetError, match=r"coco is not .*No module named .tensorflow"
    ):
        data.load("coco", tmp_path)


def test_a_set_without_a_training_split_is_refused(tmp_path):
    train, _ = digits(2)
    small_sets.prepare("svhn_cropped", tmp_path, {"extra": train})
    with pytest.raises(data.DatasetError, match=r"no split train; it has extra"):
        data.load("svhn_cropped", tmp_path)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("imagenett", "imagenette"),
        ("svhn_croped", "svhn_cropped"),
        ("texd:x", "text:P"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(tmp_path, name, near):
    with pytest.raises(ValueError, match=f"Did you mean '{near}"):
        data.load(name, tmp_path)


@pytest.fixture
def own(tmp_path):
    """A set that only the directory knows, with features in features.json."""
    train, _ = digits(3)
    place = small_sets.prepare(
        "svhn_cropped", tmp_path, {"train": train, "test": train}
    )
    place.parent.rename(tmp_path / "mine")
    place = tmp_path / "mine" / "3.1.0"
    for path in list(place.iterdir()):
        path.rename(path.with_name(path.name.replace("svhn_cropped", "mine")))
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace("svhn_cropped", "mine"))
    return place


IMAGE = "tensorflow_datasets.core.features.image_feature.Image"


def change_class(text):
    return text.replace(IMAGE, "evil.Feature")


def hide_class(text):
    """Names the class within JSON within JSON, as some features are described."""
    inner = json.dumps({"x": {"type": "evil.Feature", "content": {}}})
    found = json.loads(text)
    found["featuresDict"]["features"]["image"]["jsonFeature"] = {"json": inner}
    return json.dumps(found)


@pytest.mark.parametrize("change", [change_class, hide_class])
@pytest.mark.parametrize("act", [data.load, data.prepare])
def test_a_folder_cannot_name_what_is_imported(own, monkeypatch, change, act):
    (own.parent.parent / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(own.parent.parent))
    features = own / "features.json"
    features.write_text(change(features.read_text()))
    with pytest.raises(data.DatasetError, match=r"features.json asks for .*evil.Feat"):
        act("mine", own.parent.parent)
    assert "evil" not in sys.modules


DAMAGE = {
    "has a features.json": lambda place: (place / "features.json").unlink(),
    "Could not read dataset info": lambda place: (place / "dataset_info.json").unlink(),
    "Expecting property name": lambda place: (place / "dataset_info.json").write_text(
        "{"
    ),
    "cannot be read .*recursion": lambda place: (place / "features.json").write_text(
        "[" * 100_000
    ),
    "Invalid version": lambda place: (place / "dataset_info.json").write_text("{}"),
    "must contain a dot": lambda place: (place / "features.json").write_text("{}"),
    "can't decode byte": lambda place: (place / "dataset_info.json").write_bytes(
        b"\xff"
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_of_ones_own_set_is_a_short_sentence(own, message):
    """TFDS adds the names of all its 262 sets, or ends in another exception."""
    DAMAGE[message](own)
    for act in (data.load, data.prepare):
        with pytest.raises(data.DatasetError, match=message) as error:
            act("mine", own.parent.parent)
        assert len(str(error.value)) < 450
        assert "abstract_reasoning" not in str(error.value)
        # TFDS has no program that could write it again.
        assert "data prepare" not in str(error.value)


@pytest.mark.parametrize(
    "file", ["features.json", "dataset_info.json", "x.array_record"]
)
def test_a_fifo_in_a_set_does_not_hang(own, file):
    (own / file).unlink(missing_ok=True)
    os.mkfifo(own / file)
    with pytest.raises(data.DatasetError, match=f"{file} is not a regular file"):
        data.load("mine", own.parent.parent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10:9.9.9", "TFDS has cifar10 in the version 3.0.2, not in 9.9.9"),
        ("imagenette/320", "configuration='320' is unknown. Did you mean '320px"),
        ("mnist/big", "mnist has no configurations"),
        ("mnist/data_dir=x", "must be NAME, NAME/CONFIGURATION, NAME:VERSION"),
        ("mnist:new", "with a version such as 1.0.0"),
        ("..", "must be NAME"),
    ],
)
def test_versions_and_configurations_that_do_not_exist(tmp_path, name, message):
    for act in (data.load, data.prepare):
        with pytest.raises(ValueError, match=message):
            act(name, tmp_path)
