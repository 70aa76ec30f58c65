"""The pre-norm transformer block of the vision and language models."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers

NORMAL_INIT = nn.initializers.normal(0.02)


class Sizes(NamedTuple):
    """Fields of `Block`.

    Attributes:
      heads: Number of attention heads.
      head_features: Features of a head.
      hidden: Hidden units of the MLP.
    """

    heads: int
    head_features: int
    hidden: int


def units(heads: int) -> dict[str, Units]:
    """Returns the heads of every attention and the hidden units of every MLP.

    Heads are dropped by their effect on the loss and hidden units by the norms of their
    weights, both as in S2ViTE (arXiv:2106.04533).

    Args:
      heads: Number of attention heads of a block.
    """
    inputs = [f"*/attention/{n}" for n in ("query", "key", "value")]
    made = tuple(f"{n}/{leaf}" for n in inputs for leaf in ("kernel", "bias"))
    return {
        "heads": Units("*/attention/out/kernel", heads, made, "taylor"),
        "mlp": Units("*/mlp2/kernel", incoming=("*/mlp1/kernel", "*/mlp1/bias")),
    }


def cuts(
    depth: int, heads: int, widths: layers.Widths, activation: str = "gelu_tanh"
) -> dict[str, Units]:
    """Returns the heads and hidden units of each block, by the names in `widths`.

    Args:
      depth: Number of blocks.
      heads: Usual number of heads.
      widths: The widths that are not the usual ones, as `{"block0/heads": 2}` and
        `{"block0/mlp": 100}`.
      activation: The activation of hidden units, as in `zs.sparsity.Units`.
    """
    found: dict[str, Units] = {}
    for name in (f"block{i}" for i in range(depth)):
        for kind, row in units(widths.get(f"{name}/heads", heads)).items():
            found[f"{name}/{kind}"] = layers.placed(row, name)
        mlp = found[f"{name}/mlp"]
        found[f"{name}/mlp"] = mlp._replace(activation=activation)
    return found


def sizes(name: str, heads: int, features: int, widths: layers.Widths) -> Sizes:
    """Returns the sizes of a block.

    Args:
      name: Name of the block, as "block0".
      heads: Usual number of heads.
      features: Features of a token, D.
      widths: As in `cuts`.
    """
    return Sizes(
        widths.get(f"{name}/heads", heads),
        features // heads,
        widths.get(f"{name}/mlp", 4 * features),
    )


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    r"""Returns queries or keys with rotary position embedding (arXiv:2104.09864).

    For a token at position t, the pair of features i and i + F/2 is rotated by
    :math:`t\,\mathrm{base}^{-2i/F}` radians. The product of a query and a key then
    depends on the difference of their positions only.

    Args:
      x: Queries or keys `[N, T, heads, F]`, F even.
      base: Base of the angles. The slowest pair rotates by about `1 / base` radians a
        position.

    Returns:
      An array of the same shape and type. The angles are float32.
    """
    # NumPy computes the angles in float64. In float32, an angle of 10^4 radians would
    # be off by up to 5e-4.
    half = x.shape[-1] // 2
    turns = base ** (-np.arange(half) / half)
    angles = np.arange(x.shape[1])[None, :, None, None] * turns
    cos, sin = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over tokens `[N, T, D]`.

    `query`, `key`, `value` and `out` are linear layers with kernels of two axes, D x D
    if F is D / heads, so that a sparsity distribution sees their fan-in and fan-out.

    Attributes:
      heads: Number of heads; a divisor of D, unless `head_features` is given.
      dtype: Type of the computation; the softmax is float32.
      kernel_init: Initializer of the kernels of `query`, `key` and `value`.
      out_init: Initializer of the kernel of `out`.
      is_causal: True: a token attends to itself and to earlier tokens only.
      rotary: True: queries and keys have rotary position embeddings; see `rotate`.
      head_features: Features of a head, F. None: D / heads.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = NORMAL_INIT
    out_init: nn.initializers.Initializer = NORMAL_INIT
    is_causal: bool = False
    rotary: bool = False
    head_features: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns tokens `[N, T, D]` for tokens `[N, T, D]`."""
        each = self.head_features or x.shape[-1] // self.heads

        def linear(name: str) -> nn.Dense:
            init, size = self.kernel_init, self.heads * each
            if name == "out":
                init, size = self.out_init, x.shape[-1]
            return nn.Dense(size, kernel_init=init, dtype=self.dtype, name=name)

        # Heads are contiguous features: pruning a head cuts a block of each kernel.
        split = (*x.shape[:-1], self.heads, each)
        q, k, v = (linear(n)(x).reshape(split) for n in ("query", "key", "value"))
        if self.rotary:
            q, k = rotate(q), rotate(k)
        # It divides the scores by sqrt(F), and takes the softmax in float32.
        y = jax.nn.dot_product_attention(q, k, v, is_causal=self.is_causal)
        return linear("out")(y.reshape(*x.shape[:-1], -1))


class Block(nn.Module):
    """`x += attention(norm1(x)); x += mlp2(gelu(mlp1(norm2(x))))`.

    Attributes:
      heads: Number of attention heads.
      dtype: Type of the computation.
      kernel_init: Initializer of the kernels.
      out_init: Initializer of the last kernel of each branch, `attention/out` and
        `mlp2`.
      exact_gelu: True: GELU by the error function. False: its tanh approximation.
      dropout: Dropout rate after every linear layer but query, key and value
        (arXiv:2010.11929, appendix D), in [0, 1).
      is_causal: True: a token attends to itself and to earlier tokens only.
      rotary: True: queries and keys have rotary position embeddings; see `rotate`.
      head_features: Features of a head. None: D / heads.
      hidden: Hidden units of the MLP. None: 4 D.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = NORMAL_INIT
    out_init: nn.initializers.Initializer = NORMAL_INIT
    exact_gelu: bool = False
    dropout: float = 0.0
    is_causal: bool = False
    rotary: bool = False
    head_features: int | None = None
    hidden: int | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, factors: jax.Array | None = None
    ) -> jax.Array:
        """Returns tokens `[N, T, D]`.

        Args:
          x: Tokens `[N, T, D]`.
          train: Whether dropout is active.
          factors: `[2, N]` for the two residual branches, see `layers.depth_factors`.
            None: no stochastic depth.
        """
        features = x.shape[-1]

        def drop(y: jax.Array) -> jax.Array:
            return layers.dropped(self, y, self.dropout, train)

        y = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        attention = Attention(
            self.heads,
            self.dtype,
            self.kernel_init,
            self.out_init,
            self.is_causal,
            self.rotary,
            self.head_features,
            name="attention",
        )
        x = x + layers.scaled(drop(attention(y)), factors, 0)
        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        mlp1, mlp2 = (
            nn.Dense(size, kernel_init=init, dtype=self.dtype, name=name)
            for name, size, init in (
                ("mlp1", self.hidden or 4 * features, self.kernel_init),
                ("mlp2", features, self.out_init),
            )
        )
        # GPT-2 used the approximation, DeiT the exact function.
        y = drop(nn.gelu(mlp1(y), approximate=not self.exact_gelu))
        return x + layers.scaled(drop(mlp2(y)), factors, 1)
