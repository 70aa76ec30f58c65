"""ResNets for CIFAR and for ImageNet (He et al. 2016, arXiv:1512.03385)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers, pixel_heads


def units(bottleneck: bool = False) -> dict[str, Units]:
    """Returns the channels between the convolutions of a block.

    The channels of the residual stream are read by several layers and are no units.

    Args:
      bottleneck: Whether the blocks have three convolutions instead of two.

    Example:
      >>> units(bottleneck=True)["channels2"].outgoing
      '*/conv3/kernel'
    """

    def read_by(later: int, earlier: int) -> Units:
        scale = f"*/norm{earlier}/scale"
        made = (f"*/conv{earlier}/kernel", scale, f"*/norm{earlier}/bias")
        return Units(f"*/conv{later}/kernel", incoming=made, scale=scale)

    if bottleneck:
        return {"channels1": read_by(2, 1), "channels2": read_by(3, 2)}
    return {"channels": read_by(2, 1)}


def _norm(path: str) -> list[str]:
    """Returns the paths of the scale and the bias of a normalization."""
    return [f"{path}/scale", f"{path}/bias"]


class _Block(nn.Module):
    """Fields and parts that both kinds of block share.

    Attributes:
      inner: Channels of the convolutions before the last one.
      channels: Channels of the last convolution.
      shortcut: Whether the shortcut is a 1x1 convolution with batch normalization
        (option B of the paper), and not the identity.
      stride: Stride of the block and of its shortcut, in pixels.
      dtype: Type of the computation.
      zero_init_residual: True: the scale of the last normalization is initialized to 0.
    """

    inner: tuple[int, ...]
    channels: int
    shortcut: bool
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    zero_init_residual: bool = False

    def _joined(
        self, x: jax.Array, y: jax.Array, train: bool, factors: jax.Array | None
    ) -> jax.Array:
        """Returns `relu(y + shortcut(x))`."""
        if self.shortcut:
            conv = layers.conv(self.channels, 1, self.stride, self.dtype, "shortcut")
            x = conv(x)
            x = layers.batch_norm(train, self.dtype, "shortcut_norm")(x)
        return nn.relu(x + layers.scaled(y, factors, 0))

    def _normed(self, y: jax.Array, train: bool, number: int, last: bool) -> jax.Array:
        # A last scale of 0 makes the block its shortcut. The sum comes before the ReLU.
        zero = last and self.zero_init_residual
        y = layers.batch_norm(train, self.dtype, f"norm{number}", zero=zero)(y)
        return y if last else nn.relu(y)


class BasicBlock(_Block):
    """`relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))` with 3x3 convolutions.

    `conv1` has the stride.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, factors: jax.Array | None = None
    ) -> jax.Array:
        """Returns features `[N, H / stride, W / stride, channels]`.

        Args:
          x: Features `[N, H, W, C]`.
          train: As in `ResNet`.
          factors: `[1, N]`, see `layers.depth_factors`. None: no stochastic depth.
        """
        y = layers.conv(self.inner[0], 3, self.stride, self.dtype, "conv1")(x)
        y = self._normed(y, train, 1, last=False)
        y = layers.conv(self.channels, 3, 1, self.dtype, "conv2")(y)
        y = self._normed(y, train, 2, last=True)
        return self._joined(x, y, train, factors)


