"""Mask trees in one bit a weight."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Masks, PyTree


class PackedMasks(NamedTuple):
    """A mask tree with eight entries of the last axis of a leaf in a byte.

    It consists of two trees like the masks, with plain arrays at their leaves. So
    whatever holds arrays (NNX variables, Flax serialization) holds these too. A dense
    leaf has its scalar True in both.

    Attributes:
      bits: uint8 `[..., ceil(n / 8)]` for a mask `[..., n]`, the first entry in the
        highest bit.
      tail: bool `[n - 8 ceil(n / 8) + 8]`, as long as the last byte has entries. Only
        its shape matters: it makes n known.
    """

    bits: PyTree
    tail: PyTree


def pack(masks: Masks | PackedMasks) -> PackedMasks:
    """Returns a mask tree in one bit a weight.

    It takes an eighth of the memory if the last axes are long: a last axis of n entries
    takes `ceil(n / 8)` bytes. The other axes keep their sharding.

    Args:
      masks: Mask tree; a packed one is returned unchanged.

    Returns:
      A tree that `apply_masks`, `sparsity_of` and `unpack` take.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> packed = zs.sparsity.pack({"w": jnp.arange(10) % 2 == 0, "bias": True})
      >>> print(packed.bits["w"], packed.tail["w"].shape)
      [170 128] (2,)
    """
    if isinstance(masks, PackedMasks):
        return masks
    return PackedMasks(jax.tree.map(_bits, masks), jax.tree.map(_tail, masks))


def unpack(masks: Masks | PackedMasks) -> Masks:
    """Returns the mask tree that was packed.

    Args:
      masks: What `pack` returned, or its shapes (`jax.ShapeDtypeStruct`). A mask tree
        is returned unchanged.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> packed = zs.sparsity.pack({"w": jnp.array([True, False, True])})
      >>> print(zs.sparsity.unpack(packed)["w"])
      [ True False  True]
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


def _mask(
    bits: jax.Array | jax.ShapeDtypeStruct, tail: jax.Array | jax.ShapeDtypeStruct
) -> jax.Array | jax.ShapeDtypeStruct:
    if bits.ndim == 0:
        return bits
    n = 8 * (bits.shape[-1] - 1) + tail.shape[-1]
    if isinstance(bits, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*bits.shape[:-1], n), jnp.bool_)
    if 0 in (*bits.shape[:-1], n):  # `unpackbits` would divide by 0.
        return jnp.zeros((*bits.shape[:-1], n), bool)
    return jnp.unpackbits(bits, axis=-1, count=n).astype(bool)
