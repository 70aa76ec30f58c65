"""Mask trees in one bit a weight."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMask:
    """A boolean array, eight entries of its last axis in a byte.

    Attributes:
      bits: uint8 `[..., ceil(size / 8)]`, the first entry in the highest bit.
      size: Entries of the last axis.
    """

    bits: jax.Array
    size: int = dataclasses.field(metadata={"static": True})


def pack(masks: Any) -> Any:
    """A mask tree in one bit a weight.

    An eighth of the memory, if the last axes are long. The axes before the last keep
    their sharding.

    Args:
      masks: Mask tree.

    Returns:
      A tree with a `PackedMask` for each sparse leaf; dense leaves as they are.
    """
    return jax.tree.map(
        lambda m: m if tree.is_dense(m) else PackedMask(_bytes(m), m.shape[-1]), masks
    )


def unpack(masks: Any) -> Any:
    """The mask tree that was packed.

    Args:
      masks: What `pack` returned, or a mask tree, which is returned as it is.
    """
    return jax.tree.map(
        lambda m: _bools(m) if is_packed(m) else m, masks, is_leaf=is_packed
    )


def is_packed(x: Any) -> bool:
    """Whether this is a packed leaf."""
    return isinstance(x, PackedMask)


def _bytes(mask: jax.Array) -> jax.Array:
    return jnp.packbits(mask, axis=-1)


def _bools(mask: PackedMask) -> jax.Array:
    shape = (*mask.bits.shape[:-1], mask.size)
    if 0 in shape:  # `unpackbits` divides by it.
        return jnp.zeros(shape, bool)
    return jnp.unpackbits(mask.bits, axis=-1, count=mask.size).astype(bool)
