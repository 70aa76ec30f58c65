"""Two methods at once: the network's mask is the product of theirs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax._options import checks_arguments
from zosam_jax._types import Grads, Params
from zosam_jax.sparsity.mask_trees import both
from zosam_jax.sparsity.method import SparseMethod, Topology


class Parts(NamedTuple):
    """The topologies whose masks are multiplied.

    Attributes:
      units: Of the first method.
      weights: Of the second method.
    """

    units: Topology
    weights: Topology


@checks_arguments
def product(units: SparseMethod, weights: SparseMethod) -> SparseMethod:
    r"""A method for units and one for single weights, whose masks are multiplied.

    A weight is live if both masks have it, as in `product(units(0.3, ...), rigl(0.9,
    ...))`. Each method counts in its own mask and changes it in its own steps, as it
    would alone. Both see the parameters of the network, 0 where either prunes, and the
    gradient of all weights. So a method that drops the smallest |w| drops weights of
    pruned units first. It may grow them again: with these a unit comes back.

    Their topologies are in `state.memory`, as `units` and `weights`: each with its
    masks, and its counts in `memory`. The network has no more live weights than either.

    Args:
      units: The first method, such as `units(...)`.
      weights: The second method, such as `rigl`, `set_`, `gmp`, `nm` or `static`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: A method holds pruned weights that are not zero (`ste`, `chex`), or
        chooses its masks after the optimizer's step (`safe`); or the methods differ in
        `stacked`.
      TypeError: An argument is no method.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"in": jnp.ones((4, 8)), "out": jnp.ones((8, 4))}
      >>> hidden = zs.sparsity.Units("out", incoming=("in",))
      >>> method = zs.sparsity.product(
      ...     zs.sparsity.units(0.5, 1000, {"hidden": hidden}),
      ...     zs.sparsity.static(pattern=(2, 4)),
      ... )
      >>> topology = method.init(params)
      >>> print(topology.masks["in"].sum())
      16
      >>> print(topology.memory.units.masks["out"].any(axis=1).sum())
      4
    """
    for name, method in (("units", units), ("weights", weights)):
        _check_part(name, method)
    if units.stacked != weights.stacked:
        raise ValueError(
            f"product: units has stacked={units.stacked!r}, and weights has "
            f"stacked={weights.stacked!r}. Give both the same."
        )
    methods = (units, weights)

    def init(params: Params) -> Topology:
        return _joined(Parts(*(method.init(params) for method in methods)))

    def fires(step: jax.Array) -> jax.Array:
        due = [method.fires(step) for method in methods if method.fires]
        return functools.reduce(jnp.logical_or, due)

    def change(
        topology: Topology, params: Params, grads: Grads, step: jax.Array
    ) -> Topology:
        parts = [
            _changed(method, part, params, grads, step)
            for method, part in zip(methods, topology.memory, strict=True)
        ]
        return _joined(Parts(*parts))

    changes = any(method.fires is not None for method in methods)
    every = [x for method in methods if (x := method.dense_gradient_every) is not None]
    return SparseMethod(
        init,
        fires if changes else None,
        change if changes else None,
        dense_gradient_every=min(every, default=None),
        mean_pruned=min(method.mean_pruned for method in methods),
        name="product",
        stacked=units.stacked,
    )


def _check_part(name: str, method: SparseMethod) -> None:
    """Raises an error unless a method can be one of two."""
    if not isinstance(method, SparseMethod):
        raise TypeError(
            f"product: {name} must be a method of zs.sparsity; got "
            f"{type(method).__name__}."
        )
    reason = None
    if method.pruned_in_params:
        reason = "keeps values of pruned weights, which the product sets to 0"
    elif method.after_step:
        reason = (
            "prunes trained weights after the step, and needs all of them until then"
        )
    if reason:
        raise ValueError(f"product: {name}={method} {reason}. Use it alone.")


def _joined(parts: Parts) -> Topology:
    return Topology(both(parts.units.masks, parts.weights.masks), parts)


def _changed(
    method: SparseMethod, part: Topology, params: Params, grads: Grads, step: jax.Array
) -> Topology:
    """Returns the topology of one method after a step in which it may change."""
    if method.fires is None or method.change is None:
        return part
    return jax.lax.cond(
        method.fires(step),
        method.change,
        lambda part, *_: part,
        *(part, params, grads, step),
    )
