"""A function of parameters, with its products by some of them computed otherwise.

The function is traced, and the operations in its jaxpr run one by one. A leaf that is
given as a `Weight` is an operand of matrix products, which it computes itself.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from zosam_jax import _operations
from zosam_jax._types import PyTree

Dimensions = tuple[
    tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]
]
"""Contracted and batch axes of the two operands, as `jax.lax.dot_general` has them."""


class Weight(Protocol):
    """A leaf that computes its own products."""

    def product(
        self, other: jax.Array, axes: tuple[int, int], is_left: bool
    ) -> jax.Array:
        """Returns `dot_general` of the leaf `[a, b]` and an array.

        Args:
          other: The other operand.
          axes: The contracted axis of the leaf and of the other operand.
          is_left: Whether the leaf is the left operand.
        """
        ...

    def dense(self) -> jax.Array:
        """Returns the leaf, for an operation that is no such product."""
        ...


def with_weights(
    apply: Callable[[PyTree, PyTree], PyTree], weights: Sequence[Any], like: PyTree
) -> Callable[[PyTree], PyTree]:
    """Returns `x -> apply(params, x)`, some of whose products the weights compute.

    Products within loops and branches (`scan`, `while`, `cond`) are left as they are.

    Args:
      apply: `(params, x) -> outputs`.
      weights: The leaves of the parameters, in flattening order: arrays, or `Weight`.
      like: Shapes of the parameters.
    """

    def run(x: PyTree) -> PyTree:
        made, shapes = jax.make_jaxpr(apply, return_shape=True)(like, x)
        outputs = _operations.run(made, [*weights, *jax.tree.leaves(x)], _computed)
        return jax.tree.unflatten(
            jax.tree.structure(shapes), [_array(x) for x in outputs]
        )

    return run


def _computed(equation: Any, inputs: list[Any]) -> Sequence[Any] | None:
    """Returns the outputs of an operation that reads weights; None of others."""
    is_weight = [hasattr(x, "product") for x in inputs]
    if not any(is_weight):
        return None
    body = _operations.body(equation)
    if body is not None:
        return _operations.run(body, inputs, _computed)
    axes = _contracted(equation)
    if axes is None or all(is_weight):
        return _operations.bound(equation, [_array(x) for x in inputs])
    left = is_weight[0]
    weight, other = inputs if left else inputs[::-1]
    return [weight.product(other, axes if left else axes[::-1], left)]


def _array(value: Any) -> Any:
    return value.dense() if hasattr(value, "product") else value


def _contracted(eqn: Any) -> tuple[int, int] | None:
    """Returns the contracted axes of a product over one axis without batch axes."""
    if eqn.primitive.name != "dot_general":
        return None
    (left, right), batch = eqn.params["dimension_numbers"]
    if len(left) != 1 or any(map(len, batch)):
        return None
    return left[0], right[0]


@functools.partial(jax.jit, static_argnums=(2, 3))
def dense_product(
    weight: jax.Array, other: jax.Array, axes: tuple[int, int], is_left: bool
) -> jax.Array:
    """Returns the product of a dense leaf, as `Weight.product` describes it."""
    if is_left:
        return jax.lax.dot_general(weight, other, (((axes[0],), (axes[1],)), ((), ())))
    return jax.lax.dot_general(other, weight, (((axes[1],), (axes[0],)), ((), ())))
