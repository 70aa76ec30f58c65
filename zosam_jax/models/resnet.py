"""ResNets for CIFAR and for ImageNet (He et al. 2016, arXiv:1512.03385)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers

DENSE: tuple[str, ...] = ()
"""No kernel is dense by default. An ERK budget keeps the stem, the head and the small
shortcuts dense or almost dense by itself. For a uniform budget, papers keep dense:
`("stem/*",)` RigL (arXiv:1911.11134); also `"*/shortcut/*"` and `"head/*"` MEST."""


def units(bottleneck: bool = False) -> dict[str, Units]:
    """The channels between the convolutions of a block.

    The others, those of the residual stream, are read by several layers.
    """

    def read_by(later: int, earlier: int) -> Units:
        made = (f"conv{earlier}/kernel", f"norm{earlier}/scale", f"norm{earlier}/bias")
        return Units(
            f"*/conv{later}/kernel", incoming=tuple(f"*/{leaf}" for leaf in made)
        )

    if bottleneck:
        return {"channels1": read_by(2, 1), "channels2": read_by(3, 2)}
    return {"channels": read_by(2, 1)}


class _Block(nn.Module):
    """What both kinds of block have.

    Attributes:
      channels: Channels of the convolutions; a bottleneck's last one has four times as
        many.
      stride: Stride of the block, and of its shortcut.
      dtype: Type that the block computes in.
      zero_init_residual: Whether the scale of the last normalisation starts at 0.
    """

    channels: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    zero_init_residual: bool = False

    def _joined(
        self, x: jax.Array, y: jax.Array, train: bool, factors: jax.Array | None
    ) -> jax.Array:
        """`relu(y + shortcut(x))`.

        The shortcut is the identity where the shape stays, else a 1x1 convolution with
        batch normalisation (option B of the paper).
        """
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            channels = y.shape[-1]
            x = layers.conv(channels, 1, self.stride, self.dtype, "shortcut")(x)
            x = layers.batch_norm(train, self.dtype, "shortcut_norm")(x)
        return nn.relu(x + layers.scaled(y, factors, 0))

    def _normed(self, y: jax.Array, train: bool, number: int, last: bool) -> jax.Array:
        zero = last and self.zero_init_residual
        y = layers.batch_norm(train, self.dtype, f"norm{number}", zero=zero)(y)
        return y if last else nn.relu(y)


class BasicBlock(_Block):
    """`relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))`, convolutions 3x3.

    The first one strides.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, factors: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / stride, W / stride, channels]`.

        Args:
          x: The features.
          train: As in `ResNet`.
          factors: `[1, N]`, of the residual branch; see `layers.depth_factors`.
        """
        y = layers.conv(self.channels, 3, self.stride, self.dtype, "conv1")(x)
        y = self._normed(y, train, 1, last=False)
        y = layers.conv(self.channels, 3, 1, self.dtype, "conv2")(y)
        y = self._normed(y, train, 2, last=True)
        return self._joined(x, y, train, factors)


class Bottleneck(_Block):
    """Convolutions 1x1, 3x3, 1x1, the last one to `4 * channels`.

    The 3x3 convolution strides ("v1.5"), not the first one as in the paper: that is
    what the published networks do.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, factors: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / stride, W / stride, 4 * channels]`.

        Args:
          x: The features.
          train: As in `ResNet`.
          factors: `[1, N]`, of the residual branch; see `layers.depth_factors`.
        """
        y = layers.conv(self.channels, 1, 1, self.dtype, "conv1")(x)
        y = self._normed(y, train, 1, last=False)
        y = layers.conv(self.channels, 3, self.stride, self.dtype, "conv2")(y)
        y = self._normed(y, train, 2, last=False)
        y = layers.conv(4 * self.channels, 1, 1, self.dtype, "conv3")(y)
        y = self._normed(y, train, 3, last=True)
        return self._joined(x, y, train, factors)


class ResNet(nn.Module):
    """A ResNet: a stem, stages of residual blocks, the mean over positions, a head.

    The second stage and those after it halve the resolution. With the default
    `channels` and one number of `blocks` it is the CIFAR ResNet of depth
    `6 * blocks + 2` (section 4.2); with (64, 128, 256, 512), the "imagenet" stem and
    (2, 2, 2, 2) or (3, 4, 6, 3) blocks it is ResNet-18 or -34, and with bottlenecks
    ResNet-50. Convolutions start at N(0, 2 / fan_out), the head's kernel at
    N(0, 0.01^2), as in the sparse-training literature and in arXiv:1706.02677.

    Parameters are named `stem`, `stem_norm`, `stage{i}_block{j}/{conv1, norm1, conv2,
    norm2, (conv3, norm3,) shortcut, shortcut_norm}` and `head`. They are float32.

    Attributes:
      blocks: Blocks in each stage, 5 for ResNet-32; or a number for each.
      num_classes: Logits that go out.
      width: Multiplier of all channel counts, each rounded to the nearest integer.
      dtype: Type that the network computes in; logits and statistics are float32.
      channels: Channels of each stage's blocks; the stem has the first's.
      bottleneck: Whether the blocks are `Bottleneck`, else `BasicBlock`.
      stem: "cifar", a 3x3 convolution; or "imagenet", a 7x7 one of stride 2 and a 3x3
        maximum of stride 2.
      zero_init_residual: Whether every block starts as its shortcut: its last
        normalisation's scale is 0 at first (arXiv:1706.02677).
      dropout: Rate of dropout before the head.
      stochastic_depth: Rate at the last block; see `layers.depth_factors`.
    """

    blocks: int | tuple[int, ...]
    num_classes: int
    width: float = 1.0
    dtype: DTypeLike = jnp.float32
    channels: tuple[int, ...] = (16, 32, 64)
    bottleneck: bool = False
    stem: str = "cifar"
    zero_init_residual: bool = False
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
        channels = [round(c * self.width) for c in self.channels]
        if isinstance(self.blocks, int):
            blocks = (self.blocks,) * len(channels)
        else:
            blocks = self.blocks
        is_large = self.stem == "imagenet"
        x = jnp.asarray(images, self.dtype)
        size, stride = (7, 2) if is_large else (3, 1)
        x = layers.conv(channels[0], size, stride, self.dtype, "stem")(x)
        x = nn.relu(layers.batch_norm(train, self.dtype, "stem_norm")(x))
        if is_large:
            # After a ReLU zeros are as good as the infinities of a padded maximum.
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = nn.max_pool(x, (3, 3), strides=(2, 2))
        factors = iter(
            layers.block_factors(
                self, self.stochastic_depth, train, sum(blocks), 1, images
            )
        )
        kind = Bottleneck if self.bottleneck else BasicBlock
        for stage, out in enumerate(channels, start=1):
            for i in range(blocks[stage - 1]):
                stride = 2 if stage > 1 and i == 0 else 1
                block = kind(
                    out,
                    stride,
                    self.dtype,
                    self.zero_init_residual,
                    name=f"stage{stage}_block{i}",
                )
                x = block(x, train, next(factors))
        return layers.pooled_logits(self, x, self.num_classes, self.dropout, train)
