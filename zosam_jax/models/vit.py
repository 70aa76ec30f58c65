"""Vision transformers: a small one (arXiv:2010.11929) and DeiT (arXiv:2012.12877)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax.models import layers
from zosam_jax.models.convolution import conv_general_dilated
from zosam_jax.models.transformer import NORMAL_INIT, Block

DENSE = ("position_embedding",)
"""The position embedding is a table of additive vectors and has no fan-in. Class and
distillation tokens have one axis and are dense anyway. The patch embedding and the
heads are pruned, as in SViTE (arXiv:2106.04533)."""

DEPTH = 6
WIDTH = 192
HEADS = 3
KERNEL_INIT = nn.initializers.truncated_normal(0.02)


def patch_size(image_size: int) -> int:
    """Returns the side of a patch: 2 for 8 and 16 pixels, 4 for 32, 8 for 64.

    It is the largest divisor of `image_size` from 2 to `image_size / 8` (at least 2, at
    most 16): about 8 x 8 patches for small images, 14 x 14 for 224 pixels.

    Raises:
      ValueError: Where there is no such divisor.
    """
    largest = min(16, max(2, image_size // 8))
    divisors = [p for p in range(2, largest + 1) if image_size % p == 0]
    if not divisors:
        raise ValueError(
            f"image_size={image_size} has no divisor from 2 to {largest} to cut it "
            "into patches. Use an even image_size."
        )
    return divisors[-1]


def check_patch(image_size: int, patch: int) -> None:
    """Raises `ValueError` unless the images are whole patches."""
    if image_size % patch:
        raise ValueError(
            f"image_size={image_size} is not a whole number of patches of {patch} "
            f"pixels. Give the option patch a divisor of {image_size}."
        )


def heads_and_width(width: float) -> tuple[int, int]:
    """Returns the heads, `3 * width` rounded, and their features, about `192 * width`.

    The features are the multiple of the heads nearest to `192 * width`. Width 1 is
    DeiT-Ti's (3 heads, 192 features), width 2 DeiT-S's (6, 384), width 4 DeiT-B's.
    """
    heads = max(1, round(HEADS * width))
    return heads, heads * max(1, round(WIDTH * width / heads))


def _patches(
    images: jax.Array,
    patch: int,
    features: int,
    dtype: DTypeLike,
    init: nn.initializers.Initializer,
) -> jax.Array:
    """Maps images `[N, H, W, C]` to tokens `[N, T, D]` by the convolution `embed`."""
    _, height, width, _ = images.shape
    if height % patch or width % patch:
        raise ValueError(
            f"images must be whole patches of {patch} pixels, not "
            f"{height} x {width}. Create the model with their image_size."
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


class ViT(nn.Module):
    """A pre-norm vision transformer of depth 6 with mean pooling, no class token.

    Patches are embedded by a strided convolution (`embed`), a learned vector a position
    is added (`position_embedding`, `[T, D]`), `block0` to `block5` follow, then a layer
    normalisation (`norm`), the mean over all tokens and a linear `head`. Linear kernels
    start at N(0, 0.02^2) truncated at two standard deviations, the head's too: a head
    of zeros would give every other weight the gradient 0 at the start, and a saliency
    criterion nothing to rank. Biases start at 0.

    Parameters are float32.

    Attributes:
      num_classes: Logits that go out.
      patch: Side of a patch in pixels.
      heads: Number of attention heads.
      features: Features of a token, D; a multiple of `heads`.
      depth: Number of blocks.
      dtype: Type that the network computes in; the logits are float32.
      dropout: Rate of dropout of the embedded patches and as in `transformer.Block`.
      stochastic_depth: Rate at the last block; see `layers.depth_factors`.
    """

    num_classes: int
    patch: int
    heads: int = HEADS
    features: int = WIDTH
    depth: int = DEPTH
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[N, H, W, C]`, normalised floats, to logits `[N, num_classes]`.

        Args:
          images: The batch; `patch` divides H and W.
          train: Whether to drop out; else nothing differs from evaluation.
        """
        init = nn.linear.default_kernel_init
        x = _patches(images, self.patch, self.features, self.dtype, init)
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), x.shape[1:]
        )
        x = x + position.astype(self.dtype)
        x = layers.dropped(self, x, self.dropout, train)
        factors = layers.block_factors(
            self, self.stochastic_depth, train, self.depth, 2, images
        )
        for i in range(self.depth):
            block = Block(
                self.heads,
                self.dtype,
                KERNEL_INIT,
                KERNEL_INIT,
                dropout=self.dropout,
                name=f"block{i}",
            )
            x = block(x, train, factors[i])
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=KERNEL_INIT, name="head")(x)


class DeiT(nn.Module):
    """ViT with a class token, and as an option DeiT's distillation token.

    Patches are embedded (`embed`), the learned `class_token` (and `distillation_token`)
    put before them, a learned vector a position is added (`position_embedding`,
    `[T, D]`, tokens included), blocks and a layer normalisation (`norm`) follow. The
    class token goes to the linear `head`, the distillation token to
    `distillation_head`. GELU is exact. Kernels, tokens and positions start at
    N(0, 0.02^2), which DeiT truncates at 100 standard deviations, biases at 0.

    Parameters are float32.

    Attributes:
      num_classes: Logits that go out.
      patch: Side of a patch in pixels.
      heads: Number of attention heads.
      features: Features of a token, D; a multiple of `heads`.
      depth: Number of blocks.
      dtype: Type that the network computes in; the logits are float32.
      distillation: Whether it has the distillation token and its head.
      dropout: Rate of dropout of the embedded tokens and as in `transformer.Block`.
      stochastic_depth: Rate at the last block; see `layers.depth_factors`.
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

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Maps images `[N, H, W, C]`, normalised floats, to logits `[N, num_classes]`.

        Args:
          images: The batch; `patch` divides H and W.
          train: Whether to drop out, and with a distillation token to return a pair.

        Returns:
          The logits. With a distillation token the mean of both heads', and
          `(class logits, distillation logits)` in training.
        """
        x = _patches(images, self.patch, self.features, self.dtype, NORMAL_INIT)
        names = ["class_token", "distillation_token"][: 1 + self.distillation]
        tokens = [self.param(name, NORMAL_INIT, (self.features,)) for name in names]
        tokens = jnp.stack(tokens).astype(self.dtype)
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
        x = jnp.concatenate([tokens, x], axis=1)
        position = self.param("position_embedding", NORMAL_INIT, x.shape[1:])
        x = x + position.astype(self.dtype)
        x = layers.dropped(self, x, self.dropout, train)
        factors = layers.block_factors(
            self, self.stochastic_depth, train, self.depth, 2, images
        )
        for i in range(self.depth):
            block = Block(
                self.heads,
                self.dtype,
                exact_gelu=True,
                dropout=self.dropout,
                name=f"block{i}",
            )
            x = block(x, train, factors[i])
        # Of the tokens that a head reads; the others' normalisation has no effect.
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x[:, : len(names)])
        x = jnp.asarray(x, jnp.float32)
        heads = ["head", "distillation_head"][: len(names)]
        logits = [
            nn.Dense(self.num_classes, kernel_init=NORMAL_INIT, name=name)(x[:, i])
            for i, name in enumerate(heads)
        ]
        if not self.distillation:
            return logits[0]
        return (logits[0], logits[1]) if train else (logits[0] + logits[1]) / 2
