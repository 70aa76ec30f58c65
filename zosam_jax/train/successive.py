"""The cosine between the gradients of successive optimizer steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import tree
from zosam_jax._types import Grads, OptState, Params


class SuccessiveCosine(NamedTuple):
    """The state of `successive_cosine`.

    Attributes:
      last: The gradient of the last optimizer step.
      cosine: Its cosine to the one before, float32; 0 after the first step.
      steps: Number of optimizer steps, int32.
    """

    last: Grads
    cosine: jax.Array
    steps: jax.Array


def successive_cosine() -> optax.GradientTransformation:
    r"""Returns a transformation that passes gradients on, and measures their cosine.

    .. math::
      c_t = \frac{\langle g_t, g_{t-1} \rangle}{|g_t| \, |g_{t-1}|}

    where :math:`g_t` is what the update rule receives in optimizer step t: the estimate
    of the gradient, averaged over `accumulate_steps`, before clipping, momentum and
    weight decay. Of a sparse network it is on the mask (with straight-through methods,
    of all weights), and weights that have just been pruned or grown count as 0 in
    :math:`g_{t-1}`. The cosine is 0 where a gradient is 0 or not finite, and before the
    second step. The last gradient takes as much memory as the parameters.

    Between the steps the parameters move, so that a negative cosine shows overshooting
    along sharp directions as well as noise. `zs.analysis.gradient_noise` measures the
    noise alone, at the same parameters.
    """

    def init(params: Params) -> SuccessiveCosine:
        none = jnp.zeros((), jnp.float32)
        last = jax.tree.map(jnp.zeros_like, params)
        return SuccessiveCosine(last, none, jnp.zeros((), jnp.int32))

    def update(
        updates: Grads, state: OptState, params: Params | None = None
    ) -> tuple[Grads, SuccessiveCosine]:
        del params
        found = tree.cosine(updates, state.last).astype(jnp.float32)
        found = jnp.where(jnp.isfinite(found), found, 0)
        steps = jnp.asarray(optax.safe_increment(state.steps))
        return updates, SuccessiveCosine(updates, found, steps)

    return optax.GradientTransformation(init, update)
