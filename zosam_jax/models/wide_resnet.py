"""Wide ResNets for CIFAR (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers


def units() -> dict[str, Units]:
    """Returns the channels between the two convolutions of a block."""
    made = ("*/conv1/kernel", "*/norm2/scale", "*/norm2/bias")
    row = Units("*/conv2/kernel", incoming=made, scale="*/norm2/scale")
    return {"channels": row}


class WideBlock(nn.Module):
    """`a = relu(norm1(x)); conv2(dropout(relu(norm2(conv1(a))))) + shortcut`.

    The shortcut is x if the shapes are equal, otherwise a 1x1 convolution of a.

    Attributes:
      inner: Number of channels between the convolutions.
      channels: Number of output channels.
      shortcut: Whether the shortcut is a convolution, and not x itself.
      stride: Stride of the first convolution and of the shortcut, in pixels.
      dtype: Type of the computation.
      dropout: Dropout rate between the convolutions, in [0, 1).
    """

    inner: int
    channels: int
    shortcut: bool
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
        y = layers.conv(self.inner, 3, self.stride, self.dtype, "conv1")(a)
        y = nn.relu(layers.batch_norm(train, self.dtype, "norm2")(y))
        y = layers.dropped(self, y, self.dropout, train)
        y = layers.conv(self.channels, 3, 1, self.dtype, "conv2")(y)
        if self.shortcut:
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
      widths: Channels that are not the usual ones: `{"trunk2": 20}` those of the
        residual stream of stage 2, `{"stage1_block0/channels": 5}` those between the
        convolutions of a block, and `{"stem": 9}` those of the stem.
    """

    blocks: int
    factor: int
    num_classes: int
    width: float = 1.0
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    widths: layers.Widths = layers.USUAL

    @nn.nowrap
    def _channels(self) -> list[int]:
        """Returns the usual channels of the stem and of the stages."""
        usual = [16, *(base * self.factor for base in (16, 32, 64))]
        return [round(channels * self.width) for channels in usual]

    @nn.nowrap
    def _projects(self, stage: int, number: int) -> bool:
        """Returns whether the shortcut of a block is a convolution.

        It depends on the usual widths: cut ones may be equal by chance.
        """
        stem, first, *_ = self._channels()
        return number == 0 and (stage > 1 or stem != first)

    @nn.nowrap
    def cuts(self) -> dict[str, Units]:
        """Returns the layers of units whose width `widths` can set."""
        found: dict[str, Units] = {}
        made, read, trunk = ["stem/kernel"], list[str](), "stem"
        for stage, number in itertools.product((1, 2, 3), range(self.blocks)):
            block = f"stage{stage}_block{number}"
            found[f"{block}/channels"] = layers.placed(units()["channels"], block)
            # The normalization of the sum is the reader's own.
            made += [f"{block}/norm1/scale", f"{block}/norm1/bias"]
            read.append(f"{block}/conv1/kernel")
            if self._projects(stage, number):
                read.append(f"{block}/shortcut/kernel")
                found[trunk] = layers.read_by(read, made)
                made, read = [f"{block}/shortcut/kernel"], []
            trunk = f"trunk{stage}"
            made.append(f"{block}/conv2/kernel")
        made += ["norm/scale", "norm/bias"]
        found[trunk] = layers.read_by([*read, "head/kernel"], made)
        return found

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
        usual = self._channels()
        trunk = [self.widths.get(f"trunk{s}", usual[s]) for s in (1, 2, 3)]
        stem = self.widths.get("stem", usual[0])
        if not self._projects(1, 0):
            stem = trunk[0]
        x = layers.conv(stem, 3, 1, self.dtype, "stem")(x)
        factors = iter(
            layers.block_factors(
                self, self.stochastic_depth, train, 3 * self.blocks, 1, images
            )
        )
        for stage, number in itertools.product((1, 2, 3), range(self.blocks)):
            name = f"stage{stage}_block{number}"
            block = WideBlock(
                self.widths.get(f"{name}/channels", usual[stage]),
                trunk[stage - 1],
                self._projects(stage, number),
                2 if stage > 1 and number == 0 else 1,
                self.dtype,
                self.dropout,
                name=name,
            )
            x = block(x, train, next(factors))
        x = nn.relu(layers.batch_norm(train, self.dtype, "norm")(x))
        return layers.pooled_logits(self, x, self.num_classes, 0.0, train)
