"""A small decoder-only transformer in the form of GPT-2 (Radford et al. 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax._types import Units
from zosam_jax.models import layers, transformer
from zosam_jax.models.transformer import NORMAL_INIT, Block

DENSE = ("*_embedding",)
"""Embeddings are tables of which a token reads one row. A row has no fan-in, and the
row of a rare token has almost no gradient by which its weights could be ranked. The
head is pruned, unless it is tied to the token embedding."""

DEPTH = 4
HEADS = 4
HEAD_FEATURES = 32


def heads_of(width: float) -> int:
    """Returns the number of heads, `4 * width` rounded; each has 32 features."""
    return max(1, round(HEADS * width))


class TinyLM(nn.Module):
    """Next-token logits by pre-norm blocks with causal attention.

    The layers are `token_embedding` (`[V, D]`), a learned vector added at each position
    (`position_embedding`, `[T, D]`), the blocks `block0`, ..., a layer normalization
    (`norm`) and a linear `head` without bias, or the transposed token embedding. As in
    GPT-2, kernels and embeddings are initialized from N(0, 0.02^2), the last kernel of
    each residual branch from N(0, 0.02^2 / (2 depth)), and biases by 0. Parameters are
    float32.

    Attributes:
      num_classes: Size of the vocabulary, V.
      heads: Number of attention heads, a divisor of `features`.
      features: Features of a token, D.
      depth: Number of blocks.
      dtype: Type of the computation; the logits are float32.
      positions: "learned", for sequences up to the length used for `init`; or "rotary"
        (arXiv:2104.09864), without parameters and for any length.
      tied: True: the token embedding is also the head (arXiv:1608.05859).
      dropout: Dropout rate of the embedded tokens and in `transformer.Block`, in
        [0, 1).
      stochastic_depth: Stochastic-depth rate of the last block, in [0, 1); see
        `layers.depth_factors`.
      widths: Heads and hidden units of single blocks, as `{"block0/heads": 2}` and
        `{"block0/mlp": 100}`.
    """

    num_classes: int
    heads: int = HEADS
    features: int = HEADS * HEAD_FEATURES
    depth: int = DEPTH
    dtype: DTypeLike = jnp.float32
    positions: str = "learned"
    tied: bool = False
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    widths: layers.Widths = layers.USUAL

    @nn.nowrap
    def cuts(self) -> dict[str, Units]:
        """Returns the layers of units whose width `widths` can set."""
        return transformer.cuts(self.depth, self.heads, self.widths)

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits `[N, T, V]` of the token after each token, float32.

        Args:
          tokens: Token ids `[N, T]` from 0 to V - 1, of any integer type.
          train: Whether dropout and stochastic depth are active.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                "tokens must be integers [N, T], token ids; got "
                f"{tokens.dtype} {tokens.shape}."
            )
        shape = (self.num_classes, self.features)
        embedding = self.param("token_embedding", NORMAL_INIT, shape)
        # An id out of range gives NaN instead of the embedding of another token.
        x = jnp.take(embedding, tokens, axis=0, mode="fill").astype(self.dtype)
        if self.positions == "learned":
            x = x + self._position(tokens.shape[1]).astype(self.dtype)[None]
        x = layers.dropped(self, x, self.dropout, train)
        factors = layers.block_factors(
            self, self.stochastic_depth, train, self.depth, 2, tokens
        )
        for i in range(self.depth):
            sizes = transformer.sizes(
                f"block{i}", self.heads, self.features, self.widths
            )
            block = Block(
                dtype=self.dtype,
                # The variances of all 2 depth branches add up to one kernel's.
                out_init=nn.initializers.normal(0.02 / (2 * self.depth) ** 0.5),
                dropout=self.dropout,
                is_causal=True,
                rotary=self.positions == "rotary",
                **sizes._asdict(),
                name=f"block{i}",
            )
            x = block(x, train, factors[i])
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x = jnp.asarray(x, jnp.float32)
        # In float32, as the logits of a head of its own.
        if self.tied:
            return x @ embedding.T
        return nn.Dense(
            self.num_classes, use_bias=False, kernel_init=NORMAL_INIT, name="head"
        )(x)

    def _position(self, length: int) -> jax.Array:
        """Returns the vectors of the first positions; `init` sets how many exist."""
        name = "position_embedding"
        # Not `self.param`: it would check the length against the table's.
        if not self.has_variable("params", name):
            return self.param(name, NORMAL_INIT, (length, self.features))
        table = self.get_variable("params", name)
        if length > len(table):
            raise ValueError(
                f"tokens: {length} positions are more than the {len(table)} that the "
                'parameters were made for. Use positions="rotary", or initialise with '
                "the longer sequence."
            )
        return table[:length]


def create_tinylm(
    *,
    num_classes: int,
    width: float = 1.0,
    dtype: DTypeLike = jnp.float32,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    depth: int = DEPTH,
    positions: str = "learned",
    tied: bool = False,
    widths: layers.Widths = layers.USUAL,
) -> TinyLM:
    """Returns a `TinyLM`.

    Args:
      num_classes: Size of the vocabulary.
      width: Multiplier of the number of heads, which have 32 features each.
      dtype: Type of the computation.
      dropout: Dropout rate, in [0, 1).
      stochastic_depth: Stochastic-depth rate of the last block, in [0, 1).
      depth: Number of blocks.
      positions: "learned" or "rotary".
      tied: True: the token embedding is also the head.
      widths: Heads and hidden units of single blocks.
    """
    heads = heads_of(width)
    return TinyLM(
        num_classes,
        heads,
        heads * HEAD_FEATURES,
        depth,
        dtype,
        positions,
        tied,
        dropout,
        stochastic_depth,
        widths,
    )


def units(*, width: float = 1.0) -> dict[str, Units]:
    """Returns the attention heads and hidden units; see `transformer.units`.

    Args:
      width: Multiplier of the number of heads, as in `create_tinylm`.
    """
    return transformer.units(heads_of(width))
