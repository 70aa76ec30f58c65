"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax.models.convolution import conv_general_dilated

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


def heads_and_width(width: float) -> tuple[int, int]:
    """Returns the heads, `3 * width` rounded, and their features, about `192 * width`.

    The features are the multiple of the heads nearest to `192 * width`. Width 1 is
    DeiT-Ti's (3 heads, 192 features), width 2 DeiT-S's (6, 384).
    """
    heads = max(1, round(HEADS * width))
    return heads, heads * max(1, round(WIDTH * width / heads))


class Attention(nn.Module):
    """Multi-head self-attention over tokens `[N, T, D]`.

    `query`, `key`, `value` and `out` are linear layers with D x D kernels, so that a
    sparsity budget sees their true fan-in and fan-out.

    Attributes:
      heads: Number of heads; it divides D.
      dtype: Type that the layer computes in; the softmax is float32.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens `[N, T, D]` to tokens `[N, T, D]`."""
        features = x.shape[-1]

        def linear(name: str) -> nn.Dense:
            return nn.Dense(
                features, kernel_init=KERNEL_INIT, dtype=self.dtype, name=name
            )

        split = (*x.shape[:-1], self.heads, features // self.heads)
        q, k, v = (linear(n)(x).reshape(split) for n in ("query", "key", "value"))
        return linear("out")(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class Block(nn.Module):
    """`x += attention(norm1(x)); x += mlp2(gelu(mlp1(norm2(x))))`.

    Attributes:
      heads: Number of attention heads.
      dtype: Type that the block computes in.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens `[N, T, D]` to tokens `[N, T, D]`."""
        features = x.shape[-1]
        y = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + Attention(self.heads, self.dtype, name="attention")(y)
        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        for size, name in ((4 * features, "mlp1"), (features, "mlp2")):
            y = nn.Dense(size, kernel_init=KERNEL_INIT, dtype=self.dtype, name=name)(y)
            y = nn.gelu(y) if name == "mlp1" else y
        return x + y


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
    """

    num_classes: int
    patch: int
    heads: int = HEADS
    features: int = WIDTH
    depth: int = DEPTH
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[N, H, W, C]`, normalised floats, to logits `[N, num_classes]`.

        Args:
          images: The batch; `patch` divides H and W.
          train: Not used: nothing here differs between training and evaluation.
        """
        del train
        _, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images must be whole patches of {self.patch} pixels, not "
                f"{height} x {width}. Create the model with their image_size."
            )
        x = nn.Conv(
            self.features,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            conv_general_dilated=conv_general_dilated,
            dtype=self.dtype,
            name="embed",
        )(jnp.asarray(images, self.dtype))
        x = x.reshape(x.shape[0], -1, self.features)
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), x.shape[1:]
        )
        x = x + position.astype(self.dtype)
        for i in range(self.depth):
            x = Block(self.heads, self.dtype, name=f"block{i}")(x)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=KERNEL_INIT, name="head")(x)
