"""SSAM, sparse SAM (arXiv:2210.05177): SAM on a mask, and the updates of that mask."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Grads,
    Key,
    Masks,
    Memory,
    Params,
    PyTree,
    Radius,
    Scalar,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients.ascents import look_along_gradient
from zosam_jax.gradients.constructor import (
    PureOptions,
    pure_form,
    sharpness_aware,
    static_count,
)
from zosam_jax.gradients.memory import wide, zeros
from zosam_jax.gradients.pieces import Ascent, GradientLook, Point, Row
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.selection import select_across


@passes_options_to(sharpness_aware)
def ssam(
    rho: Radius = 0.05,
    *,
    sparsity: Scalar = 0.5,
    mask: str = "fisher",
    interval: int | jax.Array = 100,
    num_examples: int = 16,
    total_steps: int | jax.Array | None = None,
    drop_fraction: Scalar = 0.5,
    grow: str = "random",
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""SSAM: SAM that perturbs only the most important coordinates.

    .. math::
      \epsilon = \rho \, m \odot \nabla L / |\nabla L|

    where m is a mask for the perturbation only: all weights are trained. Mi et al.
    (arXiv:2210.05177). SSAM-F keeps the coordinates with the largest diagonal entries
    of the Fisher matrix, the sum of the squared gradients of N examples. SSAM-D starts
    at random. Its updates drop the coordinates with the smallest gradients and grow
    others; the replaced fraction falls along a cosine. The norm is over all weights, as
    in the authors' code; with `norm_over="mask"` it is over the live weights of sparse
    training. sparsity = 0 is SAM. It keeps m, one boolean for each weight.

    Defaults are those of the authors' command for CIFAR-10 (sparsity 0.5, N = 16, an
    update in every epoch; their code alone has 0.2, 1024 and 5 epochs), but for two
    differences. An estimate knows no epochs, so that `interval` counts estimates: set
    it to the steps of an epoch. The N examples are the first of the batch, where theirs
    are drawn from the whole training set: other examples would need another loss. The
    first estimate already has its mask, where their first step is not perturbed.

    Args:
      rho: Radius, or a schedule.
      sparsity: Fraction of the live weights that are not perturbed, in [0, 1).
      mask: "fisher" or "dynamic".
      interval: Update interval of m, in estimates; the first one updates it.
      num_examples: N, from the front of the batch; each costs a backward pass. With
        "fisher", `value_fn` is called `value_fn(params, examples=indices)` and returns
        the losses of those examples, [n] (all of them with `examples=None`).
      total_steps: Optimizer steps of the whole training; "dynamic" needs it.
      drop_fraction: Fraction of m that the first update of "dynamic" replaces.
      grow: Score by which "dynamic" grows: "random" or "gradient".

    Returns:
      As `sam`.
    """
    _check.number("sparsity", sparsity, least=0, below=1, traced=False)
    _check.one_of("mask", mask, ("fisher", "dynamic"))
    _check.whole("interval", interval)
    static_count("num_examples", num_examples)
    _check.number("drop_fraction", drop_fraction, least=0, most=1)
    _check.one_of("grow", grow, ("random", "gradient"))
    if mask == "fisher":
        change = by_fisher(num_examples)
    else:
        if total_steps is None:
            raise ValueError('zs.ssam(mask="dynamic") needs total_steps=.')
        _check.whole("total_steps", total_steps)
        change = by_replacement(total_steps, drop_fraction, grow)
    ascent = masked_gradient(interval, sparsity, change)
    ascent = dataclasses.replace(ascent, by_example=mask == "fisher")
    return sharpness_aware("ssam", Row(ascent), rho, **options)


@pure_form(ssam)
def ssam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    sparsity: Scalar = 0.5,
    mask: str = "fisher",
    interval: int | jax.Array = 100,
    num_examples: int = 16,
    total_steps: int | jax.Array | None = None,
    drop_fraction: Scalar = 0.5,
    grow: str = "random",
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns SSAM's gradient as a pure function; see `ssam`."""
    ...


class Held(NamedTuple):
    """The mask before an update, and the size of the new mask.

    Attributes:
      mask: The present mask, a tree of booleans.
      live: The weights that may be perturbed, a tree of booleans.
      kept: Number of weights in the new mask, int32 scalar.
      estimates: Number of estimates made before, int32 scalar.
    """

    mask: Masks
    live: Masks
    kept: jax.Array
    estimates: jax.Array


Change = Callable[[Point, Grads, Held], tuple[Masks, jax.Array]]
"""`(point, gradient at w, held) -> (mask, backward passes in batches)`."""


