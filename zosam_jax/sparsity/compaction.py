r"""Units that nothing reads, cut out of a network: smaller, dense and exactly equal.

A unit is cut if every weight that reads it is pruned. Its incoming weights, bias and
normalization then have no effect, and go too. With them go the readings of the units
before it: the search repeats until nothing changes, so that a second cut finds nothing.

A unit whose incoming weights are all pruned is a constant, :math:`c = \phi(b)` for its
bias b. Where each of its readers sees :math:`\phi` of the unit at every position and
has a bias, :math:`c\, W^{out}` is added to that bias and the unit is cut too. Elsewhere
it stays: behind a padded convolution, a border sees fewer constants than the middle.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, PyTree, Units
from zosam_jax.sparsity.mask_trees import filled
from zosam_jax.sparsity.packing import unpack
from zosam_jax.sparsity.unit_layers import UnitLayer, check_groups, layers_of_units
from zosam_jax.sparsity.unread_units import Network

KeyPath = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Compact:
    """A network without the units that `compact` cut out.

    Attributes:
      model: The model of the smaller widths; None if there was none.
      params: Its parameters, as NumPy arrays, zero where pruned.
      masks: Their mask tree, with what is left of the unstructured pruning.
      model_state: Its other collections, as `{"batch_stats": ...}`.
      widths: Number of units of each layer of units that became smaller. For a model of
        this library, `zs.models.create(..., widths=widths)` makes the smaller one; the
        widths that the model had already are included.
      removed: Number of parameters cut out of each leaf, by path.
      folded: Number of constant units that were added to a bias, by layer of units.
      constant: Number of constant units that stayed, by layer of units.
    """

    model: Any
    params: Params
    masks: Masks
    model_state: PyTree
    widths: dict[str, int]
    removed: dict[str, int]
    folded: dict[str, int]
    constant: dict[str, int]
    _kept: "dict[KeyPath, _Kept]"

    def cut(self, state: PyTree) -> PyTree:
        """Returns a state of the larger network for the smaller one.

        A leaf belongs to the parameter, or to the leaf of `model_state`, whose key path
        its own path ends in, as in `reset_moments`; it is cut like this one. So it
        takes the state of any Optax optimizer, averages of the weights, gradients and
        mask trees.

        The state of `sparsify` also has counts of live weights, which are those of the
        larger network. To train on, cut the state of the optimizer inside, and give the
        masks to a new `zs.sparsity.static(masks=...)`.

        Args:
          state: Pytree of arrays.

        Raises:
          ValueError: A leaf holds statistics that several weights share, as Adafactor's
            row and column means.

        Example:
          >>> import jax.numpy as jnp, optax, zosam_jax as zs
          >>> params = {"in": jnp.ones((3, 2)), "out": jnp.ones((2, 4))}
          >>> masks = {"in": True, "out": jnp.array([[True] * 4, [False] * 4])}
          >>> groups = {"hidden": zs.sparsity.Units("out", incoming=("in",))}
          >>> outputs = lambda p: jnp.ones((1, 3)) @ p["in"] @ p["out"]
          >>> small = zs.sparsity.compact(
          ...     None, params, masks, groups=groups, outputs=outputs
          ... )
          >>> state = small.cut(optax.trace(0.9).init(params))
          >>> state.trace["in"].shape, state.trace["out"].shape
          ((3, 1), (1, 4))
        """

        def leaf(path: KeyPath, x: jax.Array) -> jax.Array:
            for start in range(len(path) + 1):
                kept = self._kept.get(tuple(path[start:]))
                if kept is not None:
                    return kept.of(x, jax.tree_util.keystr(path))
            return x

        return jax.tree_util.tree_map_with_path(leaf, state)


class _Kept(NamedTuple):
    """What is kept of a leaf: the shape that it had, and entries of some axes."""

    shape: tuple[int, ...]
    rows: Mapping[int, np.ndarray]

    def of(self, x: Any, name: str) -> Any:
        """Returns the kept entries of an array whose trailing axes are the leaf's."""
        if not self.rows or np.size(x) <= 1 < math.prod(self.shape):
            return x
        shape = np.shape(x)
        if shape[len(shape) - len(self.shape) :] != self.shape:
            raise ValueError(
                f"state: {name} of shape {shape} belongs to a parameter of shape "
                f"{self.shape}, and holds statistics of several weights together, "
                "which cannot be cut. Start the optimizer anew."
            )
        for axis, rows in self.rows.items():
            # Trailing axes: L-BFGS stacks several gradients in front of them.
            x = x.take(rows, axis=axis - len(self.shape))
        return x


