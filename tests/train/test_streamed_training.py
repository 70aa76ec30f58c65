"""Training on images that stay on disk."""

import dataclasses

import numpy as np
import pytest
import tiny_run
from PIL import Image

from zosam_jax.train import RunError, load_run, run


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
    chosen = dataclasses.replace(
        config, augment=("resized_crop",), out=str(tmp_path / "d")
    )
    with pytest.raises(RunError, match="random resized crops already"):
        run(chosen, model=tiny_run.Net())
