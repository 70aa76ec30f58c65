"""A multilayer perceptron: LeNet-300-100 of the pruning literature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers

HIDDEN = (300, 100)
KERNEL_INIT = nn.initializers.glorot_normal()


def units(hidden: tuple[int, ...] = HIDDEN) -> dict[str, Units]:
    """Returns the hidden units of every layer, which the next layer reads.

    Example:
      >>> units((300, 100))["hidden1"].outgoing
      'hidden2/kernel'
    """
    readers = [*(f"hidden{i}" for i in range(2, len(hidden) + 1)), "head"]
    return {
        f"hidden{i}": Units(
            f"{reader}/kernel",
            incoming=(f"hidden{i}/kernel", f"hidden{i}/bias"),
            activation="relu",
        )
        for i, reader in enumerate(readers, start=1)
    }


class MLP(nn.Module):
    """Linear layers with ReLU between them, on flattened images.

    Kernels are initialized by Glorot's normal distribution, as in arXiv:1803.03635,
    and biases by 0. Parameters are named `hidden{i}` (from 1) and `head`, and are
    float32.

    Attributes:
      num_classes: Number of classes, K.
      width: Multiplier of the hidden sizes; each is rounded to the nearest integer.
      dtype: Type of the computation; the logits are float32.
      hidden: Hidden sizes, (300, 100) for LeNet-300-100.
      dropout: Dropout rate after every hidden layer, in [0, 1).
      widths: Hidden sizes that are not the usual ones, as `{"hidden1": 40}`.
    """

    num_classes: int
    width: float = 1.0
    dtype: DTypeLike = jnp.float32
    hidden: tuple[int, ...] = HIDDEN
    dropout: float = 0.0
    widths: layers.Widths = layers.USUAL

    @nn.nowrap
    def cuts(self) -> dict[str, Units]:
        """Returns the layers of units whose width `widths` can set."""
        return units(self.hidden)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits `[N, K]`.

        Args:
          images: Normalized images `[N, ...]`, in the shape used for `init`.
          train: Whether dropout is active.
        """
        x = jnp.asarray(images, self.dtype).reshape(images.shape[0], -1)
        for i, size in enumerate(self.hidden, start=1):
            size = self.widths.get(f"hidden{i}", max(1, round(size * self.width)))
            layer = nn.Dense(
                size, kernel_init=KERNEL_INIT, dtype=self.dtype, name=f"hidden{i}"
            )
            x = layers.dropped(self, nn.relu(layer(x)), self.dropout, train)
        # The loss is computed in float32, so the logits are not rounded before it.
        x = jnp.asarray(x, jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=KERNEL_INIT, name="head")(x)
