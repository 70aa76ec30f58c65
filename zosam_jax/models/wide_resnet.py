"""Wide ResNets for CIFAR (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers

DENSE: tuple[str, ...] = ()
"""No kernel is dense by default, for the reason given in `resnet`. For a uniform
budget, DSR (arXiv:1902.05967) keeps `("stem/*", "*/shortcut/*", "head/*")` dense."""


def units() -> dict[str, Units]:
    """The channels between the convolutions of a block; `norm2` is between them."""
    channels = ("*/conv1/kernel", "*/norm2/scale", "*/norm2/bias")
    return {"channels": Units("*/conv2/kernel", incoming=channels)}


class WideBlock(nn.Module):
    """`a = relu(norm1(x)); conv2(dropout(relu(norm2(conv1(a))))) + shortcut`.

    The shortcut is x where the number of channels stays, else a 1x1 convolution of a.

    Attributes:
      channels: Channels that go out.
      stride: Stride of the first convolution and of the shortcut.
      dtype: Type that the block computes in.
      dropout: Rate of dropout between the convolutions.
    """

    channels: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, factors: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / stride, W / stride, channels]`.

        Args:
          x: The features.
          train: As in `WideResNet`.
          factors: `[1, N]`, of the residual branch; see `layers.depth_factors`.
        """
        a = nn.relu(layers.batch_norm(train, self.dtype, "norm1")(x))
        y = layers.conv(self.channels, 3, self.stride, self.dtype, "conv1")(a)
        y = nn.relu(layers.batch_norm(train, self.dtype, "norm2")(y))
        y = layers.dropped(self, y, self.dropout, train)
        y = layers.conv(self.channels, 3, 1, self.dtype, "conv2")(y)
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = layers.conv(self.channels, 1, self.stride, self.dtype, "shortcut")(a)
        return x + layers.scaled(y, factors, 0)


class WideResNet(nn.Module):
    """WRN-d-k, pre-activation: depth `d = 6 * blocks + 4`, widening factor k.

    A 3x3 stem of 16 channels, three stages of `blocks` blocks with 16k, 32k and 64k
    channels (the second and third at half the resolution of the one before), a
    normalisation, the mean over all positions, and a linear head. Convolutions start
    at N(0, 2 / fan_out), the head's kernel at N(0, 0.01^2).

    Parameters are named `stem`, `stage{1,2,3}_block{i}/{norm1, conv1, norm2, conv2,
    shortcut}`, `norm` and `head`. They are float32.

    Attributes:
      blocks: Blocks in each stage; 4 for WRN-28.
      factor: k.
      num_classes: Logits that go out.
      width: Multiplier of all channel counts, each rounded to the nearest integer.
      dtype: Type that the network computes in; logits and statistics are float32.
      dropout: Rate of dropout between the convolutions of a block (section 2.4).
      stochastic_depth: Rate at the last block; see `layers.depth_factors`.
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
        """Maps images `[N, H, W, C]`, normalised floats, to logits `[N, num_classes]`.

        Args:
          images: The batch.
          train: True to normalise by the batch's statistics and to move the running
            ones (collection `batch_stats`, which must then be mutable), False to
            normalise by the running ones.
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
