"""A multilayer perceptron: LeNet-300-100 of the pruning literature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers

DENSE: tuple[str, ...] = ()
"""No kernel is dense by default. The head is small: lottery tickets prune it at half
the rate of the others (arXiv:1803.03635), an ERK budget keeps it almost dense."""

HIDDEN = (300, 100)
KERNEL_INIT = nn.initializers.glorot_normal()


def units(hidden: tuple[int, ...] = HIDDEN) -> dict[str, Units]:
    """The hidden units of every layer, each read by the next one."""
    readers = [*(f"hidden{i}" for i in range(2, len(hidden) + 1)), "head"]
    return {
        f"hidden{i}": Units(
            f"{reader}/kernel", incoming=(f"hidden{i}/kernel", f"hidden{i}/bias")
        )
        for i, reader in enumerate(readers, start=1)
    }


class MLP(nn.Module):
    """Linear layers with ReLU between them, on flattened images.

    Kernels start at Glorot's normal distribution, as in arXiv:1803.03635, biases at 0.
    Parameters are named `hidden{i}` (from 1) and `head`. They are float32.

    Attributes:
      num_classes: Logits that go out.
      width: Multiplier of the hidden sizes, each rounded to the nearest integer.
      dtype: Type that the network computes in; the logits are float32.
      hidden: Hidden sizes, (300, 100) for LeNet-300-100.
      dropout: Rate of dropout after every hidden layer.
    """

    num_classes: int
    width: float = 1.0
    dtype: DTypeLike = jnp.float32
    hidden: tuple[int, ...] = HIDDEN
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[N, ...]`, normalised floats, to logits `[N, num_classes]`.

        Args:
          images: The batch, of the shape that the parameters were made for.
          train: Whether to drop out.
        """
        x = jnp.asarray(images, self.dtype).reshape(len(images), -1)
        for i, size in enumerate(self.hidden, start=1):
            size = max(1, round(size * self.width))
            layer = nn.Dense(
                size, kernel_init=KERNEL_INIT, dtype=self.dtype, name=f"hidden{i}"
            )
            x = layers.dropped(self, nn.relu(layer(x)), self.dropout, train)
        x = jnp.asarray(x, jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=KERNEL_INIT, name="head")(x)
