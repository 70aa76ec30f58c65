"""What criteria at initialisation score by, by the name that `methods.ROWS` uses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax.train.objective import cross_entropy

# Of the logits, in GraSP's public code: a softer softmax, so a Hessian of more weight.
_TEMPERATURE = 200.0


def value_fn(
    name: str,
    model: Any,
    model_state: Any,
    inputs: jax.Array,
    targets: jax.Array,
    key: jax.Array | None = None,
) -> Callable[[Any], jax.Array]:
    """Returns `params -> scalar` for a criterion.

    Args:
      name: "loss": the mean cross-entropy of the batch, in training mode (SNIP).
        "cooled loss": the same with the logits divided by 200 (GraSP). "flow": the sum
        of the logits of one image of ones, in evaluation mode (SynFlow).
      model: A Linen module, called with `(images, train=...)`.
      model_state: Its other collections.
      inputs: The batch, as the network takes it.
      targets: Its classes, or their probabilities.
      key: What dropout is drawn from; None: a network without.
    """

    def flow(params: Any) -> jax.Array:
        variables = {"params": params, **model_state}
        logits = model.apply(variables, jnp.ones_like(inputs[:1]), train=False)
        return jnp.sum(logits.astype(jnp.float32))

    def loss(params: Any) -> jax.Array:
        outputs, _ = model.apply(
            {"params": params, **model_state},
            inputs,
            train=True,
            rngs=None if key is None else {"dropout": key},
            mutable=list(model_state),
        )
        # A network with a distillation token has two heads.
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if name == "cooled loss":
            logits = logits.astype(jnp.float32) / _TEMPERATURE
        return jnp.mean(cross_entropy(logits, targets))

    return flow if name == "flow" else loss
