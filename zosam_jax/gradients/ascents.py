"""Ascents that several methods share."""

from zosam_jax._types import Memory
from zosam_jax.gradients.pieces import Ascent, GradientLook, Point, exact_gradient


def gradient(steps: int = 1) -> Ascent[GradientLook]:
    """Returns SAM's ascent: the exact gradient at w.

    Args:
      steps: Ascent steps, each along the gradient at the current point.
    """
    return Ascent(look_along_gradient, GradientLook, steps=steps)


def look_along_gradient(point: Point, memory: Memory) -> GradientLook:
    """Returns the look along the exact gradient at w, the memory unchanged."""
    clean = exact_gradient(point.losses.ascent, point.params)
    return GradientLook(clean.grad, clean, memory=memory)
