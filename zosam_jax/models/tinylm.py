"""A small decoder-only transformer (GPT-2's form, Radford et al. 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax.models import layers
from zosam_jax.models.transformer import NORMAL_INIT, Block

DENSE = ("*_embedding",)
"""Embeddings are tables that are read by the row: a row has no fan-in, and a rare
token's has next to no gradient to rank its weights by. The head is pruned, but for a
tied one, which is the token embedding."""

DEPTH = 4
HEADS = 4
HEAD_FEATURES = 32


def heads_of(width: float) -> int:
    """Returns the number of heads, `4 * width` rounded, of 32 features each."""
    return max(1, round(HEADS * width))


class TinyLM(nn.Module):
    r"""Next-token logits by pre-norm blocks with causal attention.

    Token ids are looked up in `token_embedding` (`[V, D]`), a learned vector a position
    is added (`position_embedding`, `[T, D]`), `block0`, ... and a layer normalisation
    (`norm`) follow, then the linear `head` without bias, or the token embedding's
    transpose. Kernels and embeddings start at N(0, 0.02^2), the last kernel of each
    residual branch at N(0, 0.02^2 / (2 depth)), biases at 0, all as in GPT-2.

    Parameters are float32.

    Attributes:
      num_classes: Size of the vocabulary, V.
      heads: Number of attention heads; it divides `features`.
      features: Features of a token, D.
      depth: Number of blocks.
      dtype: Type that the network computes in; the logits are float32.
      positions: "learned", for sequences up to the length that the parameters were
        made for; or "rotary" (arXiv:2104.09864), for any, without parameters.
      tied: Whether the token embedding is the head too (arXiv:1608.05859).
      dropout: Rate of dropout of the embedded tokens and as in `transformer.Block`.
      stochastic_depth: Rate at the last block; see `layers.depth_factors`.
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

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Maps token ids `[N, T]` to logits `[N, T, V]` of the token after each.

        Args:
          tokens: Integers from 0 to V - 1 of any integer type.
          train: Whether to drop out; else nothing differs from evaluation.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                "tokens must be integers [N, T], token ids; got "
                f"{tokens.dtype} {tokens.shape}."
            )
        shape = (self.num_classes, self.features)
        embedding = self.param("token_embedding", NORMAL_INIT, shape)
        # An id that is out of range gives NaN, not another token.
        x = jnp.take(embedding, tokens, axis=0, mode="fill").astype(self.dtype)
        if self.positions == "learned":
            x = x + self._position(tokens.shape[1]).astype(self.dtype)
        x = layers.dropped(self, x, self.dropout, train)
        factors = layers.block_factors(
            self, self.stochastic_depth, train, self.depth, 2, tokens
        )
        for i in range(self.depth):
            block = Block(
                self.heads,
                self.dtype,
                out_init=nn.initializers.normal(0.02 / (2 * self.depth) ** 0.5),
                dropout=self.dropout,
                is_causal=True,
                rotary=self.positions == "rotary",
                name=f"block{i}",
            )
            x = block(x, train, factors[i])
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x = jnp.asarray(x, jnp.float32)
        if self.tied:
            return x @ embedding.T
        return nn.Dense(
            self.num_classes, use_bias=False, kernel_init=NORMAL_INIT, name="head"
        )(x)

    def _position(self, length: int) -> jax.Array:
        """The vectors of the first positions; the table is as long as at `init`."""
        name = "position_embedding"
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
