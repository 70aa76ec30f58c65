"""A method that begins with given masks, as those of a trained network."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from zosam_jax import tree
from zosam_jax._options import checks_arguments
from zosam_jax._types import Masks, Params
from zosam_jax.sparsity.method import SparseMethod, Topology


@checks_arguments
def start_from(method: SparseMethod, masks: Masks) -> SparseMethod:
    """Returns the method with given first masks, for sparse fine-tuning.

    A dynamic method goes on from them: each layer keeps the number of live weights that
    its mask has, whatever `sparsity` and `budget` the method was made with. A static
    one keeps them. Which leaves are sparse is the choice of the method: a leaf that it
    keeps dense stays dense.

    Args:
      method: `static` (by "random" or "magnitude"), `rigl`, `set_`, `itop`, `svite`,
        `mest`, `dsr` or `dynamic`; or `blocks` of one of these, whose masks are those
        of whole blocks.
      masks: Mask tree like the parameters. A scalar True for a sparse leaf: all its
        weights are live. `optax.MaskedNode()`: the method chooses its mask.

    Returns:
      A method for `sparsify`. The masks may be traced.

    Raises:
      ValueError: The method chooses its first masks itself; at init, masks that do not
        fit the parameters, or are not whole blocks.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> masks = {"kernel": jnp.array([[True, False], [False, False]])}
      >>> method = zs.sparsity.start_from(zs.sparsity.rigl(0.75, 1000), masks)
      >>> print(method.init({"kernel": jnp.ones((2, 2))}).masks["kernel"])
      [[ True False]
       [False False]]
    """
    begin = method.begin
    if begin is None:
        raise ValueError(
            f"{method} chooses its first masks itself, so that it cannot start from "
            "given ones. Use zs.sparsity.rigl, set_ or another "
            "method of single weights, or static for masks that do not change."
        )

    def init(params: Params) -> Topology:
        own = method.init(params).masks
        # Its structure is that of the parameters, but for leaves without a mask.
        wanted = jax.tree.structure(own)
        if jax.tree.structure(masks, is_leaf=_is_open) != wanted:
            tree.check_masks(masks, params)
        chosen = jax.tree.map(_first, own, masks)
        tree.check_masks(chosen, params)
        return begin(params, chosen)

    return method._replace(init=init, begin=None, call="")


def _first(own: jax.Array, given: Any) -> Any:
    """Returns the first mask of a leaf: the given one, or the method's own."""
    if tree.is_dense(own) or _is_open(given):
        return own
    if tree.is_dense(given):
        return jnp.ones(jnp.shape(own), bool)
    return given


def _is_open(mask: object) -> bool:
    return isinstance(mask, optax.MaskedNode)
