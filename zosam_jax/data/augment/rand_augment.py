"""RandAugment (Cubuk et al., arXiv:1909.13719) in the form of timm and DeiT.

For each image, two of fifteen operations are drawn with replacement, and each is
applied with probability 1/2. Its magnitude m is normal with the given mean and standard
deviation 0.5, clipped to 0 to 10. With mean 9 this is timm's `rand-m9-mstd0.5-inc1`.
With `t = m / 10` and `s = t` or `-t` with equal probability:

| operation | what it does |
|---|---|
| autocontrast, equalize, invert | without a magnitude; the first two by channel |
| rotate | rotates by `30 s` degrees about the center |
| posterize | keeps the highest `4 - floor(4 t)` bits |
| solarize | inverts levels of at least `256 - floor(256 t)` |
| solarize_add | adds `floor(110 t)` to levels below 128, up to 255 |
| color, contrast, brightness, sharpness | blends by a factor `max(0.1, 1 + 0.9 s)` |
| shear_x, shear_y | shears by `0.3 s` |
| translate_x, translate_y | moves by `0.45 s` of the side |

A larger magnitude always means a stronger change ("increasing" magnitudes, `inc1`).
Pixel arithmetic and rounding are Pillow's.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._types import Key
from zosam_jax.data.augment.boxes import Array

OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_INDEX = {name: index for index, name in enumerate(OPERATIONS)}
_TABLES = OPERATIONS[:3] + OPERATIONS[4:7]
_BLENDS = OPERATIONS[7:11]


class RandAugment(NamedTuple):
    """The operations of `randaugment` on each image, layer after layer.

    Attributes:
      operation: Index in `OPERATIONS`, or -1 for none; int32 `[layers, N]`.
      magnitude: From 0 to 10; float32 `[layers, N]`.
      sign: 1 or -1, for operations with a direction; float32 `[layers, N]`.
    """

    operation: jax.Array
    magnitude: jax.Array
    sign: jax.Array


def randaugment_parameters(
    key: Key,
    n: int,
    magnitude: float = 9.0,
    std: float = 0.5,
    layers: int = 2,
    probability: float = 0.5,
) -> RandAugment:
    """Returns random operations for `randaugment`. The defaults are DeiT's.

    Args:
      key: A random key.
      n: Number of images.
      magnitude: Mean of the magnitudes, from 0 to 10.
      std: Standard deviation of the magnitudes before they are clipped to 0 to 10.
      layers: Number of operations drawn for each image.
      probability: Probability that an operation is applied: 1/2 in timm, 1 in the
        paper.
    """
    keys = jax.random.split(key, 4)
    shape = layers, n
    operation = jax.random.randint(keys[0], shape, 0, len(OPERATIONS))
    applied = jax.random.uniform(keys[1], shape) < probability
    drawn = magnitude + std * jax.random.normal(keys[2], shape)
    sign = jnp.where(jax.random.bernoulli(keys[3], shape=shape), 1.0, -1.0)
    operation = jnp.where(applied, operation, -1)
    return RandAugment(operation, jnp.clip(drawn, 0, 10), sign)


def randaugment(
    images: Array,
    parameters: RandAugment,
    mean: tuple[float, ...],
    interpolation: str = "bicubic",
) -> jax.Array:
    """Returns each image after its operations.

    On a CPU, images are processed one after another, and only the drawn operations are
    computed. On other devices all images are processed at once, and each layer computes
    one resampling, one table of levels and one blend. With several CPU devices the loop
    gathers the batch; GPUs and TPUs do not.

    Args:
      images: uint8 `[N, H, W, C]`, of 1 or 3 channels.
      parameters: See `randaugment_parameters`.
      mean: Mean of each channel of `images / 255`. Its nearest level fills the pixels
        that a rotation, shear or translation leaves empty.
      interpolation: Interpolation of these: "bilinear", or "bicubic" as in DeiT (Keys'
        kernel with a = -1, as in Pillow's `transform`).

    Returns:
      uint8 `[N, H, W, C]`.

    Raises:
      ValueError: The images have neither 1 nor 3 channels.
    """
    _check.one_of("interpolation", interpolation, ("bilinear", "bicubic"))
    channels = images.shape[-1]
    if channels not in (1, 3):
        raise ValueError(
            f"randaugment needs images of 1 or 3 channels and got {channels}."
        )
    # After normalization these pixels are about 0.
    fill = tuple(round(255 * m) for m in mean)
    # 1: a resampling, 2: a table of levels, 3: a blend; see `branches`.
    kinds = [2 if x in _TABLES else 3 if x in _BLENDS else 1 for x in OPERATIONS]

    def apply(image: jax.Array, layer: RandAugment) -> tuple[jax.Array, None]:
        kind = jnp.array([*kinds, 0])[layer.operation]  # -1 indexes the last one, 0
        branches = [
            lambda image: image,
            lambda image: _transform(image, layer, fill, interpolation),
            lambda image: _map_levels(image, layer),
            lambda image: _enhance(image, layer),
        ]
        return jax.lax.switch(kind, branches, image), None

    def apply_all(image: jax.Array, layers: RandAugment) -> jax.Array:
        return jax.lax.scan(apply, image, layers)[0]

    by_image = RandAugment(*(x.T for x in parameters))
    return jax.lax.platform_dependent(
        images,
        by_image,
        cpu=lambda *batch: jax.lax.map(lambda one: apply_all(*one), batch),
        default=jax.vmap(apply_all),
    )


def _pick(
    layer: RandAugment, choices: Mapping[str, jax.Array], default: float
) -> jax.Array:
    """Returns the value of the drawn operation, or `default` if it has none."""
    drawn = [layer.operation == _INDEX[name] for name in choices]
    return jnp.select(drawn, list(choices.values()), default)


def _transform(
    image: jax.Array, layer: RandAugment, fill: tuple[int, ...], interpolation: str
) -> jax.Array:
    """Returns the image after a rotation, shear or translation."""
    height, width, _ = image.shape
    share = layer.sign * layer.magnitude / 10
    angle = math.radians(30) * share
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Inverse affine map: the output pixel with center (x, y) is read at
    # (a x + b y + c, d x + e y + f). A rotation turns about the image's center, which
    # c and f keep in place.
    x, y = width / 2, height / 2
    # A shear or a move leaves the other coefficients at the identity.
    a = e = _pick(layer, {"rotate": cos}, 1)
    b = _pick(layer, {"rotate": -sin, "shear_x": 0.3 * share}, 0)
    d = _pick(layer, {"rotate": sin, "shear_y": 0.3 * share}, 0)
    move = 0.45 * share
    c = {"rotate": x - cos * x + sin * y, "translate_x": move * width}
    f = {"rotate": y - sin * x - cos * y, "translate_y": move * height}
    columns = jnp.arange(width, dtype=float)[None] + 0.5
    rows = jnp.arange(height, dtype=float)[:, None] + 0.5
    return _sample(
        image,
        d * columns + e * rows + _pick(layer, f, 0),
        a * columns + b * rows + _pick(layer, c, 0),
        fill,
        interpolation,
    )


def _sample(
    image: jax.Array,
    y: jax.Array,
    x: jax.Array,
    fill: tuple[int, ...],
    interpolation: str,
) -> jax.Array:
    """Returns the interpolated levels at some points, truncated as in Pillow.

    Args:
      image: uint8 `[H, W, C]`.
      y: Rows of the points in pixels, float32 `[H, W]`.
      x: Columns of the points.
      fill: Level of each channel for points outside of the image.
      interpolation: "bilinear" or "bicubic".
    """
    height, width, channels = image.shape
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    dx, dy = x - left, y - top
    left, top = left.astype(jnp.int32), top.astype(jnp.int32)
    # All channels of a pixel in one 32-bit word, for a third of the gathers.
    words = image[..., 0].astype(jnp.uint32)
    for channel in range(1, channels):
        words |= image[..., channel].astype(jnp.uint32) << (8 * channel)
    words = words.reshape(height * width)

    offsets = range(2) if interpolation == "bilinear" else range(-1, 3)
    mix = _linear if interpolation == "bilinear" else _cubic
    taps = {}
    for j in offsets:
        row = jnp.clip(top + j, 0, height - 1) * width
        for i in offsets:
            place = row + jnp.clip(left + i, 0, width - 1)
            taps[j, i] = words.at[place].get(mode="promise_in_bounds")
    result = []
    for channel in range(channels):
        level = {
            at: ((word >> (8 * channel)) & 255).astype(jnp.float32)
            for at, word in taps.items()
        }
        lines = [mix([level[j, i] for i in offsets], dx) for j in offsets]
        value = jnp.clip(jnp.floor(mix(lines, dy)), 0, 255).astype(jnp.uint8)
        result.append(jnp.where(within, value, jnp.uint8(fill[channel])))
    return jnp.stack(result, -1)


# Both interpolations are written in differences, which are exactly 0 where the image is
# flat. Otherwise a rounding error there could truncate to one level less.
def _linear(v: list[jax.Array], d: jax.Array) -> jax.Array:
    """Returns the linear interpolation at d in [0, 1] between two values."""
    return v[0] + (v[1] - v[0]) * d


def _cubic(v: list[jax.Array], d: jax.Array) -> jax.Array:
    """Returns the cubic interpolation at d in [0, 1] between v[1] and v[2]."""
    first = v[2] - v[0]
    second = 2 * (v[0] - v[1]) + v[2] - v[3]
    third = v[1] - v[0] + v[3] - v[2]
    return v[1] + d * (first + d * (second + d * third))


def _map_levels(image: jax.Array, layer: RandAugment) -> jax.Array:
    """Returns the image after a table lookup of levels, by channel."""
    channels = image.shape[-1]
    pixels = image.reshape(-1, channels)
    level = jnp.arange(256)[:, None]
    share = layer.magnitude / 10
    # Truncated as timm's integers are: magnitude 9 gives 26, not 25.6.
    threshold = 256 - jnp.floor(256 * share).astype(jnp.int32)
    dropped = 4 + jnp.floor(4 * share).astype(jnp.int32)
    bright = jnp.minimum(level + jnp.floor(110 * share).astype(jnp.int32), 255)
    tables = {
        "autocontrast": _autocontrast(pixels),
        "equalize": _equalize(pixels),
        "invert": 255 - level,
        "posterize": (level >> dropped) << dropped,
        "solarize": jnp.where(level < threshold, level, 255 - level),
        "solarize_add": jnp.where(level < 128, bright, level),
    }
    shape = 256, channels
    tables = {name: jnp.broadcast_to(x, shape) for name, x in tables.items()}
    table = _pick(layer, tables, 0).astype(jnp.uint8)
    return _look_up(table.reshape(-1), pixels).reshape(image.shape)


def _place(pixels: jax.Array) -> jax.Array:
    """Returns the indices of the levels of pixels in a flat table `[256 C]`."""
    channels = pixels.shape[-1]
    return pixels.astype(jnp.int32) * channels + jnp.arange(channels)[None]


def _look_up(table: jax.Array, pixels: jax.Array) -> jax.Array:
    """Returns the entries of a flat table `[256 C]` for the levels of pixels."""
    return table.at[_place(pixels)].get(mode="promise_in_bounds")


def _autocontrast(pixels: jax.Array) -> jax.Array:
    """Returns the table `[256, C]` that stretches the levels to 0 to 255."""
    # By channel, as Pillow does: colors shift, unlike in an autocontrast of luma.
    low, high = (f(pixels, 0)[None].astype(jnp.int32) for f in (jnp.min, jnp.max))
    level = jnp.arange(256)[:, None]
    spread = (level - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(spread, 0, 255), level)


def _equalize(pixels: jax.Array) -> jax.Array:
    """Returns the table `[256, C]` of Pillow's histogram equalization."""
    size, channels = pixels.shape
    counts = jnp.zeros(256 * channels, jnp.int32)
    counts = counts.at[_place(pixels)].add(1, mode="promise_in_bounds")
    counts = counts.reshape(256, channels)
    level = jnp.arange(256)[:, None]
    last = jnp.max(jnp.where(counts > 0, level, 0), 0, keepdims=True)
    # The pixels of the highest level do not count, so that it maps to 255.
    step = (size - jnp.take_along_axis(counts, last, 0)) // 255
    below = jnp.cumsum(counts, 0) - counts
    table = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255), level)


