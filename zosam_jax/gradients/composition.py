r"""One gradient of a row at one point.

.. math::
  \epsilon &= \rho \cdot \text{geometry}(\text{ascent direction on the mask}) \\
  g &= \text{combination}(\nabla L(w), \text{descent}(w + \epsilon))
"""

import dataclasses
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import (
    Decoupled,
    Estimate,
    Grads,
    Info,
    Memory,
    Params,
    Radius,
    Scalar,
)
from zosam_jax.gradients.pieces import (
    GradientLook,
    Intermittent,
    Look,
    LossLook,
    OccasionalLook,
    Point,
    Row,
    exact_gradient,
)

L = TypeVar("L", bound=Look)


def evaluate(
    row: Row[L],
    point: Point,
    rho: Radius,
    memory: Memory,
    *,
    norm_over: str,
    aux_from: str,
) -> Estimate:
    """Returns the gradient of a row at a point.

    If the direction is zero or not finite, the gradient is taken at w itself, and
    `info.unperturbed` is 1. Weights off the support keep their values in every pass.

    Args:
      row: The method.
      point: Parameters, losses and masks of the step.
      rho: Radius, or a schedule of it over `point.step`.
      memory: The memory of the last estimate, or `row.init(params)` at the start.
      norm_over: "mask" or "all": the weights in the norm of the direction.
      aux_from: "ascent" or "descent": the pass that supplies aux.
    """
    radius = cast("Scalar", rho(point.step)) if callable(rho) else rho
    if row.written_out is not None and point.is_plain:
        # The pieces give the same bits, which a test checks.
        return row.written_out(point, radius, norm_over, aux_from)._replace(
            memory=memory
        )
    ascent_memory, combination_memory = memory
    look = _look(row, point, ascent_memory)
    step = _Step(row, point, look, radius, norm_over)
    if isinstance(row.combination, Intermittent) and isinstance(look, GradientLook):
        second = _second_pass_if_due(step, row.combination, look, combination_memory)
    else:
        second = _second_pass(step, combination_memory)
    learned = row.ascent.learn(point, look.memory, second.seen.grad)
    return Estimate(
        value=_value(look, second.seen),
        grad=second.grad,
        aux=_estimate_of(look).aux if aux_from == "ascent" else second.seen.aux,
        info=_count(row, look, second.seen.info, point.losses.ascent_share),
        memory=(learned, second.memory),
    )


def plain(row: Row, point: Point, memory: Memory) -> Estimate:
    """Returns the gradient at w itself, as an estimate of the row.

    The row learns from the gradient as from that at a perturbed point; the rest of its
    memory is kept.

    Args:
      row: The method.
      point: Parameters, losses and masks of the step.
      memory: The memory of the last estimate, or `row.init(params)` at the start.
    """
    ascent_memory, combination_memory = memory
    seen = exact_gradient(point.losses.descent, point.params)
    learned = row.ascent.learn(point, ascent_memory, seen.grad)
    grad = seen.grad
    if row.combination.decoupled:
        grad = Decoupled(grad, jax.tree.map(jnp.zeros_like, grad))
    return seen._replace(
        grad=grad, info=_float32(seen.info), memory=(learned, combination_memory)
    )


class _Step(NamedTuple):
    """A step after its ascent direction was computed."""

    row: Row
    point: Point
    look: Look
    radius: Scalar
    norm_over: str


class _Second(NamedTuple):
    """The combined gradient, the new memory and the estimate of the second pass."""

    grad: Grads
    memory: Memory
    seen: Estimate


class _Perturbed(NamedTuple):
    """w + eps, the norm of the last direction, and whether any was usable."""

    params: Params
    norm: jax.Array
    usable: jax.Array


def _look(row: Row[L], point: Point, memory: Memory) -> L:
    """The ascent direction; with `sync_ascent`, averaged over the devices."""
    look = row.ascent.look(point, memory)
    if not isinstance(look, row.ascent.gives):
        raise TypeError(
            f"The ascent's look returned {type(look).__name__}; it says that it gives "
            f"{row.ascent.gives.__name__}."
        )
    direction = point.devices.mean(look.direction)
    if not isinstance(look, GradientLook):
        return dataclasses.replace(look, direction=direction)
    clean = look.estimate
    grad = direction if look.direction is clean.grad else point.devices.mean(clean.grad)
    estimate = clean._replace(grad=grad)
    return dataclasses.replace(look, direction=direction, estimate=estimate)


