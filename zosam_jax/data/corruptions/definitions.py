"""The table of corruptions: the published definitions by severity, and `corrupt`.

The parameters come from the code that made the published sets (arXiv:1903.12261,
github.com/hendrycks/robustness at 8190fe3). Lengths are in pixels. The lengths of
`elastic_transform` are fractions of the image's side. To add a corruption, write
its function into the module of its group and add a row to `CORRUPTIONS`.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zosam_jax import _check
from zosam_jax.data.corruptions import blur, digital, noise, weather


class Corruption(NamedTuple):
    """A row of the table.

    Attributes:
      function: `(x, rngs, c)`; see `noise`.
      group: Published category: "noise", "blur", "weather" or "digital" for common
        corruptions, "extra" for the others; "stand-in" if it is not published.
      cifar: Parameters c of CIFAR-10-C for severities 1 to 5.
      imagenet: Parameters c of ImageNet-C for severities 1 to 5.
    """

    function: Callable[..., np.ndarray]
    group: str
    cifar: tuple[Any, ...]
    imagenet: tuple[Any, ...]


# The published code takes 244 for the side of an ImageNet image, which is 224.
_SIDE = 244 / 224

# Weights of the image and of the frost.
_FROST = (
    ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)

CORRUPTIONS: dict[str, Corruption] = {
    # Standard deviation.
    "gaussian_noise": Corruption(
        noise.gaussian_noise,
        "noise",
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    # Photon count of a white pixel.
    "shot_noise": Corruption(
        noise.shot_noise, "noise", (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)
    ),
    # Fraction of the values that are replaced.
    "impulse_noise": Corruption(
        noise.impulse_noise,
        "noise",
        (0.01, 0.02, 0.03, 0.05, 0.07),
        (0.03, 0.06, 0.09, 0.17, 0.27),
    ),
    # Radius of the disk, standard deviation of its smoothing.
    "defocus_blur": Corruption(
        blur.defocus_blur,
        "blur",
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    # Standard deviation of the smoothing, largest displacement, number of passes.
    "glass_blur": Corruption(
        blur.glass_blur,
        "blur",
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    # Radius, standard deviation.
    "motion_blur": Corruption(
        blur.motion_blur,
        "blur",
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    # End and step of the zoom factors, which start at 1.
    "zoom_blur": Corruption(
        blur.zoom_blur,
        "blur",
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    # Mean and standard deviation of the noise, zoom factor, threshold, radius and
    # standard deviation of the motion blur, weight of the image itself.
    "snow": Corruption(
        weather.snow,
        "weather",
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(weather.frost, "weather", *_FROST),
    # Weight of the fog, decay of its details.
    "fog": Corruption(
        weather.fog,
        "weather",
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    # Added to the value of HSV.
    "brightness": Corruption(
        weather.brightness,
        "weather",
        (0.05, 0.1, 0.15, 0.2, 0.3),
        (0.1, 0.2, 0.3, 0.4, 0.5),
    ),
    # Factor of the contrast.
    "contrast": Corruption(
        digital.contrast,
        "digital",
        (0.75, 0.5, 0.4, 0.3, 0.15),
        (0.4, 0.3, 0.2, 0.1, 0.05),
    ),
    # Amplitude and smoothing of the displacement, largest shift of the corners that
    # define the affine map.
    "elastic_transform": Corruption(
        digital.elastic_transform,
        "digital",
        (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        tuple(
            (alpha * _SIDE, sigma * _SIDE, shift * _SIDE)
            for alpha, sigma, shift in (
                (2, 0.7, 0.1),
                (2, 0.08, 0.2),
                (0.05, 0.01, 0.02),
                (0.07, 0.01, 0.02),
                (0.12, 0.01, 0.02),
            )
        ),
    ),
    # Factor of the resolution.
    "pixelate": Corruption(
        digital.pixelate,
        "digital",
        (0.95, 0.9, 0.85, 0.75, 0.65),
        (0.6, 0.5, 0.4, 0.3, 0.25),
    ),
    # Quality.
    "jpeg_compression": Corruption(
        digital.jpeg_compression, "digital", (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)
    ),
    # Standard deviation.
    "speckle_noise": Corruption(
        noise.speckle_noise,
        "extra",
        (0.06, 0.1, 0.12, 0.16, 0.2),
        (0.15, 0.2, 0.35, 0.45, 0.6),
    ),
    # Standard deviation.
    "gaussian_blur": Corruption(
        blur.gaussian_blur, "extra", (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)
    ),
    # Mean and standard deviation of the noise, smoothing, threshold, strength of the
    # water (or smoothing of the mud), whether it is mud.
    "spatter": Corruption(
        weather.spatter,
        "extra",
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    # Factor of the saturation, and what is added to it.
    "saturate": Corruption(
        digital.saturate,
        "extra",
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
    "frost_standin": Corruption(weather.frost_standin, "stand-in", *_FROST),
}

NAMES = tuple(CORRUPTIONS)
STANDIN = "frost_standin"
"""Replaces frost where its photographs are not available."""

GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(name for name, row in CORRUPTIONS.items() if row.group == group)
    for group in ("noise", "blur", "weather", "digital", "extra")
}
EXTRA = GROUPS["extra"]
COMMON = tuple(name for g, names in GROUPS.items() if g != "extra" for name in names)
SEVERITIES = (1, 2, 3, 4, 5)

# Smallest side, in pixels, of images for which the parameters of ImageNet-C are used.
_LARGE = 128
JPEG_QUALITY = 85
"""Quality of the JPEG files of the published ImageNet-C."""

# Smallest side of images for which the blurs and shifts are meaningful, in pixels.
_SMALLEST = 6
# Values processed at once, as float64. Some corruptions need ten times this memory.
_CHUNK = 1 << 21


def table(image_shape: Sequence[int]) -> str:
    """Returns the name of the parameters for a size: "CIFAR-10-C" or "ImageNet-C".

    ImageNet-C's are for images of at least 128 x 128 pixels. Lengths are in pixels, as
    published for 32 x 32 and 224 x 224: the same blur changes smaller images more.

    Args:
      image_shape: Height, width and channels.

    >>> table((32, 32, 3)), table((224, 224, 3))
    ('CIFAR-10-C', 'ImageNet-C')
    """
    return "ImageNet-C" if min(image_shape[:2]) >= _LARGE else "CIFAR-10-C"


def parameters(name: str, severity: int, image_shape: Sequence[int]) -> Any:
    """Returns the published parameters of a corruption.

    Args:
      name: One of `NAMES`.
      severity: From 1 to 5.
      image_shape: Height, width and channels.

    Returns:
      A number or a tuple; the comments in `CORRUPTIONS` say what they are.

    >>> parameters("motion_blur", 5, (32, 32, 3))
    (9, 2.5)
    """
    row = CORRUPTIONS[name]
    rows = row.imagenet if table(image_shape) == "ImageNet-C" else row.cifar
    return rows[severity - 1]


MOVING = ("elastic_transform", "zoom_blur")
"""Corruptions that move what is on an image by several pixels."""


def refusal(
    name: str, image_shape: Sequence[int], *, of_maps: bool = False
) -> str | None:
    """Returns why a corruption is not defined for images of a shape, or None.

    Args:
      name: One of `NAMES`.
      image_shape: Height, width and channels.
      of_maps: Whether the images have label maps, which a corruption leaves as they
        are.

    >>> refusal("saturate", (28, 28, 1))
    'images of one channel have no saturation to change.'
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        return f"images have {channels} channels; the definitions are for 1 and 3."
    if min(height, width) < _SMALLEST:
        return f"images of {height} x {width} are smaller than {_SMALLEST} pixels."
    if name == "saturate" and channels == 1:
        return "images of one channel have no saturation to change."
    if of_maps and name in MOVING:
        return "it moves what is on an image, and label maps do not follow."
    return None


