"""Mask trees in one bit a weight."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import tree


class PackedMasks(NamedTuple):
    """A mask tree, eight entries of the last axis of a leaf in a byte.

    Two trees like the masks, with plain arrays at their leaves: whatever holds arrays
    (NNX's variables, Flax's serialization) holds these too. A dense leaf has its
    scalar True in both.

    Attributes:
      bits: uint8 `[..., ceil(n / 8)]` for a mask `[..., n]`, the first entry in the
        highest bit.
      tail: bool, as many as the last byte has entries: `[n - 8 ceil(n / 8) + 8]`. It
        is there for its shape alone, which makes n known.
    """

    bits: Any
    tail: Any


def pack(masks: Any) -> PackedMasks:
    """A mask tree in one bit a weight.

    An eighth of the memory, if the last axes are long: one of n entries takes
    `ceil(n / 8)` bytes. The axes before the last keep their sharding.

    Args:
      masks: Mask tree, or a packed one, which is returned as it is.

    Returns:
      What `apply_masks`, `sparsity_of` and `unpack` take; uint8 arrays at the sparse
      leaves.
    """
    if isinstance(masks, PackedMasks):
        return masks
    return PackedMasks(jax.tree.map(_bits, masks), jax.tree.map(_tail, masks))


def unpack(masks: Any) -> Any:
    """The mask tree that was packed.

    Args:
      masks: What `pack` returned, or its shapes (`jax.ShapeDtypeStruct`); or a mask
        tree, which is returned as it is.
    """
    if not isinstance(masks, PackedMasks):
        return masks
    return jax.tree.map(_mask, masks.bits, masks.tail)


def _bits(mask: jax.Array) -> jax.Array:
    return jnp.array(mask) if tree.is_dense(mask) else jnp.packbits(mask, axis=-1)


def _tail(mask: jax.Array) -> jax.Array:
    if tree.is_dense(mask):
        # A copy: a donated state may not hold an array twice.
        return jnp.array(mask)
    n = mask.shape[-1]
    return jnp.ones(n - 8 * (-(-n // 8) - 1), bool)


def _mask(bits: jax.Array, tail: jax.Array) -> Any:
    if bits.ndim == 0:
        return bits
    n = 8 * (bits.shape[-1] - 1) + tail.shape[-1]
    if isinstance(bits, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*bits.shape[:-1], n), jnp.bool_)
    if 0 in (*bits.shape[:-1], n):  # `unpackbits` divides by it.
        return jnp.zeros((*bits.shape[:-1], n), bool)
    return jnp.unpackbits(bits, axis=-1, count=n).astype(bool)
