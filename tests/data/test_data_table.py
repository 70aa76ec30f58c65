"""Every row of the table of data sets: completeness, published sizes, names."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from zosam_jax import data
from zosam_jax.data import table
from zosam_jax.data.sets import imagenet


def lacks(name):
    """Returns what a row of the table still lacks, in words."""
    row, found = table.DATASETS[name], []
    if not row.label or not row.source:
        found.append("its label and source: fill in these fields of its row")
    if not row.counts:
        found.append("its published size: add Counts, or a reason why there is none")
    if (row.open is None) == (row.archives is None):
        found.append("a reader: open, or archives for a set of TFDS")
    if row.archives is not None:
        if name not in tfds.list_builders(with_community_datasets=False):
            found.append("a builder in TFDS: use open instead of archives")
        elif isinstance(row.counts, table.Counts):
            features = tfds.builder(name, data_dir="/none").info.features
            if features["label"].num_classes != row.counts.classes:
                found.append("the number of classes that TFDS has")
    elif isinstance(row.counts, table.Counts):
        read = data.load(name)
        if row.counts != (read.num_train, read.num_test, read.num_classes):
            found.append("a size equal to that of the data that it reads")
    return found


@pytest.mark.parametrize("name", table.DATASETS)
def test_rows_are_complete(name):
    missing = lacks(name)
    assert not missing, f"the data set {name} lacks " + "; ".join(missing)


def test_the_completeness_test_says_what_is_missing(monkeypatch):
    def missing(row):
        monkeypatch.setitem(table.DATASETS, "new", row)
        return [
            words.split(" ")[0] + " " + words.split(" ")[1] for words in lacks("new")
        ]

    row = table.DATASETS["digits"]
    assert missing(table.NamedDataset("", "", "")) == [
        "its label",
        "its published",
        "a reader:",
    ]
    assert missing(row._replace(counts=table.Counts(1, 2, 3))) == ["a size"]
    archives = table.DATASETS["cifar10"]
    assert missing(archives) == ["a builder"]
    wrong = archives._replace(counts=table.Counts(1, 2, 3))
    monkeypatch.setitem(table.DATASETS, "cifar10", wrong)
    assert lacks("cifar10") == ["the number of classes that TFDS has"]


def test_text_and_images_are_told_apart():
    assert table.DATASETS["pydoc"].kind == data.load("pydoc").kind == "text"
    assert table.DATASETS["digits"].kind == data.load("digits").kind == "image"


def test_data_sets_are_listed():
    text = data.describe()
    for name, row in table.DATASETS.items():
        assert f"{name}: {row.label}; " in text
    assert data.names() == tuple(n for n in table.DATASETS if ":" not in n)
    assert {"digits", "cifar10", "imagenet2012", "pydoc"} <= set(data.names())


def test_imagenets_validation_labels_have_the_published_size():
    size = table.DATASETS["imagenet2012"].counts
    assert isinstance(size, table.Counts)
    labels = imagenet.validation_labels()
    assert (len(labels), len(np.unique(labels))) == (size.test, size.classes)


@pytest.mark.parametrize("name", ["digits:1.0.0", "pydoc/x", "text", "folder"])
def test_names_without_a_version_or_path_have_none(name, tmp_path):
    for function in (data.load, data.prepare):
        with pytest.raises(ValueError, match=f"'{name}' is unknown"):
            function(name, tmp_path)
