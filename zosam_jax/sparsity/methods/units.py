r"""Units pruned whole: attention heads, hidden units of an MLP, channels.

The outgoing weights :math:`W^{out}_u` of a pruned unit are zero: the rows of the next
layer that read it. So it adds exactly nothing to the output of the network. Its
incoming weights are kept. If they were zero too, the gradient of the outgoing ones,

.. math:: \partial L / \partial W^{out}_u = a_u^T \delta,

would vanish with the activation :math:`a_u`, and the gradient of the incoming ones with
:math:`W^{out}_u`: a saddle from which nothing grows. With the incoming weights in place
the gradient says what a pruned unit would be worth, and a unit that comes back works
from the next step on.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check
from zosam_jax._options import checks_arguments
from zosam_jax._types import Grads, Params, StackRule, Units
from zosam_jax.selection import select
from zosam_jax.sparsity import schedules
from zosam_jax.sparsity.initial_masks import mask_key
from zosam_jax.sparsity.leaves import SparseLeaves, live_counts
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.prune_and_grow import Memory
from zosam_jax.sparsity.unit_layers import (
    Side,
    UnitLayer,
    UnitMasks,
    by_unit,
    check_groups,
    layers_of_units,
)


@checks_arguments
def units(
    sparsity: float | Mapping[str, float],
    total_steps: int,
    groups: Mapping[str, Units],
    *,
    interval: int | None = None,
    drop_fraction: float | schedules.Fraction | None = None,
    stop_fraction: float = 0.8,
    stacked: StackRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""Heads, hidden units and channels, pruned and regrown whole (S2ViTE).

    From arXiv:2106.04533. Of a layer of U units, :math:`s U`, rounded, are pruned, and
    at least one is kept. A change drops the :math:`\lceil \alpha_t n \rceil` of the n
    live units with the lowest scores. As many units grow, of those not kept, with the
    largest :math:`\|\partial L / \partial W^{out}_u\|_1`. The drop score is, by
    `Units.drop`:

    * "taylor": :math:`|\sum W^{out}_u \odot \partial L / \partial W^{out}_u| =
      |\partial L / \partial c_u|` for a factor :math:`c_u = 1` on the unit's output:
      to first order, the change of the loss without the unit. It is the paper's score
      of a head, for the loss of the batch instead of an average over its examples.
    * "magnitude": :math:`\|W^{in}_u\|_1 + \|W^{out}_u\|_1` over kernels, not biases,
      the paper's score of a hidden unit.

    Only outgoing weights are masked: the sparse leaves are the `outgoing` kernels, and
    all others are dense. The incoming weights of a pruned unit have no gradient; only
    weight decay and momentum change them. `removable` counts those that a smaller
    network can leave out.

    `product` adds unstructured or N:M sparsity, of the same layers too.

    Args:
      sparsity: Fraction of pruned units of every layer, in [0, 1); or one for each name
        in `groups`, as `{"heads": 0.3, "mlp": 0.5}`.
      total_steps: Optimizer steps of the whole training.
      groups: Kinds of units by name; for the library's models,
        `zosam_jax.models.unit_groups(name)`. A unit has one outgoing kernel: a unit
        that two layers read cannot be pruned in this way.
      interval: Steps between two changes of topology. None: `total_steps // 75`.
      drop_fraction: As in `dynamic`. None: from 0.5 to 0.005 by a cosine over the whole
        training, as in `svite`.
      stop_fraction: All changes are before step `stop_fraction * total_steps`.
      stacked: Leaves that are stacks of layers, as in `dynamic`. Each layer has units
        of its own; the leaves of a group are stacked alike.
      seed: Seed of the first, random choice of units.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a group that matches no leaf, or
        leaves that its units do not divide.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> hidden = zs.sparsity.Units(outgoing="out", incoming=("in",))
      >>> method = zs.sparsity.units(0.5, 1000, {"hidden": hidden})
      >>> masks = zs.sparsity.masks(zs.sparsify(optax.sgd(0.1), method).init(params))
      >>> zs.sparsity.removable(params, masks, {"hidden": hidden})
      {'in': 12, 'out': 8}
    """
    _check.whole("total_steps", total_steps)
    _check.whole("seed", seed, least=0)
    check_groups(groups)
    for name, row in groups.items():
        if row.others:
            raise ValueError(
                f"{name}: {row.others[0]} reads the units too. This method prunes "
                "units that one kernel reads; leave the group out."
            )
    fractions = _fractions(sparsity, groups)
    if interval is None:
        interval = max(1, total_steps // 75)
    if drop_fraction is None:
        drop_fraction = schedules.cosine(0.5, total_steps, 0.005)
    fires, fraction = schedules.dropping(
        total_steps, interval, drop_fraction, stop_fraction
    )

    def init(params: Params) -> Topology:
        layers = layers_of_units(params, groups, stacked)
        masked = UnitMasks.of(params, layers, stacked, _outgoing)
        counts = [
            max(1, layer.units - round(fractions[layer.group] * layer.units))
            for layer in layers
        ]
        drawn = jax.random.uniform(
            mask_key(seed), (sum(layer.units for layer in layers),)
        )
        bounds = np.cumsum([layer.units for layer in layers])[:-1].tolist()
        ranked = jnp.split(drawn, bounds)
        chosen = select(ranked, [jnp.ones(x.shape, bool) for x in ranked], counts)
        masks = masked.product(chosen)
        # Counts of weights, as other methods have them; units are counted from masks.
        live = live_counts(masks)
        # A copy: a donated state may not hold an array twice.
        return Topology(masked.leaves.masks(masks), Memory(live, live + 0))

    def change(
        topology: Topology, params: Params, grads: Grads, step: jax.Array
    ) -> Topology:
        layers = layers_of_units(params, groups, stacked)
        whole = SparseLeaves.every(params, stacked)
        leaves, slopes = whole.of(params), whole.of(grads)
        masked = UnitMasks.of(params, layers, stacked, _outgoing)
        masks = masked.leaves.of(topology.masks)
        live = [
            # A unit is live if one of its outgoing weights is: all or none of them are.
            by_unit(mask, layer.outgoing, layer.units) > 0
            for mask, layer in zip(masks, layers, strict=True)
        ]
        number = jnp.stack([jnp.sum(x, dtype=jnp.int32) for x in live])
        # Rounded up: rounded down, a layer of three heads would never change.
        share = fraction(step) * number.astype(jnp.float32)
        dropped = jnp.ceil(share).astype(jnp.int32)
        dropped = jnp.minimum(dropped, number)
        ranked = [_importance(layer, leaves, slopes) for layer in layers]
        kept = select(ranked, live, list(number - dropped))
        # Pruned units have weights of 0, so effects on the loss, w g, cannot rank them.
        pulls = [
            _norms(slopes[layer.outgoing.place], layer.outgoing, layer.units)
            for layer in layers
        ]
        grown = select(pulls, [~k for k in kept], list(dropped))
        new = [k | g for k, g in zip(kept, grown, strict=True)]
        masks = masked.leaves.masks(masked.product(new))
        return Topology(masks, topology.memory)

    return SparseMethod(
        init,
        fires,
        change,
        dense_gradient_every=interval,
        name="units",
        stacked=stacked,
    )


def _importance(
    layer: UnitLayer, leaves: Sequence[jax.Array], slopes: Sequence[jax.Array]
) -> jax.Array:
    """Returns the drop score of every unit, float32 `[units]`."""
    w, g = (x[layer.outgoing.place].astype(jnp.float32) for x in (leaves, slopes))
    if layer.drop == "taylor":
        # The sum comes before the absolute value: effects of opposite sign cancel.
        return jnp.abs(by_unit(w * g, layer.outgoing, layer.units))
    total = _norms(w, layer.outgoing, layer.units)
    for leaf in layer.incoming:
        if leaves[leaf.place].ndim >= 2:
            total += _norms(leaves[leaf.place], leaf, layer.units)
    return total


def _norms(x: jax.Array, leaf: Side, number: int) -> jax.Array:
    return by_unit(jnp.abs(x.astype(jnp.float32)), leaf, number)


def _outgoing(layer: UnitLayer) -> tuple[Side, ...]:
    return (layer.outgoing,)


def _fractions(
    sparsity: float | Mapping[str, float], groups: Mapping[str, Units]
) -> dict[str, float]:
    """Returns the sparsity of every group."""
    if not isinstance(sparsity, Mapping):
        _check.number("sparsity", sparsity, least=0, below=1, traced=False)
        return dict.fromkeys(groups, sparsity)
    if set(sparsity) != set(groups):
        raise ValueError(
            f"sparsity={sparsity!r} must have a number for each of the groups "
            f"{', '.join(groups)}."
        )
    for name, fraction in sparsity.items():
        _check.number(f"sparsity[{name!r}]", fraction, least=0, below=1)
    return dict(sparsity)
