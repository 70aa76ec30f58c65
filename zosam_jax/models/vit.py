"""Vision transformers: a small one (arXiv:2010.11929) and DeiT (arXiv:2012.12877)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers, pixel_heads, transformer
from zosam_jax.models.convolution import conv_general_dilated
from zosam_jax.models.transformer import NORMAL_INIT, Block

DENSE = ("position_embedding",)
"""The position embedding is a table of vectors that are added, and has no fan-in. The
tokens have one axis and are dense anyway. The patch embedding and the heads are pruned,
as in SViTE (arXiv:2106.04533)."""

DEPTH = 6
WIDTH = 192
HEADS = 3
KERNEL_INIT = nn.initializers.truncated_normal(0.02)


def patch_size(image_size: int) -> int:
    """Returns the default side of a patch in pixels.

    It is the largest divisor of `image_size` between 2 and `image_size / 8`, but at
    most 16: about 8 x 8 patches for small images and 14 x 14 for 224 pixels.

    >>> [patch_size(side) for side in (8, 32, 64, 224)]
    [2, 4, 8, 16]

    Raises:
      ValueError: There is no such divisor.
    """
    # Attention costs the square of the number of patches: 64 are enough for 32 pixels.
    largest = min(16, max(2, image_size // 8))
    divisors = [p for p in range(2, largest + 1) if image_size % p == 0]
    if not divisors:
        raise ValueError(
            f"image_size={image_size} has no divisor from 2 to {largest} to cut it "
            "into patches. Use an even image_size."
        )
    return divisors[-1]


def check_patch(image_size: int, patch: int) -> None:
    """Raises `ValueError` unless `patch` divides `image_size`."""
    if image_size % patch:
        raise ValueError(
            f"image_size={image_size} is not a whole number of patches of {patch} "
            f"pixels. Set the option patch to a divisor of {image_size}."
        )


def heads_and_width(width: float) -> tuple[int, int]:
    """Returns the number of heads and the features of a token, D.

    There are `3 * width` heads, rounded. D is the multiple of the heads that is nearest
    to `192 * width`. Width 1 is DeiT-Ti, width 2 DeiT-S and width 4 DeiT-B.

    >>> heads_and_width(2)
    (6, 384)
    """
    # A head has D / heads features, which must be whole.
    heads = max(1, round(HEADS * width))
    return heads, heads * max(1, round(WIDTH * width / heads))


def _patches(
    images: jax.Array,
    patch: int,
    features: int,
    dtype: DTypeLike,
    init: nn.initializers.Initializer,
) -> jax.Array:
    """Returns tokens `[N, T, D]`: image patches embedded by the convolution `embed`."""
    _, height, width, _ = images.shape
    if height % patch or width % patch:
        raise ValueError(
            f"images must be whole patches of {patch} pixels, not "
            f"{height} x {width}. Create the model with the images' image_size."
        )
    x = nn.Conv(
        features,
        (patch, patch),
        strides=patch,
        padding="VALID",
        conv_general_dilated=conv_general_dilated,
        kernel_init=init,
        dtype=dtype,
        name="embed",
    )(jnp.asarray(images, dtype))
    return x.reshape(x.shape[0], -1, features)


def _grid(x: jax.Array, images: jax.Array, patch: int) -> jax.Array:
    """Returns the tokens of patches `[N, T, D]` as a map `[N, H / P, W / P, D]`."""
    _, height, width, _ = images.shape
    return x.reshape(x.shape[0], height // patch, width // patch, x.shape[-1])


class ViT(nn.Module):
    """A pre-norm vision transformer of depth 6 with mean pooling and no class token.

    The layers are a strided convolution that embeds patches (`embed`), a learned vector
    added at each position (`position_embedding`, `[T, D]`), the blocks `block0` to
    `block5`, a layer normalization (`norm`), the mean over tokens and a linear `head`.
    Linear kernels are initialized from N(0, 0.02^2), truncated at two standard
    deviations, and biases by 0. This holds for the head too: with a head of zeros, the
    gradient of all other weights would be 0 at initialization, and SNIP and its kin
    could not rank them. Parameters are float32.

    Attributes:
      num_classes: Number of classes.
      patch: Side of a patch in pixels.
      heads: Number of attention heads.
      features: Features of a token, D; a multiple of `heads`.
      depth: Number of blocks.
      dtype: Type of the computation; the logits are float32.
      dropout: Dropout rate of the embedded patches and in `transformer.Block`, in
        [0, 1).
      stochastic_depth: Stochastic-depth rate of the last block, in [0, 1); see
        `layers.depth_factors`.
      widths: Heads and hidden units of single blocks, as `{"block0/heads": 2}` and
        `{"block0/mlp": 100}`.
      segmentation: True: the head reads every token in place of their mean, and its
        logits are upsampled to the pixels; see `pixel_heads.pixel_logits`.
    """

    num_classes: int
    patch: int
    heads: int = HEADS
    features: int = WIDTH
    depth: int = DEPTH
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    widths: layers.Widths = layers.USUAL
    segmentation: bool = False

    @nn.nowrap
    def cuts(self) -> dict[str, Units]:
        """Returns the layers of units whose width `widths` can set."""
        return transformer.cuts(self.depth, self.heads, self.widths)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits, float32 `[N, num_classes]` (`[N, H, W, num_classes]`).

        Args:
          images: Normalized images `[N, H, W, C]`; `patch` divides H and W.
          train: Whether dropout and stochastic depth are active.
        """
        init = nn.linear.default_kernel_init
        x = _patches(images, self.patch, self.features, self.dtype, init)
        # Made for one image size: another one needs other positions.
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), x.shape[1:]
        )
        x = x + position.astype(self.dtype)[None]
        x = layers.dropped(self, x, self.dropout, train)
        factors = layers.block_factors(
            self, self.stochastic_depth, train, self.depth, 2, images
        )
        for i in range(self.depth):
            sizes = transformer.sizes(
                f"block{i}", self.heads, self.features, self.widths
            )
            block = Block(
                dtype=self.dtype,
                kernel_init=KERNEL_INIT,
                out_init=KERNEL_INIT,
                dropout=self.dropout,
                **sizes._asdict(),
                name=f"block{i}",
            )
            x = block(x, train, factors[i])
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        if self.segmentation:
            maps = {"head": _grid(x, images, self.patch)}
            made = images.shape[1:3], self.num_classes, KERNEL_INIT
            return pixel_heads.pixel_logits(maps, *made)
        # No class token: the mean over tokens takes its place (arXiv:2205.01580).
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=KERNEL_INIT, name="head")(x)


