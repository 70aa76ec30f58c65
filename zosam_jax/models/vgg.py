"""VGG with batch normalisation, for CIFAR (arXiv:1409.1556, arXiv:1502.03167)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers

DENSE: tuple[str, ...] = ()
"""No kernel is dense by default, for the reason given in `resnet`. MEST keeps the first
convolution dense, and sparsifies all others: `("conv1/*", "head/*")`."""

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and convolutions of VGG-19's stages."""

_SMALLEST = 2 ** (len(STAGES) - 1)


def check_image_size(image_size: int) -> None:
    """Raises `ValueError` where the four poolings leave no pixel."""
    if image_size < _SMALLEST:
        raise ValueError(
            f"image_size={image_size} is too small for VGG: its {len(STAGES) - 1} "
            f"poolings need {_SMALLEST} pixels or more."
        )


def units(stages: tuple[tuple[int, int], ...] = STAGES) -> dict[str, Units]:
    """The channels of every convolution, each read by the next one or by the head."""
    layers_ = sum(count for _, count in stages)
    readers = [*(f"conv{i}" for i in range(2, layers_ + 1)), "head"]
    return {
        f"channels{i}": Units(
            f"{reader}/kernel",
            incoming=(f"conv{i}/kernel", f"norm{i}/scale", f"norm{i}/bias"),
        )
        for i, reader in enumerate(readers, start=1)
    }


class VGG(nn.Module):
    """3x3 convolutions, each with batch normalisation and ReLU, and one linear head.

    The convolutions have no bias. A 2x2 maximum of stride 2 stands between the stages,
    and after the last one the mean over all positions: for images of 32 pixels, an
    average over 2x2. It is the form of GraSP (arXiv:2002.07376), MEST and S2-SAM.
    Convolutions start at N(0, 2 / fan_out), the head's kernel at N(0, 0.01^2).

    Parameters are named `conv{i}`, `norm{i}` (from 1) and `head`. They are float32.

    Attributes:
      num_classes: Logits that go out.
      width: Multiplier of all channel counts, each rounded to the nearest integer.
      dtype: Type that the network computes in; logits and statistics are float32.
      dropout: Rate of dropout before the head.
      stages: Channels and number of convolutions of each stage.
    """

    num_classes: int
    width: float = 1.0
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0
    stages: tuple[tuple[int, int], ...] = STAGES

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[N, H, W, C]`, normalised floats, to logits `[N, num_classes]`.

        Args:
          images: The batch, of 16 pixels a side or more.
          train: True to normalise by the batch's statistics and to move the running
            ones (collection `batch_stats`, which must then be mutable), False to
            normalise by the running ones.
        """
        check_image_size(min(images.shape[1:3]))
        x = jnp.asarray(images, self.dtype)
        number = 0
        for stage, (base, count) in enumerate(self.stages):
            if stage:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for _ in range(count):
                number += 1
                channels = round(base * self.width)
                x = layers.conv(channels, 3, 1, self.dtype, f"conv{number}")(x)
                x = layers.batch_norm(train, self.dtype, f"norm{number}")(x)
                x = nn.relu(x)
        return layers.pooled_logits(self, x, self.num_classes, self.dropout, train)
