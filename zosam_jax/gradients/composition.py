r"""The composition that every sharpness-aware method is a row of.

.. math::
  \epsilon &= \rho \cdot \text{geometry}(\text{ascent direction on the mask}) \\
  g &= \text{combination}(\nabla L(w), \nabla L(w + \epsilon))

A method is a `Row`: the ascent that finds the direction, the geometry that scales it,
the descent that takes the gradient at the perturbed point, and the combination.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Estimate, Info, Scalar, Schedule
from zosam_jax.gradients import combinations, descents, geometries
from zosam_jax.gradients.pieces import (
    Ascent,
    Combination,
    Descent,
    Geometry,
    Look,
    Point,
)


class Row(NamedTuple):
    """A sharpness-aware method.

    Attributes:
      ascent: Where it looks uphill.
      geometry: From a direction to a perturbation of radius 1.
      descent: The second pass.
      combination: What becomes of its gradient.
      steps: Ascent steps, of `rho / steps` each.
      norm_over: "mask" or "all": over which weights the direction's norm is taken.
      aux_from: "ascent" or "descent".
      looks: Whether every step evaluates the loss on its way uphill.
      by_example: Whether it needs the losses of single examples.
      dense: Whether the second pass gives the gradient of pruned weights too.
      direction_only: Whether the look uphill gives a direction and no more, so that it
        may be by another loss.
    """

    ascent: Ascent
    geometry: Geometry = geometries.l2()
    descent: Descent = descents.backprop
    combination: Combination = combinations.perturbed()
    steps: int = 1
    norm_over: str = "mask"
    aux_from: str = "ascent"
    looks: bool = True
    by_example: bool = False
    dense: bool = True
    direction_only: bool = True


def memory_of(row: Row) -> Callable[[Any], Any]:
    """`params -> memory` before the first step."""
    return lambda params: (row.ascent.init(params), row.combination.init(params))


def evaluate(row: Row, point: Point, rho: Scalar | Schedule, memory: Any) -> Estimate:
    """One gradient of a method at one point.

    A zero or non-finite direction gives the gradient at w itself, and is counted in
    `info.unperturbed`; the weights off the support stay as they are in every pass.
    """
    ascent_memory, combination_memory = memory
    look = _look(row, point, ascent_memory)
    radius = rho(point.step) if callable(rho) else rho

    def descend(memory: Any) -> tuple[Any, Any, Estimate]:
        moved, norm, usable = _perturb(row, point, look, radius)
        seen = row.descent(point, look, moved)
        grad, memory = row.combination.blend(point, look, seen.grad, memory)
        moved_by = tree.subtract(moved, point.params)
        info = seen.info._replace(
            perturbation_norm=tree.norm(moved_by),
            direction_norm=norm,
            cosine=tree.cosine(moved_by, tree.mask(seen.grad, point.masks)),
            unperturbed=1 - usable.astype(jnp.int32),
        )
        return grad, memory, seen._replace(info=_float32(info))

    combination = row.combination
    if combination.due is None:
        grad, memory, seen = descend(combination_memory)
    else:
        assert combination.reuse is not None
        reuse = combination.reuse
        due, later = combination.due(point, look, combination_memory)

        def stay(memory: Any) -> tuple[Any, Any, Estimate]:
            clean = look.clean
            assert clean is not None
            info = Info.zeros()._replace(descent_value=clean.value)
            clean = clean._replace(info=_float32(info))
            return reuse(point, look, memory), memory, clean

        grad, memory, seen = jax.lax.cond(
            due, *(lambda m, f=f: point.vary(f(m)) for f in (descend, stay)), later
        )

    info = seen.info
    clean_passes = 0.0 if look.clean is None else 1.0
    info = info._replace(
        forward_evaluations=info.forward_evaluations + look.forward,
        backward_evaluations=info.backward_evaluations
        + look.backward
        + clean_passes * row.steps,
    )
    value = seen.value
    if look.value is not None:
        known = (info.unperturbed == 0) & look.seen
        value = jnp.where(known, look.value, seen.value)
        if look.clean is not None:
            value = look.value
    learned = row.ascent.learn(point, look.memory, seen.grad)
    return Estimate(
        value=value,
        grad=grad,
        aux=look.aux if row.aux_from == "ascent" else seen.aux,
        info=info,
        memory=(learned, memory),
    )


def _look(row: Row, point: Point, memory: Any) -> Look:
    """What is seen uphill; by all devices together, where they share one ascent."""
    look = row.ascent.look(point, memory)
    direction, clean = point.mean(look.direction), look.clean
    if clean is not None:
        same = look.direction is clean.grad
        clean = clean._replace(grad=direction if same else point.mean(clean.grad))
    return look._replace(direction=direction, clean=clean)


def _perturb(row: Row, point: Point, look: Look, radius: Any) -> tuple[Any, Any, Any]:
    """The perturbed parameters, the last direction's norm, whether any was usable."""
    params, seen = point.params, look
    norm, usable = jnp.zeros((), jnp.float32), jnp.asarray(False)
    for turn in range(row.steps):
        if turn:
            seen = _look(row, point._replace(params=params), look.memory)
        direction = seen.direction
        live = tree.mask(direction, point.support)
        unit, norm = row.geometry(live, point.params, point.support)
        length = radius / row.steps
        if row.norm_over == "all":
            _, whole = row.geometry(direction, point.params, None)
            length = length * norm / jnp.where(whole > 0, whole, 1)
        if seen.factor is not None:
            unit = jax.tree.map(jnp.multiply, seen.factor, unit)
        here = jnp.isfinite(norm) & (norm > 0)
        params = tree.add_scaled(params, jnp.where(here, length, 0.0), unit)
        usable = usable | here
    return params, norm, usable


def _float32(info: Info) -> Info:
    zeros = Info.zeros()
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), info, zeros)
