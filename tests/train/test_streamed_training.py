"""Training on images that stay on disk."""

import dataclasses

import numpy as np
import pytest
import tiny_run
from PIL import Image

from zosam_jax import data
from zosam_jax.train import RunError, build, load_run, run


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
    display = tiny_run.Interrupter(5)
    first = run(config, model=tiny_run.Net(), display=display)
    assert first.status == "interrupted"
    again = run(config, model=tiny_run.Net())
    a, b = (
        load_run.load(tmp_path / name, model=tiny_run.Net()).variables for name in "ab"
    )
    tiny_run.assert_same(a, b)
    assert again.summary["test_loss"] == whole.summary["test_loss"]
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
    dataset, augmentation = build._augmentation(
        config, data.load(config.dataset, image_size=16)
    )
    assert isinstance(dataset, data.Streamed)
    assert dataset.least_area == least_area
    assert tuple(name for name, _ in augmentation.operations) == on_device