def _enhance(image: jax.Array, layer: RandAugment) -> jax.Array:
    """Returns the image blended with its gray, mean, black or smoothed version."""
    # A factor of 0 would leave nothing of the image: a constant, or gray.
    factor = jnp.maximum(0.1, 1 + 0.9 * (layer.sign * layer.magnitude / 10))
    image = image.astype(jnp.int32)
    grey = _grey(image)
    # The mean, rounded half up without a division of floats.
    mean = (2 * grey.sum() + grey.size) // (2 * grey.size)
    versions = {
        "color": jnp.broadcast_to(grey, image.shape),
        "contrast": jnp.broadcast_to(mean, image.shape),
        "brightness": jnp.zeros_like(image),
        "sharpness": _smooth(image),
    }
    base = _pick(layer, versions, 0)
    result = base.astype(jnp.float32) + factor * (image - base).astype(jnp.float32)
    return jnp.clip(jnp.floor(result), 0, 255).astype(jnp.uint8)


def _grey(image: jax.Array) -> jax.Array:
    """Returns the luma of ITU-R 601-2, `[H, W, 1]`, in Pillow's integer arithmetic."""
    if image.shape[-1] == 1:
        return image
    # The weights 0.299, 0.587 and 0.114 in units of 2^-16.
    luma = image @ jnp.array([19595, 38470, 7471])
    return ((luma + (1 << 15)) >> 16)[..., None]


def _smooth(image: jax.Array) -> jax.Array:
    """Returns means of 3x3 pixels with center weight 5; edge pixels are unchanged."""
    inner = image[1:-1, 1:-1]
    if not inner.size:
        return image
    # A sum of nine by two sums of three.
    rows = image[:-2] + image[1:-1] + image[2:]
    # Eight neighbors with weight 1 and the center with 5, over 13, rounded half up.
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * inner
    return image.at[1:-1, 1:-1].set((2 * total + 13) // 26)
