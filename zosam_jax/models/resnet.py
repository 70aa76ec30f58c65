"""The CIFAR ResNet family (He et al. 2016, arXiv:1512.03385, section 4.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax.models.convolution import conv_general_dilated

CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
STAGE_CHANNELS = (16, 32, 64)


def _conv(
    channels: int, size: int, stride: int, dtype: DTypeLike, name: str
) -> nn.Module:
    """Returns a convolution without bias, padded by `size // 2` on every side.

    "SAME" would pad a strided 3x3 convolution on one side only, unlike the networks
    whose results are published.
    """
    pad = size // 2
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        conv_general_dilated=conv_general_dilated,
        kernel_init=CONV_INIT,
        dtype=dtype,
        name=name,
    )


def _norm(train: bool, dtype: DTypeLike, name: str) -> nn.Module:
    """Returns a batch normalisation; its statistics are float32 whatever `dtype`."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        name=name,
    )


class BasicBlock(nn.Module):
    """`relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))`.

    The shortcut is the identity where the shape stays, else a 1x1 convolution with
    batch normalisation (option B of the paper).

    Attributes:
      channels: Channels that go out.
      stride: Stride of the first convolution and of the shortcut.
      dtype: Type that the block computes in.
    """

    channels: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[N, H, W, C]` to `[N, H / stride, W / stride, channels]`."""
        y = _conv(self.channels, 3, self.stride, self.dtype, "conv1")(x)
        y = nn.relu(_norm(train, self.dtype, "norm1")(y))
        y = _conv(self.channels, 3, 1, self.dtype, "conv2")(y)
        y = _norm(train, self.dtype, "norm2")(y)
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, self.stride, self.dtype, "shortcut")(x)
            x = _norm(train, self.dtype, "shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A CIFAR ResNet of depth `6 * blocks + 2`.

    A 3x3 stem, three stages of `blocks` basic blocks with 16, 32 and 64 channels times
    `width` (the second and third at half the resolution of the one before), the mean
    over all positions, and a linear head. Convolutions start at N(0, 2 / fan_out), the
    head's kernel at N(0, 0.01^2), as in the sparse-training literature.

    Parameters are named `stem`, `stem_norm`, `stage{1,2,3}_block{i}/{conv1, norm1,
    conv2, norm2, shortcut, shortcut_norm}` and `head`. They are float32.

    Attributes:
      blocks: Blocks in each stage; 5 for ResNet-32.
      num_classes: Logits that go out.
      width: Multiplier of all channel counts, each rounded to the nearest integer.
      dtype: Type that the network computes in; logits and statistics are float32.
    """

    blocks: int
    num_classes: int
    width: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[N, H, W, C]`, normalised floats, to logits `[N, num_classes]`.

        Args:
          images: The batch.
          train: True to normalise by the batch's statistics and to move the running
            ones (collection `batch_stats`, which must then be mutable), False to
            normalise by the running ones.
        """
        channels = [round(c * self.width) for c in STAGE_CHANNELS]
        x = jnp.asarray(images, self.dtype)
        x = _conv(channels[0], 3, 1, self.dtype, "stem")(x)
        x = nn.relu(_norm(train, self.dtype, "stem_norm")(x))
        for stage, out in enumerate(channels, start=1):
            for block in range(self.blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f"stage{stage}_block{block}"
                x = BasicBlock(out, stride, self.dtype, name=name)(x, train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        head = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head"
        )
        return head(x)