def compact(
    model: Any,
    params: Params,
    masks: Masks,
    *,
    model_state: PyTree = None,
    groups: Mapping[str, Units] | None = None,
    outputs: Callable[[Params], PyTree] | None = None,
    multiple: int = 1,
    fold: bool = True,
) -> Compact:
    """Returns the network without the units that nothing reads. It computes the same.

    The outputs are those of the parameters times their masks, up to rounding, in
    evaluation and in training, where nothing is dropped out. BatchNorm's statistics of
    a channel depend on no other channel. Folded units are the exception under dropout:
    their constant is never dropped. Training on gives the same networks as training
    with these masks before the cut, unless a unit was folded, whose weights can no
    longer change on their own.

    Of a layer, one unit is kept at least, although nothing reads it.

    Args:
      model: A model of this library, whose method `cuts` says where its units are: the
        hidden units of MLPs, channels of ResNets (within the blocks, and on the
        residual stream), wide ResNets and VGG, heads and hidden units of transformers.
        With `groups`, anything; None for no model.
      params: Its parameters.
      masks: Their mask tree, concrete: it is read on the host.
      model_state: The other collections, as `{"batch_stats": ...}`. Leaves beside an
        incoming bias or scale are cut with it.
      groups: The units of a model of your own, as for `units`. Each layer of units
        needs all kernels that read it (`outgoing` and `others`) and all leaves whose
        outputs it is (`incoming`).
      outputs: The outputs of the network as a function of the parameters alone, on
        examples of your choice: `lambda p: model.apply({"params": p, **model_state},
        x, train=False)`. If given, the cut is checked: random numbers in place of the
        weights of the units that go must not change the outputs. `groups` need it.
      multiple: Widths are rounded up to multiples of it, as 8 for GPUs and TPUs; never
        above the width before the cut. Of the units that nothing reads, those with the
        largest incoming weights stay.
      fold: Whether constant units are added to the biases of their readers.

    Returns:
      The smaller network.

    Raises:
      ValueError: The masks or groups do not fit the parameters, or the outputs depend
        on a unit that was to go.

    Example:
      >>> import jax, zosam_jax as zs
      >>> model = zs.models.create("mlp", num_classes=10, hidden=(8, 6))
      >>> params, _ = zs.models.initialize(model, jax.random.key(0), (4, 4, 1))
      >>> method = zs.sparsity.units(0.5, 100, model.cuts())
      >>> small = zs.sparsity.compact(model, params, method.init(params).masks)
      >>> small.widths["hidden1"], small.params["hidden2"]["kernel"].shape
      (4, (4, 3))
    """
    _check.whole("multiple", multiple)
    named, narrows = _groups(model, groups, outputs)
    masks = filled(unpack(masks), params)
    tree.check_masks(masks, params)
    params = jax.tree.map(np.asarray, tree.mask(params, masks))
    layers = layers_of_units(params, named, ())
    network = Network.of(params, masks, layers)
    network.shrink(fold)
    if outputs is not None:
        _check_exact(network, params, outputs)
    structure = jax.tree.structure(params)
    live = network.kept(multiple)
    kept = _kept_rows(network, live, params, model_state)
    widths = dict(getattr(model, "widths", {})) if narrows else {}
    widths |= _widths(layers, live)
    large = Compact(
        model=model.clone(widths=widths) if narrows else None,
        params=jax.tree.unflatten(structure, network.values),
        masks=jax.tree.unflatten(structure, network.mask_leaves()),
        model_state=model_state,
        widths=widths,
        removed=network.removed(live),
        folded=_by_group(layers, network.folded),
        constant=_by_group(layers, network.constant(live)),
        _kept=kept,
    )
    parts = {
        name: large.cut(getattr(large, name))
        for name in ("params", "masks", "model_state")
    }
    return dataclasses.replace(large, **parts)


