"""Masks that are products of masks of units, one along each axis of a leaf."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax._types import Params, StackRule
from zosam_jax.sparsity.leaves import SparseLeaves, check_sizes
from zosam_jax.sparsity.unit_layers import Side, UnitLayer


class UnitMasks(NamedTuple):
    """The leaves that layers of units mask.

    Attributes:
      leaves: The leaves, by layer.
      sides: For each of these layers the indices of the layers of units along its axes,
        and the axes.
    """

    leaves: SparseLeaves
    sides: tuple[tuple[tuple[int, Side], ...], ...]

    @classmethod
    def of(
        cls,
        params: Params,
        layers: Sequence[UnitLayer],
        stacked: StackRule,
        masked: Callable[[UnitLayer], Sequence[Side]],
    ) -> "UnitMasks":
        """Returns the leaves, and the units along their axes.

        Args:
          params: Pytree of arrays; only its structure and shapes are read.
          layers: The layers of units, of the same `stacked`.
          stacked: Leaves that are stacks of layers, as in `dynamic`.
          masked: Which leaves a layer of units masks.
        """
        found: dict[int, list[tuple[int, Side]]] = {}
        for k, layer in enumerate(layers):
            for side in masked(layer):
                found.setdefault(side.place, []).append((k, side))
        every = SparseLeaves.every(params, stacked)
        paths = {side.path for sides in found.values() for _, side in sides}
        places = [leaf.place for leaf in every.leaves if leaf.path in paths]
        leaves = SparseLeaves.at(params, places, stacked)
        check_sizes(leaves)
        sides = [
            tuple(found[place])
            for place, path in enumerate(every.paths)
            if path in paths
        ]
        return cls(leaves, tuple(sides))

    def product(self, live: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns the masks of the leaves, the product over their axes.

        Args:
          live: For each layer of units, which of them are live, bool `[units]`.
        """
        masks = []
        for shape, sides in zip(self.leaves.shapes, self.sides, strict=True):
            mask = jnp.ones((1,) * len(shape), bool)
            for k, side in sides:
                rows = jnp.repeat(live[k], shape[side.axis] // live[k].size)
                ones = [1] * len(shape)
                ones[side.axis] = shape[side.axis]
                mask = mask & rows.reshape(ones)
            masks.append(jnp.broadcast_to(mask, shape))
        return masks
