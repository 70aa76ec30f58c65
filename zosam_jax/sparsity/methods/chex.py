r"""CHEX: channels that are pruned and regrown by how much the others span them.

A layer's weights are a matrix W with one column for each output channel, and
:math:`G = W^T W`. Both scores follow from G. If :math:`v_1, v_2, \dots` are its
eigenvectors, by falling eigenvalue, they are the right singular vectors of W, and

.. math:: \psi_j^2 = \sum_{i \le r} v_{ji}^2, \quad
   r_j^2 = G_{jj} - G_{jK} \, G_{KK}^+ \, G_{Kj}

are the leverage score of channel j in the best approximation of rank r, and the
distance of its column from the span of the columns K, squared.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import checks_arguments
from zosam_jax._types import Grads, Key, Masks, Params, StackRule, Units
from zosam_jax.selection import select, select_globally
from zosam_jax.sparsity import budgets, schedules
from zosam_jax.sparsity.leaves import SparseLeaves, live_counts
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.prune_and_grow import Memory, change_keys
from zosam_jax.sparsity.unit_layers import (
    Side,
    UnitLayer,
    UnitMasks,
    check_groups,
    layers_of_units,
)


@checks_arguments
def chex(
    sparsity: float,
    total_steps: int,
    groups: Mapping[str, Units],
    *,
    regrow_fraction: float = 0.3,
    interval: int | None = None,
    stop_fraction: float = 0.72,
    stacked: StackRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""CHEX, channel exploration (arXiv:2203.15794): channels pruned and regrown.

    Of the N channels of all groups, :math:`N - sN + \delta_t N` are live after a change
    at step t, with both products rounded. The changes end at step T, and

    .. math:: \delta_t = \frac{\delta_0}{2} \left(1 + \cos \frac{\pi t}{T}\right)

    So a fraction s of the channels is pruned after step T. A change

    1. shares the channels among the layers by the scales :math:`\gamma` of their batch
       normalization: a layer gets as many as it has among the largest
       :math:`|\gamma|` of the network, and at least one. This gives each layer its
       number :math:`k_l` at sparsity s, and :math:`n_l` at sparsity
       :math:`s - \delta_t`;
    2. keeps the :math:`k_l` live channels of the highest leverage scores, in the best
       approximation of rank :math:`k_l`. In a layer with more channels than inputs of
       one channel it keeps those of the largest L1 norms;
    3. draws :math:`n_l - k_l` of the other channels without replacement, with
       probabilities :math:`\text{softmax}(r_j)`, where :math:`r_j` is the distance of
       the weights of channel j from the span of the kept ones.

    At first, each layer keeps the fraction :math:`1 - s + \delta_0` with the largest L1
    norms. The mask multiplies all `incoming` leaves of a channel (its weights, scale
    and bias) and the inputs of its readers, so a leaf between two layers of channels
    has the product of two masks. `state.memory.rule` has the live channels of each
    layer. `compact` cuts out the others exactly.

    A pruned channel keeps its weights under the mask, and comes back with them.
    `params` hold these values. Train and evaluate at `apply_masks(params,
    masks(state))`; `sparsify(..., gradient=...)` does that itself. Do not apply the
    masks to `params` before the training: the first pruned channels would be lost.

    It differs from the authors' code in this:

    * Numbers of channels are exact: products are rounded, not cut, and ties go to the
      lower index. There, all channels that tie with the threshold go.
    * A layer keeps at least one channel, as in MMRazor's port.
    * Singular vectors of a singular value that is zero to rounding do not count in
      leverage scores, since they are arbitrary.
    * The moments of dropped and regrown channels start anew; there they are kept.
    * Running means and variances of a channel that comes back are those of its zeros,
      until the batches have replaced them. There, they are restored.
    * The channels are those in `groups`. The authors also prune the outputs of
      ResNet-50's downsampling convolutions, which cannot be cut out.

    Args:
      sparsity: s, the fraction of pruned channels of all layers together at the end, in
        [0, 1).
      total_steps: Optimizer steps of the whole training.
      groups: Kinds of units by name; for the library's convolutional models,
        `zosam_jax.models.unit_groups(name)`. Each has a `scale` and one incoming
        kernel. Networks without batch normalization, as ViT and MLP, have none: take
        `units`.
      regrow_fraction: :math:`\delta_0`, at most s. The paper takes 0.3 with s = 0.7,
        and 0.2 with s = 0.5.
      interval: Steps between two changes. None: `total_steps // 125`, two of the
        paper's 250 epochs.
      stop_fraction: T is the last multiple of `interval` up to `stop_fraction *
        total_steps`. If there is none, the one change is there.
      stacked: Leaves that are stacks of layers, as in `dynamic`. Each layer has units
        of its own; the leaves of a group are stacked alike.
      seed: Seed of the draws, as in `dynamic`.

    Returns:
      A method for `sparsify`. It uses no gradient.

    Raises:
      ValueError: An argument is out of range, or a group has no scale; at init, a group
        that matches no leaf, leaves that its units do not divide, or fewer channels to
        keep than layers.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"w": jnp.eye(9, 8), "scale": jnp.ones(8), "out": jnp.ones((8, 2))}
      >>> group = zs.sparsity.Units("out", incoming=("w", "scale"), scale="scale")
      >>> method = zs.sparsity.chex(0.5, 1000, {"channels": group})
      >>> print(method.init(params).masks["scale"].sum())  # 8 - 0.5 * 8 + 0.3 * 8
      6
    """
    _check.number("sparsity", sparsity, least=0, below=1, traced=False)
    _check.number("regrow_fraction", regrow_fraction, least=0, most=1, traced=False)
    if regrow_fraction > sparsity:
        raise ValueError(
            f"regrow_fraction={regrow_fraction!r} must be at most "
            f"sparsity={sparsity!r}: what regrows is a part of what is pruned."
        )
    _check.whole("seed", seed, least=0)
    _check.number("stop_fraction", stop_fraction, least=0, most=1, traced=False)
    check_groups(groups)
    _check_scales(groups)
    _check.whole("total_steps", total_steps)
    if interval is None:
        interval = max(1, total_steps // 125)
    schedules.check_steps(total_steps, interval)
    steps = schedules.multiples(total_steps, interval, stop_fraction)
    rule = _Rule(groups, stacked, sparsity, regrow_fraction, steps[-1], seed)
    return SparseMethod(
        rule.init,
        schedules.periodic(interval, steps[-1] + 1, steps[0]),
        rule.change,
        keeps_pruned=True,
        mean_pruned=_mean_pruned(steps, total_steps, sparsity, regrow_fraction),
        name="chex",
        stacked=stacked,
    )


class _Rule(NamedTuple):
    """The arguments of `chex`, and the step of the last change."""

    groups: Mapping[str, Units]
    stacked: StackRule
    sparsity: float
    regrow_fraction: float
    last: int
    seed: jax.typing.ArrayLike

    def init(self, params: Params) -> Topology:
        layers = self._layers(params)
        norms = [jnp.sum(jnp.abs(w), 1) for w in self._matrices(layers, params)]
        live = select(norms, _all(norms), self._first_counts(layers))
        masks, number = self._masks(params, layers, live)
        # A copy: a donated state may not hold an array twice.
        return Topology(masks, Memory(number, number + 0, tuple(live)))

    def change(
        self, topology: Topology, params: Params, grads: Grads, step: jax.Array
    ) -> Topology:
        del grads
        layers, memory = self._layers(params), topology.memory
        seen = tree.mask(params, topology.masks)
        fewer, more = self._shares(layers, seen, step)
        importances = _importances(self._matrices(layers, seen), fewer)
        kept = select(importances, memory.rule, list(fewer))
        drawn = _drawn(
            _distances(self._matrices(layers, params), kept),
            [~k for k in kept],
            more - live_counts(kept),
            change_keys(self.seed, step)[1],
        )
        live = [k | d for k, d in zip(kept, drawn, strict=True)]
        masks, number = self._masks(params, layers, live)
        return Topology(masks, Memory(memory.target, number, tuple(live)))

    def _final(self, layers: Sequence[UnitLayer]) -> tuple[int, int]:
        """Returns the number of channels at the end, and of all channels."""
        total = sum(layer.units for layer in layers)
        return total - round(self.sparsity * total), total

    def _first_counts(self, layers: Sequence[UnitLayer]) -> list[int]:
        """Returns the channels that each layer keeps at first, the same share of each.

        Raises:
          ValueError: At the end there are fewer channels than layers.
        """
        final, total = self._final(layers)
        if final < len(layers):
            raise ValueError(
                f"sparsity={self.sparsity} keeps {final} of {total} channels, but "
                f"{len(layers)} layers need at least one each. Lower the sparsity."
            )
        pruned = 1 - (final + round(self.regrow_fraction * total)) / total
        shapes = {f"{i}": (layer.units,) for i, layer in enumerate(layers)}
        same = budgets.uniform(shapes, pruned)
        return list(budgets.exact_counts(shapes, same, pruned).values())

    def _shares(
        self, layers: Sequence[UnitLayer], seen: Params, step: jax.Array
    ) -> jax.Array:
        """Returns how many channels each layer has among the largest scales, and >= 1.

        Args:
          layers: The layers of channels.
          seen: The parameters of the network: the scale of a pruned channel is 0.
          step: The optimizer step.

        Returns:
          For the final number of channels, and for the one at this step, int32 `[2,
          layers]`.
        """
        final, total = self._final(layers)
        delta = schedules.cosine(self.regrow_fraction, self.last)(step)
        extra = jnp.round(delta * total).astype(jnp.int32)
        extra = jnp.where(step < self.last, extra, 0)
        leaves = SparseLeaves.every(seen, self.stacked).of(seen)
        sizes = [jnp.abs(leaves[_scale(layer).place]) for layer in layers]
        # One search for both.
        totals = jnp.stack([jnp.int32(final), final + extra])
        return jax.vmap(lambda n: live_counts(select_globally(sizes, _all(sizes), n)))(
            totals
        )

    def _layers(self, params: Params) -> list[UnitLayer]:
        """Returns the layers of channels.

        Raises:
          ValueError: A layer has not one incoming kernel and one scale for each unit.
        """
        layers = layers_of_units(params, self.groups, self.stacked)
        shapes = SparseLeaves.every(params, self.stacked).shapes
        for layer in layers:
            kernels = [s for s in layer.incoming if len(shapes[s.place]) > 1]
            if len(kernels) != 1:
                raise ValueError(
                    f"{layer.group}: chex needs one incoming kernel, whose columns are "
                    f"the channels that {layer.outgoing.path} reads; there are "
                    f"{len(kernels)}."
                )
            for side in (kernels[0], _scale(layer)):
                if shapes[side.place][side.axis] != layer.units:
                    raise ValueError(
                        f"{layer.group}: chex prunes channels, and {side.path} of "
                        f"shape {shapes[side.place]} has several for each of "
                        f"{layer.units} units."
                    )
        return layers

    def _matrices(self, layers: Sequence[UnitLayer], params: Params) -> list[jax.Array]:
        """Returns the weights of each layer, float32 `[channels, inputs]`."""
        leaves = SparseLeaves.every(params, self.stacked).of(params)
        found = []
        for layer in layers:
            side = next(s for s in layer.incoming if leaves[s.place].ndim > 1)
            rows = jnp.moveaxis(leaves[side.place], side.axis, 0)
            found.append(rows.reshape(layer.units, -1).astype(jnp.float32))
        return found

    def _masks(
        self, params: Params, layers: Sequence[UnitLayer], live: Sequence[jax.Array]
    ) -> tuple[Masks, jax.Array]:
        """Returns the mask tree of live channels, and its counts."""
        masked = UnitMasks.of(params, layers, self.stacked, _sides)
        masks = masked.product(live)
        return masked.leaves.masks(masks), live_counts(masks)


def _check_scales(groups: Mapping[str, Units]) -> None:
    """Raises `ValueError` for units without a scale of batch normalization."""
    for name, row in groups.items():
        if not row.scale:
            raise ValueError(
                f"{name}: chex shares the channels among the layers by the scales of "
                "their batch normalization, and these units have none (scale= of "
                "zs.sparsity.Units). Leave the group out; for a network without batch "
                "normalization take the method units."
            )


def _scale(layer: UnitLayer) -> Side:
    assert layer.scale is not None
    return layer.scale


def _sides(layer: UnitLayer) -> tuple[Side, ...]:
    return (*layer.incoming, *layer.readers)


def _all(ranked: Sequence[jax.Array]) -> list[jax.Array]:
    return [jnp.ones(x.shape, bool) for x in ranked]


def _importances(weights: Sequence[jax.Array], ranks: jax.Array) -> list[jax.Array]:
    """Returns the leverage score of each channel, squared, or its L1 norm.

    Args:
      weights: The matrices, `[channels, inputs]`.
      ranks: Rank of each approximation, int32 `[layers]`.
    """
    found = _alike(_leverage, [_gram(w) for w in weights], list(ranks))
    return [
        # The code of the authors decides by the shape.
        jnp.sum(jnp.abs(w), 1) if w.shape[1] < w.shape[0] else score
        for w, score in zip(weights, found, strict=True)
    ]


def _distances(
    weights: Sequence[jax.Array], kept: Sequence[jax.Array]
) -> list[jax.Array]:
    """Returns the distance of each channel from the span of the kept ones."""
    return _alike(_residual, [_gram(w) for w in weights], list(kept))


def _gram(weights: jax.Array) -> jax.Array:
    return jnp.matmul(weights, weights.T, precision="highest")


def _alike(
    function: Callable[..., jax.Array],
    grams: Sequence[jax.Array],
    others: Sequence[jax.Array],
) -> list[jax.Array]:
    """Returns `function(gram, other)` of each layer, those of one size in one batch."""
    # Eigenvectors take long to compile, and on a TPU very long.
    members: dict[int, list[int]] = {}
    for i, gram in enumerate(grams):
        members.setdefault(len(gram), []).append(i)
    found: dict[int, jax.Array] = {}
    for same in members.values():
        stacks = [jnp.stack([x[i] for i in same]) for x in (grams, others)]
        found.update(zip(same, jax.vmap(function)(*stacks), strict=True))
    return [found[i] for i in range(len(grams))]


def _leverage(gram: jax.Array, rank: jax.Array) -> jax.Array:
    """Returns the squared norms of the rows of the first `rank` eigenvectors."""
    values, vectors = jnp.linalg.eigh(gram)
    size = len(gram)
    first = (jnp.arange(size) >= size - rank) & _is_positive(values)
    return jnp.sum(jnp.where(first[None, :], jnp.square(vectors), 0), 1)


def _residual(gram: jax.Array, kept: jax.Array) -> jax.Array:
    """Returns the distances from the span of the kept columns, by their Gram matrix."""
    rows = kept[:, None].astype(gram.dtype)
    values, vectors = jnp.linalg.eigh(gram * rows * rows.T)
    positive = _is_positive(values)[:, None]
    inside = jnp.matmul(vectors.T, gram * rows, precision="highest")
    divisors = jnp.where(positive, values[:, None], 1)
    projected = jnp.sum(jnp.where(positive, jnp.square(inside) / divisors, 0), 0)
    return jnp.sqrt(jnp.maximum(jnp.diagonal(gram) - projected, 0))


def _is_positive(values: jax.Array) -> jax.Array:
    """Returns which eigenvalues of a Gram matrix are not zero but for rounding."""
    rounding = len(values) * float(jnp.finfo(values.dtype).eps)
    return values > rounding * jnp.max(values)


def _drawn(
    logits: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    counts: jax.Array,
    key: Key,
) -> list[jax.Array]:
    """Returns a draw without replacement, with probabilities `softmax(logits)`.

    Args:
      logits: Of each layer, `[channels]`.
      candidates: What may be drawn.
      counts: How many of each, int32 `[layers]`.
      key: PRNG key.
    """
    uniform = tree.uniform_like(key, list(logits))
    # The largest of Gumbel variables that are shifted by the logits: the same draw.
    ranked = [x - jnp.log(-jnp.log(u)) for x, u in zip(logits, uniform, strict=True)]
    return select(ranked, candidates, list(counts))


def _mean_pruned(
    steps: Sequence[int], total: int, sparsity: float, regrow_fraction: float
) -> float:
    """Returns pruned / finally pruned channels, averaged over the training."""
    if not sparsity:
        return 1.0
    bounds = [0, *steps, total]
    deltas = [
        regrow_fraction / 2 * (1 + math.cos(math.pi * step / max(steps[-1], 1)))
        for step in (0, *steps[:-1])
    ]
    spans = zip([*deltas, 0.0], itertools.pairwise(bounds), strict=True)
    return sum((1 - d / sparsity) * (b - a) for d, (a, b) in spans) / total
