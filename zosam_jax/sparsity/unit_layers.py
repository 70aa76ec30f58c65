"""Layers of units in a tree of parameters: which leaves read them, and which make them.

`zs.sparsity.Units` names the leaves by patterns. `UnitMasks` makes the masks of leaves
from those of units.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check
from zosam_jax._types import Params, StackRule, Units
from zosam_jax.sparsity.leaves import Leaf, SparseLeaves, check_sizes
from zosam_jax.sparsity.patterns import axis_of

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
"""The functions that `Units.activation` names."""


class Side(NamedTuple):
    """The leaf that reads the units of a layer, or one that writes them.

    Attributes:
      path: Key path of the leaf.
      place: Index among the layers of all leaves, in flattening order.
      axis: The axis of the units, of a layer.
    """

    path: str
    place: int
    axis: int


class UnitLayer(NamedTuple):
    """A layer of units.

    Attributes:
      group: Name of its `Units`.
      drop: As in `Units`.
      units: Number of units.
      outgoing: The kernel that reads the units.
      incoming: The leaves whose outputs they are.
      others: Further kernels that read them.
      activation: As in `Units`.
      scale: The scale of their batch normalization; None without one.
    """

    group: str
    drop: str
    units: int
    outgoing: Side
    incoming: tuple[Side, ...]
    others: tuple[Side, ...] = ()
    activation: str = ""
    scale: Side | None = None

    @property
    def readers(self) -> tuple[Side, ...]:
        """All kernels that read the units."""
        return (self.outgoing, *self.others)


def layers_of_units(
    params: Params, groups: Mapping[str, Units], stacked: StackRule
) -> list[UnitLayer]:
    """Returns the layers of units of a network, in the flattening order of the kernels.

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      groups: The kinds of units by name.
      stacked: Leaves that are stacks of layers, as in `dynamic`.

    Raises:
      ValueError: A pattern matches no leaf, or leaves do not fit their units.
    """
    leaves = {leaf.path: leaf for leaf in SparseLeaves.every(params, stacked).leaves}
    layers: dict[int, UnitLayer] = {}
    for name, row in groups.items():
        pattern = "(.*)".join(map(re.escape, row.outgoing.split("*")))
        matches = [m for p in leaves if (m := re.fullmatch(pattern, p))]
        if not matches:
            _check.one_of(f"{name}: outgoing", row.outgoing, leaves)
        for match in matches:
            for layer in _of_stack(name, row, match, leaves):
                path, place = layer.outgoing.path, layer.outgoing.place
                if place in layers:
                    raise ValueError(
                        f"{name} and {layers[place].group} both prune the units that "
                        f"{path} reads."
                    )
                layers[place] = layer
    return [layers[index] for index in sorted(layers)]


def _of_stack(
    name: str, row: Units, match: re.Match[str], leaves: Mapping[str, Leaf]
) -> list[UnitLayer]:
    """Returns the layers of units of one outgoing kernel: one for each layer of it."""
    kernel = leaves[match.group()]
    path, shape = kernel.path, kernel.shape[kernel.axes :]
    if len(shape) < 2:
        raise ValueError(f"{name}: {path} of shape {shape} is no kernel.")
    number = row.units or shape[axis_of(row.outgoing_axis, path, shape)]
    sizes = [len(leaf.indices) for leaf in leaves.values()]
    starts = dict(zip(leaves, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))

    def stack(field: str, pattern: str, axis: int) -> list[Side]:
        path = _filled(pattern, match.groups())
        if path not in leaves:
            _check.one_of(f"{name}: {field}", path, leaves)
        leaf = leaves[path]
        shape = leaf.shape[leaf.axes :]
        if leaf.shape[: leaf.axes] != kernel.shape[: kernel.axes]:
            raise ValueError(
                f"{name}: {path} of shape {leaf.shape} and {kernel.path} of shape "
                f"{kernel.shape} must be stacks of as many layers; see stacked=."
            )
        along = axis_of(axis, path, shape)
        if not shape[along] or shape[along] % number:
            raise ValueError(
                f"{name}: {number} units do not divide axis {along} of {path}, of "
                f"shape {shape}."
            )
        return [Side(path, starts[path] + i, along) for i in range(len(leaf.indices))]

    read = [("outgoing", row.outgoing), *(("others", path) for path in row.others)]
    readers = [stack(*reader, row.outgoing_axis) for reader in read]
    incoming = [stack("incoming", path, row.incoming_axis) for path in row.incoming]
    return [
        _layer(name, row, number, sides[: len(read)], sides[len(read) :])
        for sides in zip(*readers, *incoming, strict=True)
    ]


def _layer(
    name: str,
    row: Units,
    number: int,
    readers: tuple[Side, ...],
    made: tuple[Side, ...],
) -> UnitLayer:
    first, *others = readers
    scale = made[row.incoming.index(row.scale)] if row.scale else None
    return UnitLayer(
        name, row.drop, number, first, made, tuple(others), row.activation, scale
    )


def _filled(pattern: str, texts: Sequence[str]) -> str:
    """Returns the pattern with its stars replaced by the texts, in order."""
    for text in texts:
        pattern = pattern.replace("*", text, 1)
    return pattern


def by_unit(x: jax.Array, leaf: Side, number: int) -> jax.Array:
    """Returns the sum over the entries of each unit, float32 `[number]`."""
    x = x.reshape(*x.shape[: leaf.axis], number, -1, *x.shape[leaf.axis + 1 :])
    others = tuple(i for i in range(x.ndim) if i != leaf.axis)
    return jnp.sum(x, others, dtype=jnp.float32)


def check_groups(groups: object) -> None:
    """Raises `ValueError` unless `groups` maps names to `Units`."""
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(
            'groups must map names to zs.sparsity.Units, as {"mlp": '
            'Units("*/mlp2/kernel", incoming=("*/mlp1/kernel",))}; got '
            f"{type(groups).__name__}."
        )
    for name, row in groups.items():
        if not isinstance(row, Units):
            raise ValueError(
                f"groups: {name!r} must be a zs.sparsity.Units; got {row!r}."
            )
        _check.one_of(f"{name}: drop", row.drop, ("magnitude", "taylor"))
        _check.one_of(f"{name}: activation", row.activation, ("", *ACTIVATIONS))
        if row.units is not None:
            _check.whole(f"{name}: units", row.units)
        if row.scale:
            _check.one_of(f"{name}: scale", row.scale, row.incoming)


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
