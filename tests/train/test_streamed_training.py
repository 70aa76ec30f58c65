"""Training on images that stay on disk."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from PIL import Image

from zosam_jax import data
from zosam_jax.data import DatasetError
from zosam_jax.runs import dataset_facts
from zosam_jax.train import RunError, examples, load_run, run
from zosam_jax.train.batch import normalized


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of 40 images of two classes and many sizes: dark ones, bright ones."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for i in range(count):
            name = ("dark", "bright")[i % 2]
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 100, (20 + i, 40 - i // 2, 3)) + 150 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def _facts_are_kept(tmp_path, photographs):
    """The network is used without its images, and on others as it was trained."""
    trained = load_run.load(tmp_path / "a", model=tiny_run.Net())
    facts = trained.experiment.facts
    assert trained.experiment.dataset is None
    assert facts.class_names == ("bright", "dark")
    assert facts.image_shape == (16, 16, 3)
    assert facts.resize == 18
    images = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)
    inputs = np.asarray(normalized(trained.experiment, jnp.asarray(images)))

    # Moved, with more images in a class, it has other statistics, which are not used.
    moved = shutil.copytree(photographs, tmp_path / "moved")
    for i in range(30):
        image = Image.new("RGB", (20, 20), (255, 0, 0))
        image.save(moved / "train" / "bright" / f"red{i}.png")
    again = load_run.load(
        tmp_path / "a", model=tiny_run.Net(), dataset=f"folder:{moved}"
    )
    assert again.experiment.facts == facts
    assert dataset_facts.of(again.experiment.dataset).mean != facts.mean
    np.testing.assert_array_equal(
        normalized(again.experiment, jnp.asarray(images)), inputs
    )
    assert "channel statistics" in again.notes[0]
    assert "60 training examples; it had 30" in again.notes[1]

    # Renamed, a class changes the order of all, and so what the labels mean.
    for split in ("train", "test"):
        (moved / split / "bright").rename(moved / split / "light")
    with pytest.raises(DatasetError, match=r"class 0 is 'dark', where .* is 'bright'"):
        load_run.load(tmp_path / "a", model=tiny_run.Net(), dataset=f"folder:{moved}")


def test_images_that_stay_on_disk_are_trained_on_and_resumed(
    tmp_path, photographs, monkeypatch
):
    """Interrupted in the middle of an epoch, to the same weights bit for bit."""
    fields = {
        "method": "dense",
        "gradient": "backprop",
        "dataset": f"folder:{photographs}",
        "image_size": 16,
    }
    fields |= {"batch_size": 8, "learning_rate": 0.05, "epochs": 4}
    whole = run(tiny_run.config(tmp_path / "a", **fields), model=tiny_run.Net())
    assert whole.summary["test_accuracy"] > 0.8

    config = tiny_run.config(tmp_path / "b", **fields)
    display = tiny_run.Recorder(5)
    first = run(config, model=tiny_run.Net(), display=display)
    assert first.status == "interrupted"
    again = run(config, model=tiny_run.Net())
    a, b = (
        load_run.load(tmp_path / name, model=tiny_run.Net()).variables for name in "ab"
    )
    tiny_run.assert_same(a, b)
    assert again.summary["test_loss"] == whole.summary["test_loss"]
    _facts_are_kept(tmp_path, photographs)
    chosen = dataclasses.replace(config, validation=0.1, out=str(tmp_path / "c"))
    with pytest.raises(RunError, match="in memory"):
        run(chosen, model=tiny_run.Net())


@pytest.mark.parametrize(
    ("augment", "least_area", "on_device"),
    [
        (None, 0.08, ("flip",)),
        (("resized_crop", "flip"), 0.08, ("flip",)),
        (("cutout=2", "resized_crop=0.5"), 0.5, ("cutout",)),
        (("flip",), None, ("flip",)),
        ((), None, ()),
    ],
)
def test_the_crop_of_images_on_disk_is_augments(
    tmp_path, photographs, augment, least_area, on_device
):
    config = tiny_run.config(
        tmp_path / "a",
        dataset=f"folder:{photographs}",
        image_size=16,
        augment=augment,
        method="dense",
        gradient="backprop",
    )
    found = data.load(config.dataset, image_size=16)
    dataset, augmentation = examples.with_augmentation(
        config, found, dataset_facts.of(found)
    )
    assert isinstance(dataset, data.Streamed)
    assert dataset.least_area == least_area
    assert tuple(name for name, _ in augmentation.operations) == on_device