def _second_pass(step: _Step, memory: Memory) -> _Second:
    """The gradient at the perturbed point, combined with the one at w."""
    row, point, look = step.row, step.point, step.look
    moved = _perturb(step)
    kept = row.descent.compress and row.descent.compress(point, moved.params)
    params = tree.mask(moved.params, kept)
    seen = row.descent.descend(point, look, params)
    there = tree.mask(seen.grad, kept if row.descent.compressed_gradient else None)
    grad, memory = row.combination.blend(point, look, there, memory)
    # The difference after rounding, not rho times the unit vector: in bfloat16 part of
    # a small perturbation is lost, and `info` must show that.
    epsilon = tree.subtract(params, point.params)
    slope = tree.mask(seen.grad, point.masks)
    length, cosine = tree.length_and_cosine(epsilon, slope)
    info = seen.info._replace(
        perturbation_norm=length,
        direction_norm=moved.norm,
        cosine=cosine,
        # A descent by finite differences may have found no gradient.
        unperturbed=jnp.maximum(
            1 - moved.usable.astype(jnp.int32), seen.info.unperturbed
        ),
    )
    return _Second(grad, memory, seen._replace(info=_float32(info)))


def _second_pass_if_due(
    step: _Step, combination: Intermittent, look: GradientLook, memory: Memory
) -> _Second:
    """The second pass, or the reused gradient in a step without a second pass."""
    point = step.point
    due, later = combination.due(point, look, memory)

    def descend(memory: Memory) -> _Second:
        return point.devices.vary(_second_pass(step, memory))

    def stay(memory: Memory) -> _Second:
        info = Info.zeros()._replace(descent_value=look.estimate.value)
        clean = look.estimate._replace(info=_float32(info))
        grad = combination.reuse(point, look, memory)
        return point.devices.vary(_Second(grad, memory, clean))

    # `lax.cond` runs one branch, so a step without a second pass saves its cost.
    # `where` would compute both.
    return jax.lax.cond(due, descend, stay, later)


def _perturb(step: _Step) -> _Perturbed:
    """The perturbed parameters after all ascent steps."""
    row, point, look = step.row, step.point, step.look
    params = point.params
    norm, usable = jnp.zeros((), jnp.float32), jnp.asarray(False)
    for turn in range(row.ascent.steps):
        if turn:
            look = _look(row, point._replace(params=params), look.memory)
        live = tree.mask(look.direction, point.support)
        # The geometry is that of w in every ascent step, so rho keeps its meaning.
        unit, norm = row.geometry.unit(live, point.params, point.support)
        length = step.radius / row.ascent.steps
        if step.norm_over == "all":
            _, whole = row.geometry.unit(look.direction, point.params, None)
            length = length * norm / jnp.where(whole > 0, whole, 1)
        if look.factor is not None:
            unit = jax.tree.map(jnp.multiply, look.factor, unit)
        here = jnp.isfinite(norm) & (norm > 0)
        # Without a direction the length is 0: the second pass then gives the gradient
        # at w.
        params = tree.add_scaled(params, jnp.where(here, length, 0.0), unit)
        usable = usable | here
    return _Perturbed(params, norm, usable)


def _estimate_of(look: Look) -> Estimate:
    """The estimate of a look; an empty one for a look without an estimate."""
    if isinstance(look, LossLook | OccasionalLook):
        return look.estimate
    return Estimate(jnp.zeros(()), None, None, Info.zeros())


def _value(look: Look, seen: Estimate) -> jax.Array:
    """The loss at w if the look evaluated it, else the loss of the second pass."""
    if isinstance(look, GradientLook):
        return look.estimate.value
    # A useless direction may come from useless probes: then the second pass is at w.
    perturbed = seen.info.unperturbed == 0
    if isinstance(look, LossLook):
        return jnp.where(perturbed, look.estimate.value, seen.value)
    if isinstance(look, OccasionalLook):
        return jnp.where(perturbed & look.due, look.estimate.value, seen.value)
    return seen.value


def _count(row: Row, look: Look, info: Info, share: float) -> Info:
    """The info of the second pass, with the passes of all looks added."""
    passes = _estimate_of(look).info
    # In batches: a pass over a part of the batch counts as that part.
    looks = row.ascent.steps * share
    return info._replace(
        forward_evaluations=info.forward_evaluations
        + looks * passes.forward_evaluations,
        backward_evaluations=info.backward_evaluations
        + looks * (passes.backward_evaluations + look.backward),
    )


def _float32(info: Info) -> Info:
    zeros = Info.zeros()
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), info, zeros)
