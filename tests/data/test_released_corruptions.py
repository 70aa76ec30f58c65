"""The corruptions' mean effect, against that of the code that made the published sets.

`released_corruptions.json` holds what that code does to the photographs below: the mean
absolute change of a level and the mean change, over `repeats` runs. It was run by hand
once, with frost1 to frost5 of its photographs; see the fields of `made`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from zosam_jax.data import corruptions
from zosam_jax.data.corruptions import STANDIN, corrupt, digital

RELEASED = json.loads(Path(__file__).with_name("released_corruptions.json").read_text())
SEEDS = 2
# Levels. The released code computes in part in float32, and OpenCV at 1/32 of a pixel.
ROUNDING = 0.05
CASES = [
    pytest.param(int(side), name, id=f"{name}-{side}")
    for side in ("32", "224")
    for name in RELEASED[side]
    if name != "frost"
]


@pytest.fixture(scope="module")
def photographs():
    """Parts of the two photographs that come with scikit-learn: 64 small, 4 large."""
    pictures = load_sample_images().images
    half = [
        p[:426].reshape(213, 2, 320, 2, 3).mean((1, 3)).astype(np.uint8)
        for p in pictures
    ]
    corners = ((0, 0), (203, 416))
    return {
        32: np.stack(
            [
                p[y : y + 32, x : x + 32]
                for p in half
                for y in range(0, 181, 60)
                for x in range(0, 288, 41)
            ]
        ),
        224: np.stack(
            [p[y : y + 224, x : x + 224] for p in pictures for y, x in corners]
        ),
    }


def effect(images, name, severity):
    """Returns the mean change and shift, and the standard errors of both."""
    runs = []
    for seed in range(SEEDS):
        # The figures are of the released functions, before their results are saved.
        found = corrupt(images, name, severity, seed=seed, jpeg=False)
        change = found.astype(float) - images
        runs.append((np.abs(change).mean((1, 2, 3)), change.mean((1, 2, 3))))
    runs = np.array(runs)
    # What differs between the images is common to all runs, here and there.
    variance = runs.var(0, ddof=1).mean(-1) / (SEEDS * len(images))
    return runs.mean((0, 2)), np.sqrt(variance)


def whole_levels(images, severity):
    """Returns the share of the levels that saturation makes whole, but not the largest.

    Rounding puts some of these below the whole number in the released code, which then
    cuts them off to one level less; here they are kept. (Of the levels that differ, all
    are whole in exact fractions.)
    """
    c = corruptions.parameters("saturate", severity, images.shape[1:])
    levels = 255 * digital.saturate(images / 255, [], c)
    whole = np.abs(levels - np.rint(levels)) < 1e-6
    return (whole & (levels < images.max(-1, keepdims=True) - 0.5)).mean()


@pytest.mark.parametrize(("side", "name"), CASES)
def test_the_mean_effect_is_that_of_the_released_code(photographs, side, name):
    images = photographs[side]
    assert images.mean() == pytest.approx(RELEASED["made"]["mean_level"][str(side)])
    for severity, row in RELEASED[str(side)][name].items():
        found, error = effect(images, name, int(severity))
        wider = np.sqrt(1 + SEEDS / row["repeats"])
        for value, expected, sigma in zip(
            found, (row["change"], row["shift"]), error, strict=True
        ):
            # Five standard errors, of which a sample of 8 (the large images) knows a
            # half only.
            band = 5 * sigma * wider * (2 if side == 224 else 1) + ROUNDING
            if name == "saturate":
                band += whole_levels(images, int(severity))
            assert abs(value - expected) < band, (severity, value, expected, sigma)


def test_the_stand_in_changes_as_much_as_frost(photographs):
    # Not the same corruption: a fifth more or less is what is promised.
    for severity, row in RELEASED["32"]["frost"].items():
        (change, shift), _ = effect(photographs[32], STANDIN, int(severity))
        assert change == pytest.approx(row["change"], rel=0.2)
        assert shift == pytest.approx(row["shift"], rel=0.2)