class Bottleneck(_Block):
    """Convolutions 1x1, 3x3 and 1x1; the last one usually has four times the channels.

    The 3x3 convolution has the stride ("v1.5"), as in the published weights. In the
    paper, the first convolution has it.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, factors: jax.Array | None = None
    ) -> jax.Array:
        """Returns features `[N, H / stride, W / stride, channels]`.

        Args:
          x: Features `[N, H, W, C]`.
          train: As in `ResNet`.
          factors: `[1, N]`, see `layers.depth_factors`. None: no stochastic depth.
        """
        y = layers.conv(self.inner[0], 1, 1, self.dtype, "conv1")(x)
        y = self._normed(y, train, 1, last=False)
        y = layers.conv(self.inner[1], 3, self.stride, self.dtype, "conv2")(y)
        y = self._normed(y, train, 2, last=False)
        y = layers.conv(self.channels, 1, 1, self.dtype, "conv3")(y)
        y = self._normed(y, train, 3, last=True)
        return self._joined(x, y, train, factors)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling and a linear head.

    Every stage but the first halves the resolution. With the default `channels` and a
    single number of `blocks` it is the CIFAR ResNet of depth `6 * blocks + 2` (section
    4.2 of the paper). With `channels=(64, 128, 256, 512)`, the "imagenet" stem and
    (2, 2, 2, 2) or (3, 4, 6, 3) blocks it is ResNet-18 or ResNet-34, and with
    bottlenecks ResNet-50. Convolutions are initialized from N(0, 2 / fan_out) and the
    head's kernel from N(0, 0.01^2), as in arXiv:1706.02677.

    Parameters are named `stem`, `stem_norm`, `stage{i}_block{j}/{conv1, norm1, conv2,
    norm2, (conv3, norm3,) shortcut, shortcut_norm}` and `head`, and are float32.

    Attributes:
      blocks: Number of blocks in every stage (5 for ResNet-32), or one for each stage.
      num_classes: Number of classes.
      width: Multiplier of all channel counts; each is rounded to the nearest integer.
      dtype: Type of the computation; logits and batch statistics are float32.
      channels: Channels of the blocks of each stage; the stem has the first of them.
      bottleneck: True: blocks are `Bottleneck`. False: `BasicBlock`.
      stem: "cifar", a 3x3 convolution; or "imagenet", a 7x7 convolution and a 3x3 max
        pooling, both of stride 2.
      zero_init_residual: True: every block is initialized to its shortcut, as the scale
        of its last normalization is 0 (arXiv:1706.02677).
      dropout: Dropout rate before the head, in [0, 1).
      stochastic_depth: Stochastic-depth rate of the last block, in [0, 1); see
        `layers.depth_factors`.
      widths: Channels that are not the usual ones: `{"trunk2": 20}` those of the
        residual stream of stage 2, `{"stage1_block0/channels": 5}` those between the
        convolutions of a block (bottleneck: `channels1` and `channels2`), and
        `{"stem": 9}` those of the stem, if they are not the ones of stage 1.
      segmentation: True: logits of every pixel in place of the pooling and its head, by
        the layers `head` on the last stage and `stage{i}_head` on the two before it;
        see `pixel_heads.pixel_logits`.
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
    widths: layers.Widths = layers.USUAL
    segmentation: bool = False

    @nn.nowrap
    def _blocks(self) -> list[tuple[int, int]]:
        """Returns the stage of each block, from 1, and its number in it, from 0."""
        counts = self.blocks
        if isinstance(counts, int):
            counts = (counts,) * len(self.channels)
        return [(s, i) for s, count in enumerate(counts, 1) for i in range(count)]

    @nn.nowrap
    def _projects(self, stage: int, number: int) -> bool:
        """Returns whether the shortcut of a block is a convolution.

        It depends on the usual widths: cut ones may be equal by chance.
        """
        return number == 0 and (stage > 1 or self.bottleneck)

    @nn.nowrap
    def _heads(self) -> dict[int, str]:
        """Returns the names of the layers that make logits, by the stage they read."""
        last = len(self.channels)
        skips = pixel_heads.SKIPS if self.segmentation else 0
        finer = range(max(1, last - skips), last)
        return {stage: f"stage{stage}_head" for stage in finer} | {last: "head"}

    @nn.nowrap
    def cuts(self) -> dict[str, Units]:
        """Returns the layers of units whose width `widths` can set."""
        inner = units(self.bottleneck)
        last = len(inner) + 1
        found: dict[str, Units] = {}
        made, read, trunk = ["stem/kernel", *_norm("stem_norm")], list[str](), "stem"
        heads = self._heads()
        for stage, number in self._blocks():
            block = f"stage{stage}_block{number}"
            for name, row in inner.items():
                found[f"{block}/{name}"] = layers.placed(row, block)
            read.append(f"{block}/conv1/kernel")
            if self._projects(stage, number):
                read.append(f"{block}/shortcut/kernel")
                if stage - 1 in heads:
                    read.append(f"{heads[stage - 1]}/kernel")
                found[trunk] = layers.read_by(read, made)
                made = [f"{block}/shortcut/kernel", *_norm(f"{block}/shortcut_norm")]
                read = []
            trunk = f"trunk{stage}"
            made += [f"{block}/conv{last}/kernel", *_norm(f"{block}/norm{last}")]
        found[trunk] = layers.read_by([*read, "head/kernel"], made)
        return found

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits, float32 `[N, num_classes]` (`[N, H, W, num_classes]`).

        Args:
          images: Normalized images `[N, H, W, C]`.
          train: True: normalize by the batch's statistics, update the running ones
            (the collection `batch_stats` must be mutable), and drop out. False:
            normalize by the running statistics.
        """
        # Rounded by stage, so that a block and its shortcut agree.
        channels = [round(c * self.width) for c in self.channels]
        usual = [(4 if self.bottleneck else 1) * c for c in channels]
        trunk = [self.widths.get(f"trunk{s}", c) for s, c in enumerate(usual, start=1)]
        first = self.widths.get("stem", channels[0]) if self.bottleneck else trunk[0]
        blocks = self._blocks()
        is_large = self.stem == "imagenet"
        x = jnp.asarray(images, self.dtype)
        size, stride = (7, 2) if is_large else (3, 1)
        x = layers.conv(first, size, stride, self.dtype, "stem")(x)
        x = nn.relu(layers.batch_norm(train, self.dtype, "stem_norm")(x))
        if is_large:
            # After a ReLU, padding by zeros gives the maximum that -inf would give.
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        # One draw for all blocks; see `layers.depth_factors`.
        factors = iter(
            layers.block_factors(
                self, self.stochastic_depth, train, len(blocks), 1, images
            )
        )
        kind = Bottleneck if self.bottleneck else BasicBlock
        maps: dict[int, jax.Array] = {}
        for stage, number in blocks:
            name = f"stage{stage}_block{number}"
            block = kind(
                tuple(
                    self.widths.get(f"{name}/{inner}", channels[stage - 1])
                    for inner in units(self.bottleneck)
                ),
                trunk[stage - 1],
                self._projects(stage, number),
                2 if stage > 1 and number == 0 else 1,
                self.dtype,
                self.zero_init_residual,
                name=name,
            )
            maps[stage] = x = block(x, train, next(factors))
        if self.segmentation:
            maps[len(trunk)] = layers.dropped(self, x, self.dropout, train)
            read = {name: maps[stage] for stage, name in self._heads().items()}
            made = images.shape[1:3], self.num_classes, layers.HEAD_INIT
            return pixel_heads.pixel_logits(read, *made)
        return layers.pooled_logits(self, x, self.num_classes, self.dropout, train)
