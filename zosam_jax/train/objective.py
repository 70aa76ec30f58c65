"""The loss that is trained on, as a function of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zosam_jax._streams import DROPOUT
from zosam_jax.train import gradients
from zosam_jax.train.batch import Batch
from zosam_jax.train.task import Task

# Of the teacher's classes in the loss (DeiT, arXiv:2012.12877, equation 3).
_TAUGHT = 0.5


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy of every example, float32 `[N]`.

    Args:
      logits: `[N, K]`, or `[N, T, K]`, of which an example's is the mean over T.
      targets: Classes, integers of the shape of `logits` without its last axis, or
        probabilities of its whole shape.
    """
    logits = logits.astype(jnp.float32)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    else:
        losses = optax.softmax_cross_entropy(logits, targets)
    return losses if losses.ndim == 1 else jnp.mean(losses, range(1, losses.ndim))


def right(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns whether the likeliest class is the target's (its likeliest), bool."""
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jnp.argmax(targets, -1)
    return jnp.argmax(logits, -1) == targets


def _losses(
    task: Task, params: Any, model_state: Any, batch: Batch, key: jax.Array, dtype: str
) -> tuple[jax.Array, Any]:
    """Returns the losses, and the new model state and the share that is right."""
    model = task.model if dtype == "same" else task.model.clone(dtype=dtype)
    outputs, changed = model.apply(
        {"params": params, **model_state},
        batch.inputs,
        train=True,
        rngs={"dropout": key},
        mutable=list(model_state),
    )
    logits, distilled = outputs if isinstance(outputs, tuple) else (outputs, outputs)
    losses = cross_entropy(logits, batch.targets)
    if batch.taught is not None:
        taught = cross_entropy(distilled, batch.taught)
        losses = (1 - _TAUGHT) * losses + _TAUGHT * taught
    hits = right(logits, batch.targets)
    correct = jnp.sum(hits, dtype=jnp.float32)
    # As many as of the whole batch: this pass may see a part of it.
    return losses, (dict(changed), correct * (task.config.batch_size / hits.size))


def value_fn(
    task: Task, model_state: Any, step: jax.Array, batch: Batch, *, probe: bool = False
) -> Callable[..., Any]:
    """Returns `(params, examples=None, key=None) -> (loss, aux)` on a batch.

    The loss is the mean, or one for each example where the gradient wants those. aux is
    the new model state and the number of examples that are right. All passes of a step
    draw the same dropout for an example, but where the gradient gives each pass a key,
    or picks examples from here and there (esam); each part of a batch has its own.

    Args:
      task: The task.
      model_state: BatchNorm statistics, or {}.
      step: The step, which dropout is drawn from. int32.
      batch: The batch.
      probe: Whether this is the look uphill, which sees the front of the batch, and the
        network in a type of its own, where the configuration says so.
    """
    config = task.config
    by_example = gradients.by_example(config)
    same = not probe or config.probe_dtype == config.dtype
    dtype = "same" if same else config.probe_dtype
    shared = task.key(DROPOUT, step)

    def value(
        params: Any, examples: jax.Array | None = None, key: jax.Array | None = None
    ) -> Any:
        part, draws = batch, shared
        if by_example:
            first = 0 if examples is None else examples[0]
            draws = jax.random.fold_in(shared, first)
        if examples is not None:
            part = jax.tree.map(lambda x: x[examples], part)
        if probe and config.probe_fraction < 1:
            count = max(1, round(config.probe_fraction * len(part.inputs)))
            part = jax.tree.map(lambda x: x[:count], part)
        if len(part.inputs) % task.mesh.size == 0:
            part = task.split(part)
        draws = draws if key is None else key
        losses, aux = _losses(task, params, model_state, part, draws, dtype)
        return (losses if by_example else jnp.mean(losses)), aux

    return value
