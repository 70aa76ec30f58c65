"""The augmentation of a batch, composed of operations by name.

To add an operation, write its functions into a module of this package and add a row to
`OPERATIONS`. `tests/data/test_pipeline.py` says what is still missing.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax import _check
from zosam_jax._types import Key
from zosam_jax.data.augment import crops, mixing, occlusion, rand_augment
from zosam_jax.data.augment.boxes import Array
from zosam_jax.data.dataset import IGNORED

Apply = Callable[[Key, jax.Array, float, "Augmentation"], jax.Array]


class Operation(NamedTuple):
    """A row of the table of operations.

    Attributes:
      apply: `(key, images, strength, augmentation)`; returns the images. None for
        `mixup` and `cutmix`, which change labels too and come last.
      strength: Meaning and unit of the strength; "" for none.
      default: Default strength; None: it must be given.
      least: Smallest strength.
      most: Largest strength.
      whole: Whether the strength is an integer.
      positive: Whether the strength must be above `least`.
      stream: The operation's key is the key of the step with this integer folded in, so
        that no operation changes the draws of another. None: the key of the step
        itself, which crop and flip share. Their draw splits it into the keys with 0 and
        1 folded in, so that streams begin at 2. The number of a removed operation is
        never used again.
      of_maps: `apply` for label maps `[N, H, W, 1]`: it moves their pixels as those of
        the images. `_unmoved` for one that moves none. None: label maps cannot follow.
    """

    apply: Apply | None
    strength: str
    default: float | None
    least: float
    most: float
    whole: bool = False
    positive: bool = False
    stream: int | None = None
    of_maps: Apply | None = None


def _crop_flip(
    key: Key, images: jax.Array, padding: float, augmentation: "Augmentation"
) -> jax.Array:
    flip = "flip" in dict(augmentation.operations)
    return crops.random_crop_flip(key, images, int(padding), flip)


def _crop_flip_maps(
    key: Key, maps: jax.Array, padding: float, augmentation: "Augmentation"
) -> jax.Array:
    flip = "flip" in dict(augmentation.operations)
    return crops.random_crop_flip(key, maps, int(padding), flip, fill=IGNORED)


def _flip(
    key: Key, images: jax.Array, strength: float, augmentation: "Augmentation"
) -> jax.Array:
    del strength
    if "crop" in dict(augmentation.operations):  # `_crop_flip` has flipped them
        return images
    return crops.random_crop_flip(key, images, 0, True)


def _resized_crop(
    key: Key, images: jax.Array, least: float, augmentation: "Augmentation"
) -> jax.Array:
    height, width = images.shape[1:3]
    side = augmentation.image_size
    box = crops.resized_crop_parameters(key, images.shape, (least, 1.0))
    return crops.resized_crop(images, box, (side or height, side or width))


def _resized_maps(
    key: Key, maps: jax.Array, least: float, augmentation: "Augmentation"
) -> jax.Array:
    height, width = maps.shape[1:3]
    side = augmentation.image_size
    box = crops.resized_crop_parameters(key, maps.shape, (least, 1.0))
    return crops.resized_maps(maps, box, (side or height, side or width))


def _randaugment(
    key: Key, images: jax.Array, magnitude: float, augmentation: "Augmentation"
) -> jax.Array:
    drawn = rand_augment.randaugment_parameters(key, len(images), magnitude)
    return rand_augment.randaugment(images, drawn, augmentation.mean)


def _cutout(
    key: Key, images: jax.Array, size: float, augmentation: "Augmentation"
) -> jax.Array:
    box = occlusion.cutout_parameters(key, images.shape, int(size))
    return occlusion.cutout(images, box, augmentation.mean)


def _erasing(
    key: Key, images: jax.Array, probability: float, augmentation: "Augmentation"
) -> jax.Array:
    drawn = occlusion.erasing_parameters(key, images.shape, probability)
    return occlusion.erase(images, drawn, augmentation.mean, augmentation.std)


def _unmoved(
    key: Key, maps: jax.Array, strength: float, augmentation: "Augmentation"
) -> jax.Array:
    del key, strength, augmentation
    return maps


_ANY = 2.0**20
_BETA = "alpha of Beta(alpha, alpha), > 0"

# In the order of application.
OPERATIONS: dict[str, Operation] = {
    "crop": Operation(
        _crop_flip,
        "pixels of zero padding",
        None,
        0,
        _ANY,
        whole=True,
        of_maps=_crop_flip_maps,
    ),
    "resized_crop": Operation(
        _resized_crop,
        "least fraction of the area, in (0, 1]",
        0.08,
        0,
        1,
        positive=True,
        stream=2,
        of_maps=_resized_maps,
    ),
    "flip": Operation(_flip, "", None, 0, 0, of_maps=_flip),
    "randaugment": Operation(_randaugment, "magnitude, 0 to 10", 9, 0, 10, stream=3),
    "cutout": Operation(
        _cutout,
        "side in pixels",
        None,
        0,
        _ANY,
        whole=True,
        stream=4,
        of_maps=_unmoved,
    ),
    "erasing": Operation(
        _erasing, "probability", 0.25, 0, 1, stream=5, of_maps=_unmoved
    ),
    "mixup": Operation(None, _BETA, 0.8, 0, _ANY, positive=True, stream=6),
    "cutmix": Operation(None, _BETA, 1.0, 0, _ANY, positive=True, stream=7),
}
_NO_MAPS = (
    "mixes or moves pixels, and label maps cannot follow. Those of segmentation take "
    "crop, resized_crop, flip, cutout and erasing."
)
# The stream that chooses between mixup and cutmix.
_SWITCH = 8


def names() -> tuple[str, ...]:
    """Returns the names of the operations in the order of their application.

    >>> names()[:3]
    ('crop', 'resized_crop', 'flip')
    """
    return tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A pure function that augments a batch; see `compose`. It is hashable.

    Operations are applied in the order of `names()`: geometry, RandAugment, occlusion,
    and mixing of images. With both `mixup` and `cutmix`, each batch gets one of them
    with probability 1/2 (DeiT, arXiv:2012.12877).

    Attributes:
      operations: Name and strength of each operation, in order.
      num_classes: Number of classes, K.
      mean: Mean of each channel of the training `images / 255`.
      std: Standard deviation of each channel of the training `images / 255`.
      image_size: Side of the result of `resized_crop` in pixels; None: unchanged.
      of_maps: Whether the labels are maps, whose pixels move with those of the images.
    """

    operations: tuple[tuple[str, float], ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | None = None
    of_maps: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The options in the form of `compose`, with all strengths."""
        return tuple(
            name if name == "flip" else f"{name}={strength:.12g}"
            for name, strength in self.operations
        )

    @property
    def soft_targets(self) -> bool:
        """Whether the targets are float32 `[N, K]` instead of integer labels."""
        return any(name in ("mixup", "cutmix") for name, _ in self.operations)

    def __call__(
        self, key: Key, images: Array, labels: Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the augmented images and their targets.

        Args:
          key: The random key of the step.
          images: uint8 `[N, H, W, C]`.
          labels: int32 `[N]`; or label maps, integers `[N, H, W]`. What a crop adds to
            a map is `IGNORED`.

        Returns:
          Images `[N, H, W, C]`, or `[N, image_size, image_size, C]` after
          `resized_crop`. They are uint8, or float32 from 0 to 255 with `erasing` or
          `mixup` (the noise of `erasing` can exceed this range). Targets are the
          labels, or float32 `[N, K]` with rows that sum to 1.
        """
        images, labels = jnp.asarray(images), jnp.asarray(labels)
        keys = {
            name: key if stream is None else jax.random.fold_in(key, stream)
            for name, _ in self.operations
            # By name alone: a new operation leaves the draws of the others.
            for stream in [OPERATIONS[name].stream]
        }
        for name, strength in self.operations:
            row = OPERATIONS[name]
            if row.apply is not None:
                images = row.apply(keys[name], images, strength, self)
            if self.of_maps and row.of_maps is not None:
                maps = labels[..., None]
                labels = row.of_maps(keys[name], maps, strength, self)[..., 0]
        if self.soft_targets:
            return self._mixed(key, keys, images, labels)
        return images, labels

    def _mixed(
        self, key: Key, keys: dict[str, Key], images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the images and targets after mixup or CutMix."""
        on = dict(self.operations)
        if "cutmix" not in on:
            weight = mixing.mixup_parameters(keys["mixup"], on["mixup"])
            images = mixing.mixup(images, weight)
            return images, mixing.mix_labels(labels, weight, self.num_classes)
        box, share = mixing.cutmix_parameters(
            keys["cutmix"], images.shape, on["cutmix"]
        )
        if "mixup" not in on:
            images = mixing.cutmix(images, box)
            return images, mixing.mix_labels(labels, share, self.num_classes)
        weight = mixing.mixup_parameters(keys["mixup"], on["mixup"])
        use_cutmix = jax.random.bernoulli(jax.random.fold_in(key, _SWITCH))
        images = mixing.mixup_or_cutmix(images, weight, box, use_cutmix)
        # Labels are mixed by the area that was pasted, or by the weight of the pixels.
        weight = jnp.where(use_cutmix, share, weight)
        return images, mixing.mix_labels(labels, weight, self.num_classes)


def compose(
    options: Iterable[str] | None,
    *,
    num_classes: int,
    crop_padding: int,
    flip: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int | None = None,
    of_maps: bool = False,
) -> Augmentation:
    """Returns the augmentation composed of some operations.

    An option is NAME or NAME=STRENGTH. Operations are applied in the order of
    `names()`, whatever the order of the options.

    | option | strength | default |
    |---|---|---|
    | `crop` | zero padding in pixels | `crop_padding` |
    | `resized_crop` | least fraction of the area, in (0, 1] | 0.08 |
    | `flip` | none: mirrored with probability 1/2 | |
    | `randaugment` | magnitude, 0 to 10 | 9 |
    | `cutout` | side of the square in pixels | none: it must be given |
    | `erasing` | probability that an image has a box | 0.25 |
    | `mixup` | alpha of Beta(alpha, alpha) | 0.8 |
    | `cutmix` | alpha of Beta(alpha, alpha) | 1 |

    DeiT uses `resized_crop flip randaugment erasing mixup cutmix`.

    Args:
      options: The options. None: the usual crop and flip of the data set. (): no
        augmentation. For images that are read from disk, the trainer passes the
        strength of `resized_crop` on to `Streamed.least_area`.
      num_classes: Number of classes, for the soft targets of `mixup` and `cutmix`.
      crop_padding: Zero padding of the data set's usual crop, in pixels; 0: no crop.
      flip: Whether the data set is usually flipped.
      mean: Mean of each channel of the training `images / 255`, which fills covered
        and empty pixels.
      std: Standard deviation of each channel of the training `images / 255`, for the
        noise of `erasing`.
      image_size: Side of the result of `resized_crop` in pixels. Default: unchanged.
      of_maps: Whether the labels are maps of pixels. Crops and flips then act on image
        and map alike, and `cutout` and `erasing` leave the map as it is: the network
        learns what is hidden. The others are refused.

    Raises:
      ValueError: A name is unknown or given twice, a strength is missing, not a number
        or out of range, two options exclude each other, or label maps cannot follow.

    >>> augmentation = compose(
    ...     ("flip", "cutout=8"), num_classes=10, crop_padding=4, flip=True,
    ...     mean=(0.5,), std=(0.2,)
    ... )
    >>> augmentation.operations
    (('flip', 1.0), ('cutout', 8.0))
    """
    if options is None:
        options = [f"crop={crop_padding}"] if crop_padding else []
        options += ["flip"] if flip else []
    found: dict[str, float] = {}
    for option in options:
        name, given, text = option.partition("=")
        _check.one_of("augment", name, OPERATIONS)
        if name in found:
            raise ValueError(f"augment: {name!r} is given twice.")
        default = crop_padding if name == "crop" else OPERATIONS[name].default
        found[name] = _strength(name, text if given else None, default)
    if "crop" in found and "resized_crop" in found:
        raise ValueError("augment: 'crop' and 'resized_crop' exclude each other.")
    for name in found if of_maps else ():
        if OPERATIONS[name].of_maps is None:
            raise ValueError(f"augment: {name!r} {_NO_MAPS}")
    return Augmentation(
        tuple((name, found[name]) for name in OPERATIONS if name in found),
        num_classes,
        tuple(mean),
        tuple(std),
        image_size,
        of_maps,
    )


def _strength(name: str, text: str | None, default: float | None) -> float:
    """Returns the strength of an option, after checking it."""
    row = OPERATIONS[name]
    if not row.strength:
        if text is not None:
            raise ValueError(f"augment: {name!r} takes no strength, and got {text!r}.")
        return 1.0
    if text is None and default is None:
        raise ValueError(
            f"augment: {name!r} needs a strength: {name}=NUMBER, {row.strength}."
        )
    try:
        value = float(text) if text is not None else float(default or 0)
    except ValueError:
        raise ValueError(
            f"augment: the strength of {name!r} is not a number: {text!r}. "
            f"Give {row.strength}."
        ) from None
    argument = f"augment: {name} ({row.strength})"
    least, above = (None, row.least) if row.positive else (row.least, None)
    _check.number(argument, value, above=above, least=least, most=row.most)
    if row.whole and value != int(value):
        raise ValueError(f"{argument}={value:g} must be a whole number.")
    return value


def normalize(
    images: Array,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns `(images / 255 - mean) / std`, computed in float32.

    Args:
      images: uint8 `[..., C]`, or float32 from 0 to 255.
      mean: Mean of each channel of `images / 255`.
      std: Standard deviation of each channel of `images / 255`.
      dtype: Type of the result.

    Returns:
      `dtype` `[..., C]`.

    >>> normalize(jnp.array([[255, 0]], jnp.uint8), (0.5, 0.5), (0.25, 0.25))
    Array([[ 2., -2.]], dtype=float32)
    """
    # One multiplication and one subtraction for each value, in float32 whatever dtype.
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean_, std_ = (jnp.asarray(x, jnp.float32).reshape(shape) for x in (mean, std))
    scale = 1 / (255 * std_)
    offset = mean_ / std_
    return (jnp.asarray(images, jnp.float32) * scale - offset).astype(dtype)
