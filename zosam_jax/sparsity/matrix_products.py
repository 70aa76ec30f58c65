"""A function of parameters, with its products by some of them computed otherwise.

The function is traced, and the operations in its jaxpr run one by one. A leaf that is
given as a `Weight` is an operand of matrix products, which it computes itself.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from jax.extend import core

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
        inputs = [*weights, *jax.tree.leaves(x)]
        outputs = _run(made, inputs)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


# Operations that are nothing but a jaxpr, and the parameter that it is.
_BODIES = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def _run(closed: Any, inputs: Sequence[Any]) -> list[Any]:
    jaxpr = getattr(closed, "jaxpr", closed)
    env: dict[Any, Any] = dict(
        zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True)
    )
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        outputs = _equation(eqn, [read(x) for x in eqn.invars])
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [_array(read(x)) for x in jaxpr.outvars]


def _equation(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    is_weight = [hasattr(x, "product") for x in inputs]
    if any(is_weight):
        body = eqn.params.get(_BODIES.get(eqn.primitive.name, ""))
        if body is not None:
            return _run(body, inputs)
        axes = _contracted(eqn)
        if axes is not None and is_weight.count(True) == 1:
            left = is_weight[0]
            weight, other = inputs if left else inputs[::-1]
            return [weight.product(other, axes if left else axes[::-1], left)]
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Early versions of JAX 0.10 return functions beside the options.
    functions, options = bound if isinstance(bound, tuple) else ((), bound)
    outputs = eqn.primitive.bind(*functions, *map(_array, inputs), **options)
    return outputs if eqn.primitive.multiple_results else [outputs]


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
