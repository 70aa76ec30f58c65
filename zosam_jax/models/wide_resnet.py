"""Wide ResNets for CIFAR (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers


def units() -> dict[str, Units]:
    """Returns the channels between the two convolutions of a block."""
    channels = ("*/conv1/kernel", "*/norm2/scale", "*/norm2/bias")
    return {"channels": Units("*/conv2/kernel", incoming=channels)}


class WideBlock(nn.Module):
    """`a = relu(norm1(x)); conv2(dropout(relu(norm2(conv1(a))))) + shortcut`.

    The shortcut is x if the shapes are equal, otherwise a 1x1 convolution of a.

    Attributes:
      channels: Number of output channels.
      stride: Stride of the first convolution and of the shortcut, in pixels.
      dtype: Type of the computation.
      dropout: Dropout rate between the convolutions, in [0, 1).
    """

    channels: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, factors: jax.Array | None = None
    ) -> jax.Array:
        """Returns features `[N, H / stride, W / stride, channels]`.

        Args:
          x: Features `[N, H, W, C]`.
          train: As in `WideResNet`.
          factors: `[1, N]`, see `layers.depth_factors`. None: no stochastic depth.
        """
        # Before the convolution: the sums of the blocks are never rectified.
        a = nn.relu(layers.batch_norm(train, self.dtype, "norm1")(x))
        y = layers.conv(self.channels, 3, self.stride, self.dtype, "conv1")(a)
        y = nn.relu(layers.batch_norm(train, self.dtype, "norm2")(y))
        y = layers.dropped(self, y, self.dropout, train)
        y = layers.conv(self.channels, 3, 1, self.dtype, "conv2")(y)
        if self.stride != 1 or x.shape[-1] != self.channels:
            # From the normalized input: x itself grows from block to block.
            x = layers.conv(self.channels, 1, self.stride, self.dtype, "shortcut")(a)
        return x + layers.scaled(y, factors, 0)


class WideResNet(nn.Module):
    """WRN-d-k: a pre-activation ResNet of depth `d = 6 * blocks + 4` and width k.

    The layers are a 3x3 stem of 16 channels, three stages of `blocks` blocks with 16k,
    32k and 64k channels, a normalization, global average pooling and a linear head. The
    second and third stage halve the resolution. Convolutions are initialized from
    N(0, 2 / fan_out) and the head's kernel from N(0, 0.01^2).

    Parameters are named `stem`, `stage{1,2,3}_block{i}/{norm1, conv1, norm2, conv2,
    shortcut}`, `norm` and `head`, and are float32.

    Attributes:
      blocks: Number of blocks in each stage; 4 for WRN-28.
      factor: Widening factor, k.
      num_classes: Number of classes.
      width: Multiplier of all channel counts; each is rounded to the nearest integer.
      dtype: Type of the computation; logits and batch statistics are float32.
      dropout: Dropout rate between the convolutions of a block (section 2.4), in
        [0, 1).
      stochastic_depth: Stochastic-depth rate of the last block, in [0, 1); see
        `layers.depth_factors`.
    """

    blocks: int
    factor: int
    num_classes: int
    width: float = 1.0
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits `[N, num_classes]`, float32.

        Args:
          images: Normalized images `[N, H, W, C]`.
          train: True: normalize by the batch's statistics, update the running ones
            (the collection `batch_stats` must be mutable), and drop out. False:
            normalize by the running statistics.
        """
        x = jnp.asarray(images, self.dtype)
        x = layers.conv(round(16 * self.width), 3, 1, self.dtype, "stem")(x)
        factors = iter(
            layers.block_factors(
                self, self.stochastic_depth, train, 3 * self.blocks, 1, images
            )
        )
        for stage, base in enumerate((16, 32, 64), start=1):
            channels = round(base * self.factor * self.width)
            for i in range(self.blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"stage{stage}_block{i}"
                block = WideBlock(channels, stride, self.dtype, self.dropout, name=name)
                x = block(x, train, next(factors))
        x = nn.relu(layers.batch_norm(train, self.dtype, "norm")(x))
        return layers.pooled_logits(self, x, self.num_classes, 0.0, train)
