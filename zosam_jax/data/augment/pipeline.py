"""The augmentation of a batch, from a list of names and strengths."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax

from zosam_jax import _check
from zosam_jax.data.augment import crops, mixing, occlusion, policy


class _Row(NamedTuple):
    """An operation: what its strength is, and which key it draws from.

    Its key is the step's folded with `stream`: no operation changes the draws of
    another. Crop and flip share a draw from the step's key itself, which splits it in
    two, the folds of 0 and 1; so streams begin at 2. A stream is never used anew.
    """

    strength: str
    default: float | None
    least: float
    most: float
    whole: bool = False
    stream: int | None = None


_ANY = 2.0**20
# In the order of their application.
_TABLE = {
    "crop": _Row("pixels of zero padding", None, 0, _ANY, whole=True),
    "resized_crop": _Row("least share of the area, in (0, 1]", 0.08, 0, 1, stream=2),
    "flip": _Row("", None, 0, 0),
    "randaugment": _Row("magnitude, 0 to 10", 9, 0, 10, stream=3),
    "cutout": _Row("side in pixels", None, 0, _ANY, whole=True, stream=4),
    "erasing": _Row("probability", 0.25, 0, 1, stream=5),
    "mixup": _Row("alpha of Beta(alpha, alpha), > 0", 0.8, 0, _ANY, stream=6),
    "cutmix": _Row("alpha of Beta(alpha, alpha), > 0", 1.0, 0, _ANY, stream=7),
}
_POSITIVE = ("resized_crop", "mixup", "cutmix")
_SWITCH = 8


def names() -> tuple[str, ...]:
    """Returns the operations that `make` knows, in the order of their application."""
    return tuple(_TABLE)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A pure function of a key and a batch; `make` builds it. Equal ones hash equally.

    Its order is that of `names()`: geometry, RandAugment, what covers a part of an
    image, what mixes images. With `mixup` and `cutmix`, a batch gets one of them, each
    with probability 1/2 (DeiT, arXiv:2012.12877).

    Attributes:
      operations: Name and strength of each operation, in order.
      num_classes: Number of classes.
      mean: Mean of each channel of the training `images / 255`.
      std: Their standard deviation.
      image_size: Side of the square that `resized_crop` makes; None: as it came.
    """

    operations: tuple[tuple[str, float], ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The options that make this augmentation, with every strength."""
        return tuple(
            name if name == "flip" else f"{name}={strength:.12g}"
            for name, strength in self.operations
        )

    @property
    def soft_targets(self) -> bool:
        """Whether targets are float32 `[N, K]` instead of labels."""
        return any(name in ("mixup", "cutmix") for name, _ in self.operations)

    def __call__(
        self, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the augmented images and their targets.

        Args:
          key: The key of the step.
          images: uint8 `[N, H, W, C]`.
          labels: int32 `[N]`.

        Returns:
          Images `[N, H, W, C]`, `[N, image_size, image_size, C]` after `resized_crop`:
          uint8, or float32 levels of the same scale where `erasing` or `mixup` is on
          (the noise of `erasing` can lie outside of 0 to 255). Targets: the labels, or
          float32 `[N, K]` with rows that sum to 1.
        """
        on = dict(self.operations)
        keys = {
            name: jax.random.fold_in(key, stream)
            for name in on
            if (stream := _TABLE[name].stream) is not None
        }
        if "resized_crop" in on:
            size = (
                self.image_size or images.shape[1],
                self.image_size or images.shape[2],
            )
            least = on["resized_crop"]
            box = crops.resized_crop_parameters(
                keys["resized_crop"], images.shape, (least, 1.0)
            )
            images = crops.resized_crop(images, box, size)
        if "crop" in on or "flip" in on:
            padding = int(on.get("crop", 0))
            images = crops.random_crop_flip(key, images, padding, "flip" in on)
        if "randaugment" in on:
            drawn = policy.randaugment_parameters(
                keys["randaugment"], len(images), on["randaugment"]
            )
            images = policy.randaugment(images, drawn, self.mean)
        if "cutout" in on:
            box = occlusion.cutout_parameters(
                keys["cutout"], images.shape, int(on["cutout"])
            )
            images = occlusion.cutout(images, box, self.mean)
        if "erasing" in on:
            erasing = occlusion.erasing_parameters(
                keys["erasing"], images.shape, on["erasing"]
            )
            images = occlusion.erase(images, erasing, self.mean, self.std)
        if self.soft_targets:
            return self._mixed(key, keys, images, labels)
        return images, labels

    def _mixed(
        self,
        key: jax.Array,
        keys: dict[str, jax.Array],
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
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
        weight = jax.numpy.where(use_cutmix, share, weight)
        return images, mixing.mix_labels(labels, weight, self.num_classes)


def make(
    options: Iterable[str] | None,
    *,
    num_classes: int,
    crop_padding: int,
    flip: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int | None = None,
) -> Augmentation:
    """Returns the augmentation of a list of options.

    An option is a name or `NAME=STRENGTH`. Their order is without effect: operations
    are applied in that of `names()`. None stands for the data set's own, `()` for no
    augmentation.

    | option | strength | default |
    |---|---|---|
    | `crop` | pixels of zero padding | `crop_padding` |
    | `resized_crop` | least share of the area, in (0, 1] | 0.08 |
    | `flip` | none: a mirror image with probability 1/2 | |
    | `randaugment` | magnitude, 0 to 10 | 9 |
    | `cutout` | side of the square in pixels | none: it must be given |
    | `erasing` | probability of an image to lose a box | 0.25 |
    | `mixup` | alpha of Beta(alpha, alpha) | 0.8 |
    | `cutmix` | alpha of Beta(alpha, alpha) | 1 |

    DeiT's: `resized_crop flip randaugment erasing mixup cutmix`.

    Args:
      options: The options.
      num_classes: Number of classes, for the soft targets of `mixup` and `cutmix`.
      crop_padding: The data set's own padding.
      flip: Whether the data set's own augmentation mirrors.
      mean: Mean of each channel of the training `images / 255`: what covered parts
        become.
      std: Their standard deviation, for the noise of `erasing`.
      image_size: Side of the square that `resized_crop` makes. Default: the size of
        the images that come.

    Raises:
      ValueError: A name is unknown or comes twice, a strength is missing, not a number
        or out of range, or two options exclude each other.
    """
    if options is None:
        options = [f"crop={crop_padding}"] if crop_padding else []
        options += ["flip"] if flip else []
    found: dict[str, float] = {}
    for option in options:
        name, given, text = option.partition("=")
        _check.one_of("augment", name, _TABLE)
        if name in found:
            raise ValueError(f"augment: {name!r} is given twice.")
        default = crop_padding if name == "crop" else _TABLE[name].default
        found[name] = _strength(name, text if given else None, default)
    if "crop" in found and "resized_crop" in found:
        raise ValueError("augment: 'crop' and 'resized_crop' exclude each other.")
    return Augmentation(
        tuple((name, found[name]) for name in _TABLE if name in found),
        num_classes,
        tuple(mean),
        tuple(std),
        image_size,
    )


def _strength(name: str, text: str | None, default: float | None) -> float:
    row = _TABLE[name]
    if name == "flip":
        if text is not None:
            raise ValueError(f"augment: 'flip' takes no strength, and got {text!r}.")
        return 1.0
    if text is None and default is None:
        raise ValueError(
            f"augment: {name!r} needs a strength: {name}=NUMBER, {row.strength}."
        )
    try:
        value = float(text) if text is not None else float(default or 0)
    except ValueError:
        raise ValueError(
            f"augment: the strength of {name!r} is not a number: {text!r}. It is "
            f"{row.strength}."
        ) from None
    argument = f"augment: {name} ({row.strength})"
    above = row.least if name in _POSITIVE else None
    _check.number(argument, value, least=row.least, most=row.most, above=above)
    if row.whole and value != int(value):
        raise ValueError(f"{argument}={value:g} must be a whole number.")
    return value