def masked_gradient(
    interval: Scalar, sparsity: Scalar, change: Change
) -> Ascent[GradientLook]:
    """Returns the gradient on a mask that `change` updates every `interval` steps.

    Args:
      interval: Estimates between two updates of the mask.
      sparsity: Fraction of the live weights that is not perturbed, in [0, 1).
      change: Makes the new mask.
    """

    def look(point: Point, memory: Memory) -> GradientLook:
        count, mask = memory
        seen = look_along_gradient(point, memory)
        live = jax.tree.map(lambda x: jnp.ones(x.shape, bool), point.params)
        live = tree.mask(live, point.support)
        # Of the live weights: sparse training may change their number between updates.
        left_out = jnp.round(sparsity * _count(live).astype(float)).astype(jnp.int32)
        held = Held(mask, live, _count(live) - left_out, count)
        vary = point.devices.vary
        # Both branches must have one type inside `jax.shard_map`.
        mask, passes = jax.lax.cond(
            count % interval == 0,
            lambda: vary(change(point, seen.direction, held)),
            lambda: vary((mask, jnp.zeros((), jnp.float32))),
        )
        factor = jax.tree.map(lambda m: m.astype(jnp.float32), mask)
        memory = count + 1, mask
        return dataclasses.replace(seen, memory=memory, factor=factor, backward=passes)

    def init(params: Params) -> Memory:
        advice = "Take another gradient, such as zs.sam."
        _check.countable(
            "zs.ssam ranks all weights together: params", tree.size(params), advice
        )
        mask = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), bool), params)
        return jnp.zeros((), jnp.int32), mask

    return Ascent(look, GradientLook, init)


def by_fisher(num_examples: int) -> Change:
    """Returns the mask update of SSAM-F: the largest squared gradients of examples."""

    def change(point: Point, grad: Grads, held: Held) -> tuple[Masks, jax.Array]:
        losses_of, batch = point.losses.each, point.losses.examples
        if batch is None:
            shape = jax.eval_shape(
                lambda p: losses_of(p, "ascent", None)[0], point.params
            )
            batch = jnp.arange(shape.size)
        front = batch[:num_examples]
        # Only the order of the squares counts; relative ones stay within float32.
        unit = tree.magnitude(grad)

        # The Fisher information is the mean of squared gradients, not the square of the
        # mean: each example needs a backward pass of its own.
        def squares(n: jax.Array) -> Grads:
            loss = lambda p: jnp.sum(losses_of(p, "ascent", n[None])[0])  # noqa: E731
            grads = wide(jax.grad(loss)(point.params))
            return jax.tree.map(lambda g: jnp.square(g / unit.astype(g.dtype)), grads)

        def add(k: jax.Array, total: Grads) -> Grads:
            return jax.tree.map(jnp.add, total, squares(front[k]))

        start = point.devices.vary(zeros(point.params))
        fisher = jax.lax.fori_loop(0, front.size, add, start)
        passes = jnp.float32(front.size / batch.size)
        return _highest(point.devices.pool(fisher), held.live, held.kept), passes

    return change


def by_replacement(total_steps: Scalar, drop_fraction: Scalar, grow: str) -> Change:
    """Returns the mask update of SSAM-D: drop the smallest gradients, grow others.

    Args:
      total_steps: Optimizer steps over which the drop fraction falls to 0, as a cosine.
      drop_fraction: Fraction of the mask that the first update drops, in [0, 1].
      grow: "gradient" grows the largest gradients; any other value grows at random.
    """

    def change(point: Point, grad: Grads, held: Held) -> tuple[Masks, jax.Array]:
        drawn = tree.uniform_like(point.random(), point.params)
        size = jax.tree.map(jnp.abs, point.devices.pool(grad))
        # Sparse training may have pruned some of the mask, and grown weights beside it.
        present = jax.tree.map(jnp.logical_and, held.mask, held.live)
        done = jnp.minimum(point.step / total_steps, 1.0)
        fraction = drop_fraction * (1 + jnp.cos(jnp.pi * done)) / 2
        have, all_live = _count(present), _count(held.live)
        # What is dropped does not come back at once, so there must be others to grow.
        dropped = jnp.round(fraction * have.astype(fraction.dtype)).astype(jnp.int32)
        dropped = jnp.minimum(dropped, all_live - held.kept)
        stay = jnp.minimum(held.kept, have - dropped)
        free = jax.tree.map(lambda a, b: a & ~b, held.live, present)
        by = drawn
        if grow == "gradient":
            by = tree.where(held.estimates == 0, drawn, size)
        grown = _highest(by, free, held.kept - stay)
        mask = jax.tree.map(jnp.logical_or, _highest(size, present, stay), grown)
        return mask, jnp.zeros((), jnp.float32)

    return change


def _count(flags: Masks) -> jax.Array:
    leaves = [jnp.sum(x, dtype=jnp.int32) for x in jax.tree.leaves(flags)]
    return jnp.sum(jnp.stack(leaves))


def _highest(scores: PyTree, candidates: Masks, count: jax.Array) -> Masks:
    """The `count` highest scores among the candidates of all leaves, ties in order."""
    flags, treedef = jax.tree.flatten(candidates)
    return treedef.unflatten(select_across(jax.tree.leaves(scores), flags, count))
