"""A training step of ResNet-50 (arXiv:1512.03385), to compare times with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zosam_jax import models

SIDE = 224
MODEL = models.create("resnet50", num_classes=1000, image_size=SIDE)


def variables(batch: int = 1) -> Any:
    """Returns the shapes of its 25,557,032 parameters and of its batch statistics."""
    images = jax.ShapeDtypeStruct((batch, SIDE, SIDE, 3), jnp.float32)
    init = functools.partial(MODEL.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def train_step(variables: Any, momentum: Any, images: Any, labels: Any) -> Any:
    """Returns `(variables, momentum, loss)` after a step of SGD with momentum.

    Args:
      variables: Parameters and batch statistics.
      momentum: State of the optimizer.
      images: Images, [batch, 224, 224, 3].
      labels: Classes, [batch].
    """
    tx = optax.sgd(0.1, momentum=0.9)
    params, rest = variables["params"], variables["batch_stats"]

    def loss(params: Any) -> Any:
        logits, changed = MODEL.apply(
            {"params": params, "batch_stats": rest},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed["batch_stats"]

    (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, momentum = tx.update(grads, momentum, params)
    params = optax.apply_updates(params, updates)
    return {"params": params, "batch_stats": rest}, momentum, value
