"""The functions by whose derivatives criteria at initialisation rank weights."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zosam_jax._types import Key, Params, ValueFn
from zosam_jax.train.experiment import Loss, Model, ModelState

# GraSP's public code divides the logits by 200: a flatter softmax gives the Hessian
# term more weight against the gradient.
_TEMPERATURE = 200.0


def loss(
    losses: Loss,
    model: Model,
    model_state: ModelState,
    inputs: jax.Array,
    targets: jax.Array,
    key: Key | None = None,
    *,
    temperature: float = 1.0,
) -> ValueFn:
    """Returns the mean loss of a batch, in training mode (SNIP, GraSP).

    Args:
      losses: The loss of every example.
      model: Linen module, called with `(inputs, train=...)`.
      model_state: Its collections other than the parameters.
      inputs: The batch as the model takes it, `[N, ...]`.
      targets: Classes, int32 `[N]`, or their probabilities, float32 `[N, K]`.
      key: PRNG key of dropout; None for a model without dropout.
      temperature: Divisor of the outputs.

    Returns:
      `params -> scalar`.
    """

    def value(params: Params) -> jax.Array:
        outputs, _ = model.apply(
            {"params": params, **model_state},
            inputs,
            train=True,
            rngs=None if key is None else {"dropout": key},
            mutable=list(model_state),
        )
        # A network with a distillation token has two heads.
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if temperature != 1:
            logits = logits.astype(jnp.float32) / temperature
        return jnp.mean(losses(logits, targets))

    return value


def flow(
    losses: Loss,
    model: Model,
    model_state: ModelState,
    inputs: jax.Array,
    targets: jax.Array,
    key: Key | None = None,
) -> ValueFn:
    """Returns the sum of the logits for an input of ones, in evaluation mode (SynFlow).

    Args:
      losses: Unused.
      model: As in `loss`.
      model_state: As in `loss`.
      inputs: A batch, of which the shape is used.
      targets: Unused.
      key: Unused.

    Returns:
      `params -> scalar`.
    """
    del losses, targets, key

    def value(params: Params) -> jax.Array:
        variables = {"params": params, **model_state}
        logits = model.apply(variables, jnp.ones_like(inputs[:1]), train=False)
        return jnp.sum(logits.astype(jnp.float32))

    return value


SCORES: dict[str, Callable[..., ValueFn]] = {
    "loss": loss,
    "cooled loss": functools.partial(loss, temperature=_TEMPERATURE),
    "flow": flow,
}
"""By the names that the table of sparse methods uses."""
