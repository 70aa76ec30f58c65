"""Combinations that several methods share, and their algebra."""

from zosam_jax import tree
from zosam_jax._types import Grads, Masks, Memory, Scalar
from zosam_jax.gradients.pieces import Combination, GradientLook, Point


def mixed(weight: Scalar, *, same_loss: bool = True) -> Combination[GradientLook]:
    """Returns `(1 - weight) g + weight g_p`, with g_p the gradient at w + eps.

    Args:
      weight: Weight of the gradient at the perturbed point.
      same_loss: Whether both gradients must be of the same loss.
    """

    def blend(
        point: Point, look: GradientLook, grad: Grads, memory: Memory
    ) -> tuple[Grads, Memory]:
        del point
        return tree.mix(1 - weight, look.estimate.grad, weight, grad), memory

    return Combination(blend, GradientLook, same_loss=same_loss)


def orthogonal(x: Grads, y: Grads, masks: Masks | None) -> Grads:
    """Returns the part of x that is orthogonal to y on the masks.

    Args:
      x: Pytree of float arrays. All its entries are kept, pruned ones too.
      y: Tree like `x`.
      masks: Mask tree of the entries in the inner products; None for all.
    """
    # The angle is that of the live weights. A pruned weight has a gradient too, which
    # growth reads, but no step is taken along it.
    along = tree.coefficient(tree.mask(x, masks), tree.mask(y, masks))
    return tree.add_scaled(x, -along, y)