class DeiT(nn.Module):
    """A vision transformer with a class token and an optional distillation token.

    Patches are embedded (`embed`), and the learned `class_token` (and
    `distillation_token`) is put before them. A learned vector is added at each position
    (`position_embedding`, `[T, D]`, including the tokens). Blocks and a layer
    normalization (`norm`) follow. The linear `head` reads the class token, and
    `distillation_head` the distillation token. GELU is exact. Kernels, tokens and
    positions are initialized from N(0, 0.02^2) (DeiT truncates it at 100 standard
    deviations) and biases by 0. Parameters are float32.

    Attributes:
      num_classes: Number of classes.
      patch: Side of a patch in pixels.
      heads: Number of attention heads.
      features: Features of a token, D; a multiple of `heads`.
      depth: Number of blocks.
      dtype: Type of the computation; the logits are float32.
      distillation: True: add the distillation token and its head.
      dropout: Dropout rate of the embedded tokens and in `transformer.Block`, in
        [0, 1).
      stochastic_depth: Stochastic-depth rate of the last block, in [0, 1); see
        `layers.depth_factors`.
      widths: Heads and hidden units of single blocks, as `{"block0/heads": 2}` and
        `{"block0/mlp": 100}`.
      segmentation: True: the head reads every patch in place of the class token, and
        its logits are upsampled to the pixels; see `pixel_heads.pixel_logits`.
    """

    num_classes: int
    patch: int = 16
    heads: int = HEADS
    features: int = WIDTH
    depth: int = 12
    dtype: DTypeLike = jnp.float32
    distillation: bool = False
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    widths: layers.Widths = layers.USUAL
    segmentation: bool = False

    @nn.nowrap
    def cuts(self) -> dict[str, Units]:
        """Returns the layers of units whose width `widths` can set."""
        return transformer.cuts(self.depth, self.heads, self.widths, "gelu")

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Returns the logits, float32 `[N, num_classes]` (`[N, H, W, num_classes]`).

        Args:
          images: Normalized images `[N, H, W, C]`; `patch` divides H and W.
          train: Whether dropout and stochastic depth are active.

        Returns:
          The logits. With a distillation token: the pair `(class logits, distillation
          logits)` if `train`, otherwise the mean of the two.
        """
        x = _patches(images, self.patch, self.features, self.dtype, NORMAL_INIT)
        names = ["class_token", "distillation_token"][: 1 + self.distillation]
        tokens = [self.param(name, NORMAL_INIT, (self.features,)) for name in names]
        tokens = jnp.stack(tokens).astype(self.dtype)
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
        x = jnp.concatenate([tokens, x], axis=1)
        position = self.param("position_embedding", NORMAL_INIT, x.shape[1:])
        x = x + position.astype(self.dtype)[None]
        x = layers.dropped(self, x, self.dropout, train)
        factors = layers.block_factors(
            self, self.stochastic_depth, train, self.depth, 2, images
        )
        for i in range(self.depth):
            sizes = transformer.sizes(
                f"block{i}", self.heads, self.features, self.widths
            )
            block = Block(
                dtype=self.dtype,
                exact_gelu=True,
                dropout=self.dropout,
                **sizes._asdict(),
                name=f"block{i}",
            )
            x = block(x, train, factors[i])
        # No head reads the other tokens.
        read = slice(len(names), None) if self.segmentation else slice(len(names))
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x[:, read])
        if self.segmentation:
            maps = {"head": _grid(x, images, self.patch)}
            made = images.shape[1:3], self.num_classes, NORMAL_INIT
            return pixel_heads.pixel_logits(maps, *made)
        x = jnp.asarray(x, jnp.float32)
        heads = ["head", "distillation_head"][: len(names)]
        logits = [
            nn.Dense(self.num_classes, kernel_init=NORMAL_INIT, name=name)(x[:, i])
            for i, name in enumerate(heads)
        ]
        if not self.distillation:
            return logits[0]
        return (logits[0], logits[1]) if train else (logits[0] + logits[1]) / 2


def create_vit(
    *,
    num_classes: int,
    width: float = 1.0,
    image_size: int = 32,
    dtype: DTypeLike = jnp.float32,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    depth: int = DEPTH,
    patch: int | None = None,
    widths: layers.Widths = layers.USUAL,
    segmentation: bool = False,
) -> ViT:
    """Returns a `ViT` for images of a size.

    Args:
      num_classes: Number of classes.
      width: Multiplier of heads and features; see `heads_and_width`.
      image_size: Side of the images in pixels.
      dtype: Type of the computation.
      dropout: Dropout rate, in [0, 1).
      stochastic_depth: Stochastic-depth rate of the last block, in [0, 1).
      depth: Number of blocks.
      patch: Side of a patch in pixels. Default: `patch_size(image_size)`.
      widths: Heads and hidden units of single blocks.
      segmentation: True: logits of every pixel.

    Raises:
      ValueError: The images are not whole patches.
    """
    patch = patch or patch_size(image_size)
    check_patch(image_size, patch)
    heads, features = heads_and_width(width)
    return ViT(
        num_classes,
        patch,
        heads,
        features,
        depth,
        dtype,
        dropout,
        stochastic_depth,
        widths,
        segmentation,
    )


def create_deit(
    *,
    size: int,
    num_classes: int,
    width: float = 1.0,
    image_size: int = 224,
    dtype: DTypeLike = jnp.float32,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    depth: int = 12,
    distillation: bool = False,
    patch: int = 16,
    widths: layers.Widths = layers.USUAL,
    segmentation: bool = False,
) -> DeiT:
    """Returns a `DeiT` for images of a size.

    Args:
      size: Heads and features in multiples of DeiT-Ti: 1 is DeiT-Ti, 2 DeiT-S, 4
        DeiT-B.
      num_classes: Number of classes.
      width: Further multiplier of heads and features.
      image_size: Side of the images in pixels, a multiple of `patch`.
      dtype: Type of the computation.
      dropout: Dropout rate, in [0, 1).
      stochastic_depth: Stochastic-depth rate of the last block, in [0, 1).
      depth: Number of blocks.
      distillation: True: add the distillation token and its head.
      patch: Side of a patch in pixels.
      widths: Heads and hidden units of single blocks.
      segmentation: True: logits of every pixel.

    Raises:
      ValueError: The images are not whole patches, or pixels are to be distilled.
    """
    check_patch(image_size, patch)
    if distillation and segmentation:
        raise ValueError(
            "distillation=True and segmentation=True exclude each other: the head of a "
            "distillation token has no logits of pixels."
        )
    heads, features = heads_and_width(size * width)
    return DeiT(
        num_classes,
        patch,
        heads,
        features,
        depth,
        dtype,
        distillation,
        dropout,
        stochastic_depth,
        widths,
        segmentation,
    )


def units(*, width: float = 1.0, size: int = 1) -> dict[str, Units]:
    """Returns the attention heads and hidden units; see `transformer.units`.

    Args:
      width: Multiplier of the heads, as in `create_vit`.
      size: Multiplier of the heads, as in `create_deit`.
    """
    return transformer.units(heads_and_width(size * width)[0])
