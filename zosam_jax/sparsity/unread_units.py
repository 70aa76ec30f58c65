"""The units that nothing reads, and those that read nothing, found in a mask tree."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from zosam_jax import tree
from zosam_jax._types import Masks, Params, StackRule, Units
from zosam_jax.sparsity.leaves import SparseLeaves
from zosam_jax.sparsity.unit_layers import (
    ACTIVATIONS,
    Side,
    UnitLayer,
    check_groups,
    layers_of_units,
)


@dataclasses.dataclass
class Network:
    """The leaves of a network and its layers of units. `shrink` changes it.

    The layers of a stack of layers are leaves of their own.

    Attributes:
      layers: The layers of units.
      names: Path of each leaf.
      shapes: Shape of each leaf.
      masks: Mask of each leaf; None for a dense one.
      values: Values of each leaf, zero where pruned; [] if only shapes are known.
      live: For each layer, which units have not been found to be superfluous.
      folded: For each layer, how many units were added to a bias.
    """

    layers: list[UnitLayer]
    names: list[str]
    shapes: list[tuple[int, ...]]
    masks: list[np.ndarray | None]
    values: list[np.ndarray]
    live: list[np.ndarray]
    folded: list[int]

    @classmethod
    def of(
        cls,
        params: Params,
        masks: Masks,
        layers: list[UnitLayer],
        stacked: StackRule = (),
        *,
        with_values: bool = True,
    ) -> Self:
        """Returns the network before anything is found.

        Args:
          params: Pytree of arrays, zero where pruned.
          masks: Mask tree.
          layers: The layers of units, of the same `stacked`.
          stacked: Leaves that are stacks of layers, as in `dynamic`.
          with_values: Whether `params` have values, and not only shapes.

        Raises:
          ValueError: Two layers of units are along the same axis of a leaf.
        """
        whole = SparseLeaves.every(params, stacked)
        values = [np.asarray(x) for x in whole.of(params)] if with_values else []
        found = [None if tree.is_dense(m) else np.asarray(m) for m in whole.of(masks)]
        owners: dict[tuple[int, int], UnitLayer] = {}
        for layer in layers:
            for side in (*layer.readers, *layer.incoming):
                other = owners.setdefault((side.place, side.axis), layer)
                if other is not layer:
                    raise ValueError(
                        f"{layer.group} and {other.group} both have units along axis "
                        f"{side.axis} of {side.path}."
                    )
        live = [np.ones(layer.units, bool) for layer in layers]
        shapes = [tuple(shape) for shape in whole.shapes]
        names = list(whole.names)
        return cls(layers, names, shapes, found, values, live, [0] * len(layers))

    def mask_leaves(self) -> list[Any]:
        """Returns the masks as leaves of a mask tree."""
        return [True if mask is None else mask for mask in self.masks]

    def _sides(self, place: int) -> list[tuple[int, Side]]:
        """Returns the layers of units along the axes of a leaf."""
        return [
            (k, side)
            for k, layer in enumerate(self.layers)
            for side in (*layer.readers, *layer.incoming)
            if side.place == place
        ]

    def _entries(self, k: int, side: Side, live: np.ndarray) -> np.ndarray:
        """Returns the indices along the axis of a side that belong to units."""
        block = self.shapes[side.place][side.axis] // self.layers[k].units
        return np.flatnonzero(np.repeat(live, block))

    def rows(self, place: int, live: list[np.ndarray]) -> dict[int, np.ndarray]:
        """Returns the indices of some units along the axes of a leaf; {}: all of them.

        Args:
          place: The leaf.
          live: The units of each layer.
        """
        return {
            side.axis: self._entries(k, side, live[k])
            for k, side in self._sides(place)
            if not live[k].all()
        }

    def removed(self, live: list[np.ndarray]) -> dict[str, int]:
        """Returns how many entries each leaf loses with the other units, by path.

        Args:
          live: The units of each layer that stay.
        """
        found = {}
        for place, shape in enumerate(self.shapes):
            smaller = list(shape)
            for axis, entries in self.rows(place, live).items():
                smaller[axis] = len(entries)
            found[self.names[place]] = math.prod(shape) - math.prod(smaller)
        return {name: count for name, count in found.items() if count}

    def _count(self, k: int, side: Side) -> np.ndarray:
        """Returns the number of live weights of each unit in a leaf, int `[units]`.

        Weights from and to units that go do not count.
        """
        mask = self.masks[side.place]
        if mask is None:
            mask = np.broadcast_to(np.True_, self.shapes[side.place])
        for other, across in self._sides(side.place):
            if across != side and not self.live[other].all():
                entries = self._entries(other, across, self.live[other])
                mask = mask.take(entries, axis=across.axis)
        mask = np.moveaxis(mask, side.axis, 0)
        return np.count_nonzero(mask.reshape(self.layers[k].units, -1), axis=1)

    def _read(self, k: int) -> np.ndarray:
        """Returns which units of a layer are read."""
        total = np.zeros(self.layers[k].units, np.int64)
        for side in self.layers[k].readers:
            total += self._count(k, side)
        return total > 0

    def _fed(self, k: int) -> np.ndarray:
        """Returns which units of a layer have live incoming weights."""
        layer = self.layers[k]
        kernels = [s for s in layer.incoming if len(self.shapes[s.place]) > 1]
        total = np.zeros(layer.units, np.int64)
        for side in kernels:
            total += self._count(k, side)
        # Without a kernel, nothing is known of their inputs.
        return (total > 0) | (not kernels)

    def shrink(self, fold: bool) -> None:
        """Finds the units that can go, until there are no more.

        Args:
          fold: Whether constant units are added to biases, which needs values.
        """
        changes = True
        while changes:
            changes = False
            for k in range(len(self.layers)):
                live = self.live[k] & self._read(k)
                changes |= bool((live != self.live[k]).any())
                self.live[k] = live
                if fold and not changes:
                    changes |= self._fold(k)

    def _fold(self, k: int) -> bool:
        """Adds the constant units of a layer to biases; returns whether it did."""
        layer = self.layers[k]
        constant = np.flatnonzero(self.live[k] & ~self._fed(k))
        biases = [self._bias(side) for side in layer.readers]
        own = [s for s in layer.incoming if len(self.shapes[s.place]) == 1]
        if not len(constant) or not layer.activation or None in biases or len(own) > 1:
            return False
        zeros = np.zeros(layer.units, np.float32)
        bias = self.values[own[0].place] if own else zeros
        if bias.shape != (layer.units,):
            return False
        emitted = ACTIVATIONS[layer.activation](jnp.asarray(bias[constant]))
        for side, place in zip(layer.readers, biases, strict=True):
            assert place is not None
            index = (slice(None),) * side.axis + (constant,)
            weights = np.moveaxis(self.values[side.place][index], side.axis, 0)
            total = np.asarray(emitted, np.float64) @ weights.astype(np.float64)
            changed = self.values[place] + total
            self.values[place] = changed.astype(self.values[place].dtype)
            self.values[side.place] = self.values[side.place].copy()
            self.values[side.place][index] = 0
            mask = self.masks[side.place]
            if mask is not None:
                mask = mask.copy()
                mask[index] = False
                self.masks[side.place] = mask
        self.live[k] = self.live[k].copy()
        self.live[k][constant] = False
        self.folded[k] += len(constant)
        return True

    def _bias(self, reader: Side) -> int | None:
        """Returns the place of the dense bias beside a kernel of two axes, or None."""
        name = f"{reader.path.rpartition('/')[0]}/bias".lstrip("/")
        place = self.names.index(name) if name in self.names else None
        is_matrix = len(self.shapes[reader.place]) == 2
        if place is None or self.masks[place] is not None or not is_matrix:
            return None
        outputs = self.shapes[reader.place][1 - reader.axis]
        return place if self.shapes[place] == (outputs,) else None

    def constant(self, live: list[np.ndarray]) -> list[int]:
        """Returns how many units of each layer stay although they read nothing.

        Args:
          live: The units of each layer that stay.
        """
        return [
            int((live[k] & self.live[k] & ~self._fed(k)).sum())
            for k in range(len(self.layers))
        ]

    def kept(self, multiple: int = 1) -> list[np.ndarray]:
        """Returns the units of each layer that stay: at least one.

        Args:
          multiple: Widths are rounded up to multiples of it, by the units that could go
            and have the largest incoming weights.
        """
        return [self._kept(k, multiple) for k in range(len(self.layers))]

    def _kept(self, k: int, multiple: int) -> np.ndarray:
        layer, live = self.layers[k], self.live[k].copy()
        # The heads of an attention have several features each.
        block = self.shapes[layer.outgoing.place][layer.outgoing.axis] // layer.units
        step = multiple // math.gcd(multiple, block)
        wanted = min(layer.units, -(-max(int(live.sum()), 1) // step) * step)
        spare = np.flatnonzero(~live)
        order = np.argsort(-self._sizes(k)[spare], kind="stable")
        live[spare[order[: wanted - int(live.sum())]]] = True
        return live

    def _sizes(self, k: int) -> np.ndarray:
        """Returns the L1 norms of the incoming weights, float64 `[units]`."""
        total = np.zeros(self.layers[k].units)
        for side in self.layers[k].incoming if self.values else ():
            if len(self.shapes[side.place]) > 1:
                x = np.moveaxis(self.values[side.place], side.axis, 0)
                total += np.abs(x.reshape(len(total), -1).astype(np.float64)).sum(1)
        return total

    def disturbed(self, layers: list[int]) -> list[np.ndarray]:
        """Returns the values with random numbers as inputs of the units that can go.

        Args:
          layers: The layers whose units are disturbed.
        """
        rng, values = np.random.default_rng(0), list(self.values)
        for k in layers:
            for side in self.layers[k].incoming:
                entries = self._entries(k, side, ~self.live[k])
                if not len(entries):
                    continue
                x = values[side.place].copy()
                index = (slice(None),) * side.axis + (entries,)
                x[index] = rng.normal(size=x[index].shape)
                values[side.place] = x
        return values


def removable(
    params: Params,
    masks: Masks,
    groups: Mapping[str, Units],
    stacked: StackRule = (),
) -> dict[str, int]:
    """Returns how many parameters a network without the pruned units leaves out.

    A unit that nothing reads is removed with its outgoing weights, which are zero, and
    its incoming weights and biases, which then have no effect. The output of the
    network stays the same. `compact` removes them; without constant units, it removes
    as many.

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      masks: Mask tree, concrete: it is read on the host.
      groups: As in `units`, or what the method `cuts` of a model returns.
      stacked: As in `units`.

    Returns:
      `{path: parameters}` for the leaves that become smaller, in flattening order. The
      layers of a stack are `path/0`, `path/1`, and so on.

    Raises:
      ValueError: The masks or groups do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"in": jnp.ones((3, 2)), "out": jnp.ones((2, 4))}
      >>> masks = {"in": True, "out": jnp.array([[True] * 4, [False] * 4])}
      >>> hidden = zs.sparsity.Units(outgoing="out", incoming=("in",))
      >>> zs.sparsity.removable(params, masks, {"hidden": hidden})
      {'in': 3, 'out': 4}
    """
    tree.check_masks(masks, params)
    check_groups(groups)
    layers = layers_of_units(params, groups, stacked)
    network = Network.of(params, masks, layers, stacked, with_values=False)
    network.shrink(fold=False)
    return network.removed(network.kept())
