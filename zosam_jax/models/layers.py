"""What the models share: convolution, normalisation, head, stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from zosam_jax.models.convolution import conv_general_dilated

CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
HEAD_INIT = nn.initializers.normal(0.01)


def conv(
    channels: int, size: int, stride: int, dtype: DTypeLike, name: str
) -> nn.Module:
    """Returns a convolution without bias, padded by `size // 2` on every side.

    "SAME" would pad a strided 3x3 convolution on one side only, unlike the networks
    whose results are published. The kernel starts at N(0, 2 / fan_out).
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


def batch_norm(
    train: bool, dtype: DTypeLike, name: str, *, zero: bool = False
) -> nn.Module:
    """Returns a batch normalisation; its statistics are float32 whatever `dtype`.

    Args:
      train: Whether to normalise by the batch and to move the running statistics.
      dtype: Type that it computes in.
      name: Its name.
      zero: Whether its scale starts at 0 instead of 1.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
        name=name,
    )


def pooled_logits(
    module: nn.Module, x: jax.Array, num_classes: int, dropout: float, train: bool
) -> jax.Array:
    """Maps features `[N, H, W, C]` to logits: mean over positions, dropout, `head`.

    Call it in the module's compact method. The head computes in float32; its kernel
    starts at N(0, 0.01^2).
    """
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    x = dropped(module, x, dropout, train)
    return nn.Dense(num_classes, kernel_init=HEAD_INIT, name="head")(x)


def dropped(module: nn.Module, x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Returns x after dropout, by a draw from the module's "dropout" key.

    A feature is 0 with probability `rate`, else multiplied by `1 / (1 - rate)`. No key
    is asked for where nothing is dropped. It is a function, and no module, so that it
    does not stand among the intermediate outputs.
    """
    if not train or not rate:
        return x
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def depth_factors(
    key: jax.Array, rate: float, blocks: int, branches: int, examples: int
) -> jax.Array:
    r"""Returns what stochastic depth multiplies the residual branches by.

    A branch of block b of B is dropped for an example with probability
    :math:`p_b = p\,b / (B - 1)`, and multiplied by :math:`1 / (1 - p_b)` otherwise, so
    that its expectation stays (arXiv:1603.09382; linear from 0 and scaled as in DeiT,
    arXiv:2012.12877).

    All are one draw: one for each branch would take long to compile. The factors of the
    first examples do not depend on how many follow: a pass that sees the front of a
    batch drops what the others drop there.

    Args:
      key: Random key.
      rate: p, the rate of the last block, in [0, 1).
      blocks: B.
      branches: Residual branches of a block.
      examples: N.

    Returns:
      `[B, branches, N]`, float32.
    """
    rates = np.linspace(0, rate, blocks)[:, None, None]
    # Flat: XLA:CPU takes ten times as long to compile a draw of three axes.
    drawn = jax.random.uniform(key, (examples * blocks * branches,))
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
    """Returns `depth_factors` by block, from the module's "dropout" key.

    They are None, and no key is asked for, where nothing is dropped.
    """
    if not train or not rate:
        return [None] * blocks
    key = module.make_rng("dropout")
    return list(depth_factors(key, rate, blocks, branches, x.shape[0]))


def scaled(y: jax.Array, factors: jax.Array | None, branch: int) -> jax.Array:
    """Returns a branch's output times its factor of each example; None: as it is."""
    if factors is None:
        return y
    factor = factors[branch].reshape(-1, *(1 for _ in y.shape[1:]))
    return y * factor.astype(y.dtype)
