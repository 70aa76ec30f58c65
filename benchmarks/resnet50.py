"""ResNet-50 (arXiv:1512.03385), to have the time of its training step."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from zosam_jax.models.convolution import conv_general_dilated


class ResNet50(nn.Module):
    """Bottleneck blocks, 25,557,032 parameters; strides in the 3x3 convolutions."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images `[N, 224, 224, 3]` to logits `[N, 1000]`, as in training."""

        def conv(x: jax.Array, channels: int, size: int, stride: int = 1) -> jax.Array:
            pad = (size // 2, size // 2)
            x = nn.Conv(
                channels,
                (size, size),
                stride,
                padding=(pad, pad),
                use_bias=False,
                conv_general_dilated=conv_general_dilated,
            )(x)
            return nn.BatchNorm(use_running_average=False, momentum=0.9)(x)

        x = nn.relu(conv(images, 64, 7, 2))
        # After a ReLU zeros are as good as the infinities of a padded maximum.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), (2, 2))
        for stage, blocks in enumerate((3, 4, 6, 3)):
            channels = 64 * 2**stage
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                y = nn.relu(conv(x, channels, 1))
                y = nn.relu(conv(y, channels, 3, stride))
                y = conv(y, 4 * channels, 1)
                if not block:
                    x = conv(x, 4 * channels, 1, stride)
                x = nn.relu(x + y)
        return nn.Dense(1000)(jnp.mean(x, axis=(1, 2)))


def variables(batch: int = 1) -> Any:
    """Shapes of its parameters and statistics."""
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
    return jax.eval_shape(ResNet50().init, jax.random.key(0), images)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def train_step(variables: Any, momentum: Any, images: Any, labels: Any) -> Any:
    """`(variables, momentum, loss)` after a step of SGD with momentum."""
    model, tx = ResNet50(), optax.sgd(0.1, momentum=0.9)
    params, rest = variables["params"], variables["batch_stats"]

    def loss(params: Any) -> Any:
        logits, changed = model.apply(
            {"params": params, "batch_stats": rest}, images, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed["batch_stats"]

    (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, momentum = tx.update(grads, momentum, params)
    params = optax.apply_updates(params, updates)
    return {"params": params, "batch_stats": rest}, momentum, value
