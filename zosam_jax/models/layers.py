"""Layers that the models share: convolution, normalization, dropout, head."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.typing import DTypeLike

from zosam_jax._types import Key, Units
from zosam_jax.models.convolution import conv_general_dilated

CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
HEAD_INIT = nn.initializers.normal(0.01)

Widths = Mapping[str, int]
"""Numbers of units by the names that the method `cuts` of a model gives to its layers
of units. A layer without a name here has its usual width."""

USUAL: Widths = FrozenDict()
"""No layer has another width."""


def placed(row: Units, module: str) -> Units:
    """Returns a row of units with the path of a module in place of each star.

    >>> placed(Units("*/mlp2/kernel", incoming=("*/mlp1/bias",)), "block0").incoming
    ('block0/mlp1/bias',)

    Args:
      row: Units whose paths begin with a star.
      module: The path.
    """
    outgoing, scale, *incoming = (
        path.replace("*", module) for path in (row.outgoing, row.scale, *row.incoming)
    )
    return row._replace(outgoing=outgoing, scale=scale, incoming=tuple(incoming))


def read_by(readers: Sequence[str], made: Sequence[str]) -> Units:
    """Returns the channels of a residual stream.

    Args:
      readers: Paths of the kernels that read them.
      made: Paths of the kernels, scales and biases whose outputs they are.
    """
    return Units(readers[0], others=tuple(readers[1:]), incoming=tuple(made))


def conv(
    channels: int, size: int, stride: int, dtype: DTypeLike, name: str
) -> nn.Module:
    """Returns a convolution without bias, padded by `size // 2` on every side.

    The padding "SAME" would pad a strided 3x3 convolution on one side only, unlike the
    published networks. The kernel is initialized from N(0, 2 / fan_out).

    Args:
      channels: Number of output channels.
      size: Side of the kernel in pixels, odd.
      stride: Stride along both axes, in pixels.
      dtype: Type of the computation.
      name: Name of the layer's parameters.
    """
    # On both sides alike, as PyTorch pads; an odd kernel keeps the size.
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


def batch_norm(
    train: bool, dtype: DTypeLike, name: str, *, zero: bool = False
) -> nn.Module:
    """Returns a batch normalization with decay 0.9 and epsilon 1e-5.

    Args:
      train: True: normalize by the batch's statistics and update the running ones.
      dtype: Type of the computation. The statistics are float32.
      name: Name of the layer's parameters.
      zero: True: the scale is initialized to 0 instead of 1.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,  # Flax weighs the old value with it; PyTorch the new one, 0.1.
        epsilon=1e-5,
        dtype=dtype,
        scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
        name=name,
    )


def pooled_logits(
    module: nn.Module, x: jax.Array, num_classes: int, dropout: float, train: bool
) -> jax.Array:
    """Returns the logits: mean over positions, dropout, and a linear layer `head`.

    The head computes in float32. Its kernel is initialized from N(0, 0.01^2).

    Args:
      module: The model; call this function in its compact method.
      x: Features `[N, H, W, C]`.
      num_classes: Number of classes, K.
      dropout: Dropout rate in [0, 1).
      train: Whether dropout is active.

    Returns:
      float32 `[N, K]`.
    """
    # In bfloat16, a sum of many positions would lose the last bits of each.
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    x = dropped(module, x, dropout, train)
    return nn.Dense(num_classes, kernel_init=HEAD_INIT, name="head")(x)


def dropped(module: nn.Module, x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Returns x after dropout.

    With probability `rate` a feature becomes 0, otherwise it is multiplied by
    `1 / (1 - rate)`. This is a function and not a Linen module, so that it adds no
    entry to the intermediate outputs.

    Args:
      module: The model, whose "dropout" key is used if something is dropped.
      x: Features of any shape.
      rate: Dropout rate in [0, 1).
      train: Whether dropout is active.
    """
    if not train or not rate:
        return x
    # Scaled in training, so that evaluation needs no factor.
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def depth_factors(
    key: Key, rate: float, blocks: int, branches: int, examples: int
) -> jax.Array:
    r"""Returns the factors by which stochastic depth multiplies residual branches.

    With B blocks, a branch of block b is dropped for an example with probability
    :math:`p_b = p\,b / (B - 1)`, and multiplied by :math:`1 / (1 - p_b)` otherwise, so
    that its expectation is unchanged. The rate grows linearly from 0
    (arXiv:1603.09382), and the scaling is DeiT's (arXiv:2012.12877).

    All factors are one draw, because a draw for each branch takes long to compile. The
    factors of an example do not depend on the number of examples after it: a pass over
    the first part of a batch drops the same branches as a pass over the whole batch.

    Args:
      key: A random key.
      rate: p, the rate of the last block, in [0, 1).
      blocks: B, the number of blocks.
      branches: Number of residual branches of a block.
      examples: N, the number of examples.

    Returns:
      float32 `[B, branches, N]`.
    """
    # Of NumPy, as constants of the program: JAX would compute them in each step.
    rates = np.linspace(0, rate, blocks)[:, None, None]
    # Flat: XLA:CPU takes ten times as long to compile a draw with three axes.
    drawn = jax.random.uniform(key, (examples * blocks * branches,))
    # Examples first, so that a prefix of the batch gets a prefix of the draw.
    drawn = drawn.reshape(examples, blocks, branches).transpose(1, 2, 0)
    return jnp.where(drawn >= rates, (1 / (1 - rates)).astype(np.float32), 0)


def block_factors(
    module: nn.Module,
    rate: float,
    train: bool,
    blocks: int,
    branches: int,
    x: jax.Array,
) -> list[jax.Array | None]:
    """Returns `depth_factors` for each block, or None for each if nothing is dropped.

    Args:
      module: The model, whose "dropout" key is used if something is dropped.
      rate: Stochastic-depth rate of the last block, in [0, 1).
      train: Whether stochastic depth is active.
      blocks: Number of blocks.
      branches: Number of residual branches of a block.
      x: The model's input, `[N, ...]`.
    """
    if not train or not rate:
        return [None] * blocks  # No key is used: evaluation needs none.
    key = module.make_rng("dropout")
    return list(depth_factors(key, rate, blocks, branches, x.shape[0]))


def scaled(y: jax.Array, factors: jax.Array | None, branch: int) -> jax.Array:
    """Returns the output of a residual branch times the factor of each example.

    Args:
      y: Output of the branch, `[N, ...]`.
      factors: `[branches, N]` from `block_factors`; None returns y unchanged.
      branch: Index of the branch in its block.
    """
    if factors is None:
        return y
    # One factor for an example: all its positions and channels drop together.
    factor = factors[branch].reshape(-1, *(1 for _ in y.shape[1:]))
    return y * factor.astype(y.dtype)