def _groups(
    model: Any,
    groups: Mapping[str, Units] | None,
    outputs: Callable[[Params], PyTree] | None,
) -> tuple[Mapping[str, Units], bool]:
    """Returns the units, and whether the model can be made narrower by their names."""
    known = model.cuts() if hasattr(model, "cuts") else {}
    if groups is None:
        if not known:
            raise ValueError(
                f"model: {type(model).__name__} does not say where its units are. Give "
                "groups= and outputs=."
            )
        return known, True
    check_groups(groups)
    if all(known.get(name) == row for name, row in groups.items()):
        return groups, True
    if outputs is None:
        raise ValueError(
            "groups= of your own need outputs=, by which the cut is checked: "
            'lambda p: model.apply({"params": p}, x).'
        )
    return groups, False


def _name(layers: list[UnitLayer], layer: UnitLayer) -> str:
    """Returns the name of a layer: that of its group, if this has no other."""
    alone = sum(each.group == layer.group for each in layers) == 1
    return layer.group if alone else f"{layer.group}: {layer.outgoing.path}"


def _by_group(layers: list[UnitLayer], counts: list[int]) -> dict[str, int]:
    return {
        _name(layers, layer): count
        for layer, count in zip(layers, counts, strict=True)
        if count
    }


def _widths(layers: list[UnitLayer], live: list[np.ndarray]) -> dict[str, int]:
    return {
        _name(layers, layer): int(units.sum())
        for layer, units in zip(layers, live, strict=True)
        if not units.all()
    }


def _kept_rows(
    network: Network, live: list[np.ndarray], params: Params, model_state: PyTree
) -> "dict[KeyPath, _Kept]":
    """Returns what is kept of each leaf of the parameters and of the model's state."""
    kept: dict[KeyPath, _Kept] = {}
    modules: dict[tuple[str, int], np.ndarray] = {}
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = _check.paths(params)
    for place, (path, x) in enumerate(leaves):
        rows = network.rows(place, live)
        kept[tuple(path)] = _Kept(x.shape, rows)
        if x.ndim == 1 and rows:
            modules[paths[place].rpartition("/")[0], x.size] = rows[0]
    leaves = jax.tree_util.tree_flatten_with_path(model_state)[0]
    for (path, x), text in zip(leaves, _check.paths(model_state), strict=True):
        # Statistics of a normalization: batch_stats/MODULE/mean beside MODULE/scale.
        module = text.partition("/")[2].rpartition("/")[0]
        rows = modules.get((module, np.size(x))) if np.ndim(x) == 1 else None
        kept[tuple(path)] = _Kept(np.shape(x), {} if rows is None else {0: rows})
    return kept


def _check_exact(
    network: Network, params: Params, outputs: Callable[[Params], PyTree]
) -> None:
    """Raises `ValueError` if the outputs depend on the units that are to go."""
    structure = jax.tree.structure(params)

    def differs(layers: list[int]) -> bool:
        values = network.disturbed(layers)
        found = jax.tree.leaves(outputs(jax.tree.unflatten(structure, values)))
        return any(not _is_close(x, y) for x, y in zip(found, expected, strict=True))

    expected = [np.asarray(x) for x in jax.tree.leaves(outputs(params))]
    every = list(range(len(network.layers)))
    if not differs(every):
        return
    wrong = next((k for k in every if differs([k])), 0)
    layer = network.layers[wrong]
    raise ValueError(
        f"{layer.group}: the outputs depend on units of {layer.outgoing.path} that are "
        "to go. Another leaf reads them (name it in `others`), or a leaf of `incoming` "
        "is not theirs alone."
    )


def _is_close(x: Any, y: np.ndarray) -> bool:
    scale = np.max(np.abs(y), initial=0.0)
    return bool(np.all(np.abs(np.asarray(x) - y) <= 1e-4 * scale))