def corrupt(
    images: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    frost_dir: str | os.PathLike[str] | None = None,
    jpeg: bool = True,
) -> np.ndarray:
    """Returns images with a corruption of a severity.

    The random numbers of an image depend on the seed, the corruption, the severity and
    the image's index, and not on the batch. As in the published code, levels are
    truncated to integers, not rounded.

    Args:
      images: uint8 `[N, H, W, C]`, with 1 or 3 channels.
      name: One of `COMMON`, `EXTRA`, or `STANDIN`. "frost" adds crops of photographs,
        which are not part of this package; `STANDIN` ("frost_standin") draws a texture
        instead and is a corruption of its own.
      severity: From 1 to 5.
      seed: From 0 to 2^64 - 1.
      indices: Index of each image in its set, below 2^29. Default: 0, 1, 2, ...
      frost_dir: Folder of photographs for "frost": frost1.png to frost5.jpg of
        github.com/hendrycks/robustness, which the package imagecorruptions-imaug
        contains too. All pictures in the folder are used. They must be at least as
        large as the images, and five times as large for CIFAR-10-C's parameters, which
        reduce them to a fifth.
      jpeg: Whether ImageNet-C's corruptions go through JPEG of quality 85, in which all
        images of the published set were saved. It takes a quarter to a third of the
        noise away. CIFAR-10-C was saved without a loss: there it has no effect.

    Returns:
      uint8 `[N, H, W, C]`.

    Raises:
      ValueError: An argument is unknown, out of range, or not defined for the images.
      DatasetError: "frost" without usable photographs.

    >>> gray = np.full((1, 32, 32, 3), 100, np.uint8)
    >>> int(corrupt(gray, "brightness", 5).mean())
    176
    """
    _check.one_of("corruption", name, NAMES)
    _check.one_of("severity", severity, SEVERITIES)
    _check.whole("seed", seed, least=0)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"images must be uint8 [N, H, W, C], not {images.dtype} {images.shape}."
        )
    shape = images.shape[1:]
    reason = refusal(name, shape)
    if reason:
        raise ValueError(f"corruption={name!r}: {reason}")
    if indices is None:
        indices = np.arange(len(images))
    if len(indices) != len(images):
        raise ValueError(f"{len(indices)} indices for {len(images)} images.")
    function, c = CORRUPTIONS[name].function, parameters(name, severity, shape)
    if name == "frost":
        # CIFAR-10-C reduces its photographs to a fifth, which keeps every fifth pixel.
        every = 5 if table(shape) == "CIFAR-10-C" else 1
        pictures = weather.frost_pictures(frost_dir, shape[0], shape[1], every)
        function = functools.partial(function, pictures=pictures)
    out = np.empty_like(images)
    size = max(1, _CHUNK // max(images[:1].size, 1))
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        rngs = [noise.generator(seed, name, severity, int(i)) for i in indices[part]]
        result = function(images[part] / 255, rngs, c)
        out[part] = np.floor(np.clip(result, 0, 1) * 255 + blur.ROUNDING)
        if jpeg and table(shape) == "ImageNet-C":
            out[part] = digital.saved_as_jpeg(out[part], JPEG_QUALITY)
    return out
