"""What the layers of a network make of chosen images."""

import fnmatch
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import PyTree

LAYERS = 4
"""Number of layers that are shown where the user names none."""


def feature_layers(model: nn.Module, variables: PyTree, images: jax.Array) -> list[str]:
    """Returns the paths of the layers that have a feature map, in the order of calls.

    Args:
      model: Linen module, called with `(images, train=False)`.
      variables: Its variables.
      images: Images, `[n, H, W, C]`.
    """
    found: dict[str, None] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        path, shape = "/".join(context.module.path), getattr(result, "shape", ())
        if path and context.method_name == "__call__" and _has_map(shape):
            found[path] = None
        return result

    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    return list(found)


def chosen(paths: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Returns the layers to show.

    Args:
      paths: Those of `feature_layers`.
      patterns: Paths, in which `*` stands for any letters; none: `LAYERS` of the
        outermost modules, evenly spaced, the last among them.

    Raises:
      ValueError: A pattern fits no layer, or there is no layer to choose.

    Example:
      >>> chosen(["conv", "block0", "block0/conv", "block1"], ["block*/conv"])
      ['block0/conv']
      >>> chosen(["conv", "block0", "block0/conv", "block1"], [])
      ['conv', 'block0', 'block1']
    """
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            raise ValueError(
                f"layers={pattern!r} fits no layer with a feature map. These have one: "
                f"{', '.join(paths) or 'none'}."
            )
    if patterns:
        return [x for x in paths if any(fnmatch.fnmatchcase(x, p) for p in patterns)]
    outer = [path for path in paths if "/" not in path]
    if not outer:
        raise ValueError("no layer of this network has a feature map.")
    places = np.linspace(0, len(outer) - 1, min(LAYERS, len(outer))).round()
    return [outer[int(i)] for i in places]


def feature_maps(
    model: nn.Module, variables: PyTree, images: jax.Array, layers: Sequence[str]
) -> dict[str, np.ndarray]:
    r"""Returns the strength of the features of each layer, place by place.

    .. math::
      m_{uv} = \sqrt{\frac{1}{C} \sum_{c=1}^C a_{uvc}^2}

    of the activations a of a layer, `[H, W, C]`. Tokens `[T, C]` lie on the square of
    the last ones, so that class tokens in front have no place on it.

    Args:
      model: As in `feature_layers`.
      variables: As in `feature_layers`.
      images: As in `feature_layers`.
      layers: Paths of layers.

    Returns:
      float32 `[n, h, w]` by path, in the order of `layers`.
    """
    wanted = frozenset(layers)

    def is_wanted(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) in wanted

    def forward(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        _, seen = model.apply(
            variables,
            images,
            train=False,
            capture_intermediates=is_wanted,
            mutable=["intermediates"],
        )
        found = {}
        for path in layers:
            at: Any = seen["intermediates"]
            for name in path.split("/"):
                at = at[name]
            # A module that is called several times: its last call.
            found[path] = _strength(jnp.asarray(at["__call__"][-1], jnp.float32))
        return found

    found = jax.jit(forward)(variables, images)
    return {path: np.asarray(found[path]) for path in layers}


def _has_map(shape: Sequence[int]) -> bool:
    """Whether activations lie on a grid of more than one place."""
    if len(shape) == 4:
        return shape[1] * shape[2] > 1
    return len(shape) == 3 and shape[1] > 3


def _strength(activations: jax.Array) -> jax.Array:
    if activations.ndim == 3:
        count, tokens, channels = activations.shape
        side = math.isqrt(tokens)
        square = activations[:, tokens - side * side :]
        activations = square.reshape(count, side, side, channels)
    return jnp.sqrt(jnp.mean(jnp.square(activations), axis=-1))
