"""Text as sequences of bytes."""

import platform

import numpy as np
import pytest

from zosam_jax import data
from zosam_jax.data.sets import text


def test_a_sequence_is_followed_by_its_next_bytes():
    content = bytes(np.random.default_rng(0).integers(0, 256, 1003, np.uint8))
    found = text.sequences("x", content, length=8)
    # The last tenth, 100 bytes, is held out; 903 = 112 * 8 + 7 and 100 = 12 * 8 + 4.
    assert found.train_images.shape == found.train_labels.shape == (112, 8)
    assert found.test_images.shape == found.test_labels.shape == (12, 8)
    assert found.train_images.dtype == np.uint8
    assert found.train_labels.dtype == np.int32
    for inputs, targets, start in (
        (found.train_images, found.train_labels, 0),
        (found.test_images, found.test_labels, 903),
    ):
        assert inputs.tobytes() == content[start : start + inputs.size]
        following = content[start + 1 : start + 1 + targets.size]
        assert targets.astype(np.uint8).tobytes() == following


def test_the_targets_of_the_training_set_stay_in_its_part():
    # 903 - 1 is a multiple of 11: the last target is the last byte of the part.
    content = bytes(903) + b"\1" * 100
    found = text.sequences("x", content, length=11)
    assert found.train_images.size == 902
    assert not found.train_labels.any()
    assert found.test_images.all()


def test_the_shortest_text_and_a_shorter_one():
    found = text.sequences("x", bytes(90), length=8)
    assert (found.num_train, found.num_test) == (10, 1)
    with pytest.raises(
        data.DatasetError, match=r"x has 89 bytes; at least 90 are need"
    ):
        text.sequences("x", bytes(89), length=8)
    with pytest.raises(data.DatasetError, match="has 0 bytes"):
        text.sequences("x", b"", length=8)


def test_pydoc_is_english_in_every_python():
    found = data.load("pydoc")
    assert platform.python_implementation() == "CPython"
    assert found.kind == "text"
    assert (found.num_classes, found.image_shape, found.mean) == (256, (128,), ())
    total = found.train_images.size + found.test_images.size
    assert 400_000 < total < 2_000_000
    letters = np.isin(found.train_images, np.frombuffer(b"etaoinshr ", np.uint8))
    assert letters.mean() > 0.55
    assert b'The "if" statement' in found.train_images.tobytes()
    again = data.load("pydoc")
    np.testing.assert_array_equal(again.test_images, found.test_images)
    assert found.class_names[ord("a")] == "a"
    assert found.class_names[10] == "\\n"
    assert len(set(found.class_names)) == 256


def test_any_file_is_text(tmp_path):
    (tmp_path / "book.txt").write_bytes(b"ab" * 2000)
    found = data.load(f"text:{tmp_path / 'book.txt'}")
    assert found.name == f"text:{tmp_path / 'book.txt'}"
    assert set(
        zip(found.train_images.ravel(), found.train_labels.ravel(), strict=True)
    ) == {
        (97, 98),
        (98, 97),
    }
    with pytest.raises(data.DatasetError, match=r"none.* cannot be read: .*No such"):
        data.load(f"text:{tmp_path / 'none'}")
