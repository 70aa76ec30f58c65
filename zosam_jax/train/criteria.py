"""What criteria at initialisation score by, by the name that `methods.ROWS` uses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Of the logits, in GraSP's public code: a softer softmax, so a Hessian of more weight.
_TEMPERATURE = 200.0
# SynFlow's |w| multiply activations layer by layer; what goes in is linear in the sum.
_SMALL = 1e-20


def value_fn(
    name: str, model: Any, model_state: Any, images: jax.Array, labels: jax.Array
) -> Callable[[Any], jax.Array]:
    """Returns `params -> scalar` for a criterion.

    Args:
      name: "loss": the mean cross-entropy of the batch, in training mode (SNIP).
        "cooled loss": the same with the logits divided by 200 (GraSP). "flow": the sum
        of the logits of one image of equal small values, in evaluation mode (SynFlow).
      model: A Linen module, called with `(images, train=...)`.
      model_state: Its other collections.
      images: The batch, normalised.
      labels: Its labels.
    """

    def flow(params: Any) -> jax.Array:
        image = jnp.full_like(images[:1], _SMALL)
        return jnp.sum(
            model.apply({"params": params, **model_state}, image, train=False)
        )

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply(
            {"params": params, **model_state},
            images,
            train=True,
            mutable=list(model_state),
        )
        logits = logits.astype(jnp.float32)
        if name == "cooled loss":
            logits = logits / _TEMPERATURE
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return flow if name == "flow" else loss
