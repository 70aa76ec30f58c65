"""VGG with batch normalisation, for CIFAR (arXiv:1409.1556, arXiv:1502.03167)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and number of convolutions of each stage of VGG-19."""

_SMALLEST = 2 ** (len(STAGES) - 1)


def check_image_size(image_size: int) -> None:
    """Raises `ValueError` if the poolings between the stages leave no pixel."""
    if image_size < _SMALLEST:
        raise ValueError(
            f"image_size={image_size} is too small for VGG. Its {len(STAGES) - 1} "
            f"poolings need at least {_SMALLEST} pixels."
        )


def units(stages: tuple[tuple[int, int], ...] = STAGES) -> dict[str, Units]:
    """Returns the units of the network: the channels of every convolution.

    Args:
      stages: Channels and number of convolutions of each stage.
    """
    depth = sum(count for _, count in stages)
    readers = [*(f"conv{i}" for i in range(2, depth + 1)), "head"]
    return {
        f"channels{i}": Units(
            f"{reader}/kernel",
            incoming=(f"conv{i}/kernel", f"norm{i}/scale", f"norm{i}/bias"),
            scale=f"norm{i}/scale",
        )
        for i, reader in enumerate(readers, start=1)
    }


class VGG(nn.Module):
    """3x3 convolutions, each with batch normalization and ReLU, and one linear head.

    The convolutions have no bias. A 2x2 max pooling of stride 2 separates the stages,
    and global average pooling follows the last one (over 2x2 positions for images of 32
    pixels). This is the network of GraSP (arXiv:2002.07376), MEST and S2-SAM.
    Convolutions are initialized from N(0, 2 / fan_out) and the head's kernel from
    N(0, 0.01^2).

    Parameters are named `conv{i}`, `norm{i}` (from 1) and `head`, and are float32.

    Attributes:
      num_classes: Number of classes.
      width: Multiplier of all channel counts; each is rounded to the nearest integer.
      dtype: Type of the computation; logits and batch statistics are float32.
      dropout: Dropout rate before the head, in [0, 1).
      stages: Channels and number of convolutions of each stage.
      widths: Channels of convolutions that are not the usual ones, as
        `{"channels3": 50}` for `conv3`.
    """

    num_classes: int
    width: float = 1.0
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0
    stages: tuple[tuple[int, int], ...] = STAGES
    widths: layers.Widths = layers.USUAL

    @nn.nowrap
    def cuts(self) -> dict[str, Units]:
        """Returns the layers of units whose width `widths` can set."""
        return units(self.stages)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits `[N, num_classes]`, float32.

        Args:
          images: Normalized images `[N, H, W, C]`, H and W at least 16.
          train: True: normalize by the batch's statistics, update the running ones
            (the collection `batch_stats` must be mutable), and drop out. False:
            normalize by the running statistics.
        """
        # A pooling of one pixel would leave none, and the mean over none is NaN.
        check_image_size(min(images.shape[1:3]))
        x = jnp.asarray(images, self.dtype)
        number = 0
        for stage, (base, count) in enumerate(self.stages):
            if stage:
                # Between the stages only: the last stage keeps 2 x 2 positions.
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            for _ in range(count):
                number += 1
                usual = round(base * self.width)
                channels = self.widths.get(f"channels{number}", usual)
                x = layers.conv(channels, 3, 1, self.dtype, f"conv{number}")(x)
                x = layers.batch_norm(train, self.dtype, f"norm{number}")(x)
                x = nn.relu(x)
        return layers.pooled_logits(self, x, self.num_classes, self.dropout, train)


def create_vgg19(
    *,
    num_classes: int,
    width: float = 1.0,
    image_size: int = 32,
    dtype: DTypeLike = jnp.float32,
    dropout: float = 0.0,
    widths: layers.Widths = layers.USUAL,
) -> VGG:
    """Returns VGG-19 for images of a size; see `VGG` for the other arguments.

    Args:
      num_classes: Number of classes.
      width: Multiplier of all channel counts.
      image_size: Side of the images in pixels, at least 16.
      dtype: Type of the computation.
      dropout: Dropout rate before the head, in [0, 1).
      widths: Channels of single convolutions.

    Raises:
      ValueError: `image_size` is too small.
    """
    check_image_size(image_size)
    return VGG(num_classes, width, dtype, dropout, widths=widths)
