"""Combinations: what becomes of the gradient at the perturbed point."""

from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Decoupled, Scalar
from zosam_jax.gradients.pieces import Combination, Look, Point, wide, zeros


def perturbed() -> Combination:
    """The gradient at w + eps as it is: SAM's."""
    return Combination(_as_it_is)


def _as_it_is(point: Point, look: Look, grad: Any, memory: Any) -> tuple[Any, Any]:
    del point, look
    return grad, memory


def surrogate_gap(alpha: Scalar, minimize_perturbed: bool) -> Combination:
    """GSAM: less the part of one gradient that is orthogonal to the other."""

    def blend(point: Point, look: Look, grad: Any, memory: Any) -> tuple[Any, Any]:
        assert look.clean is not None
        clean, grad = look.clean.grad, point.mean(grad)
        if minimize_perturbed:
            apart = _orthogonal(clean, grad, point.masks)
            return tree.add_scaled(grad, -alpha, apart), memory
        apart = _orthogonal(grad, clean, point.masks)
        return tree.add_scaled(clean, alpha, apart), memory

    return Combination(blend)


def weighted(gamma: Scalar, decouple: bool) -> Combination:
    """WSAM: `(1 - a) g + a g_p` with `a = gamma / (1 - gamma)`."""
    a = gamma / (1 - gamma)

    def blend(point: Point, look: Look, grad: Any, memory: Any) -> tuple[Any, Any]:
        del point
        assert look.clean is not None
        clean = look.clean.grad
        if decouple:
            return Decoupled(clean, tree.mix(a, grad, -a, clean)), memory
        return tree.mix(1 - a, clean, a, grad), memory

    return Combination(blend)


def mixed(alpha: Scalar) -> Combination:
    """mRWP: `(1 - alpha) g + alpha g_p`."""

    def blend(point: Point, look: Look, grad: Any, memory: Any) -> tuple[Any, Any]:
        del point
        assert look.clean is not None
        return tree.mix(1 - alpha, look.clean.grad, alpha, grad), memory

    return Combination(blend)


def reused(every: Scalar, alpha: Scalar, layerwise: bool) -> Combination:
    """LookSAM: SAM's step every k-th time, its orthogonal part again in between."""

    def init(params: Any) -> Any:
        return jnp.zeros((), jnp.int32), zeros(params)

    def due(point: Point, look: Look, memory: Any) -> tuple[jax.Array, Any]:
        del point, look
        count, vertical = memory
        return count % every == 0, (count + 1, vertical)

    def by(function: Any, masks: Any, *trees: Any) -> Any:
        """The function of whole trees, or of leaf after leaf."""
        if not layerwise:
            return function(*trees, masks)
        if masks is None:
            masks = jax.tree.map(lambda _: True, trees[0])
        return jax.tree.map(function, *trees, masks)

    def blend(point: Point, look: Look, grad: Any, memory: Any) -> tuple[Any, Any]:
        assert look.clean is not None
        clean, grad = wide(look.clean.grad), point.mean(grad)
        vertical = by(_vertical, point.masks, wide(grad), clean)
        return grad, (memory[0], vertical)

    def reuse(point: Point, look: Look, memory: Any) -> Any:
        assert look.clean is not None

        def scaled(clean: Any, vertical: Any, masks: Any) -> Any:
            length = tree.norm(tree.mask(vertical, masks))
            ratio = tree.norm(tree.mask(clean, masks)) / jnp.where(
                length > 0, length, 1
            )
            return tree.add_scaled(clean, alpha * ratio, vertical)

        return by(scaled, point.masks, look.clean.grad, memory[1])

    return Combination(blend, init, due, reuse)


def adaptive(
    delta: Scalar, lambdas: tuple[Scalar, Scalar], total_steps: Scalar
) -> Combination:
    """AE-SAM: SAM's step where the gradient is large against its running statistics."""

    def init(params: Any) -> Any:
        del params
        return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)

    def due(point: Point, look: Look, memory: Any) -> tuple[jax.Array, Any]:
        assert look.clean is not None
        mean, variance = memory
        norm = tree.norm(tree.mask(look.clean.grad, point.masks))
        square = point.pool(jnp.square(norm.astype(jnp.float32)))
        mean = delta * mean + (1 - delta) * square
        variance = delta * variance + (1 - delta) * jnp.square(square - mean)
        done = point.step / total_steps
        c = done * lambdas[0] + (1 - done) * lambdas[1]
        return square >= mean + c * jnp.sqrt(variance), (mean, variance)

    def reuse(point: Point, look: Look, memory: Any) -> Any:
        del point, memory
        assert look.clean is not None
        return look.clean.grad

    return Combination(_as_it_is, init, due, reuse)


def _orthogonal(x: Any, y: Any, masks: Any | None) -> Any:
    """What is left of x, less a multiple of y, orthogonal to y on the masks."""
    live = tree.mask(y, masks)
    square = tree.vdot(live, live)
    along = tree.vdot(tree.mask(x, masks), live) / jnp.where(square > 0, square, 1)
    return tree.add_scaled(x, -along, y)


def _vertical(x: Any, y: Any, masks: Any | None) -> Any:
    """The same; 0 where it is but rounding, as at rho = 0: not to be scaled up."""
    rest = _orthogonal(x, y, masks)
    there = tree.norm(tree.mask(rest, masks)) > 1e-5 * tree.norm(tree.mask(x, masks))
    return tree.where(there, rest, zeros(rest))
