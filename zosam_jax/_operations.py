"""The operations of a traced function, run one by one, some of them otherwise."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

Rule = Callable[[Any, list[Any]], Sequence[Any] | None]
"""`(equation, inputs) -> outputs`, or None to run the equation as it is."""

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


def body(equation: Any) -> Any:
    """Returns the jaxpr of an operation that is nothing but one, or None."""
    return equation.params.get(_BODIES.get(equation.primitive.name, ""))


def run(closed: Any, inputs: Sequence[Any], rule: Rule) -> list[Any]:
    """Returns the outputs of a jaxpr.

    Args:
      closed: The jaxpr, with its constants if it has any.
      inputs: Its inputs: arrays, or what the rule knows.
      rule: What is run otherwise.
    """
    jaxpr = getattr(closed, "jaxpr", closed)
    consts = getattr(closed, "consts", ())
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for equation in jaxpr.eqns:
        given = [read(x) for x in equation.invars]
        outputs = rule(equation, given)
        if outputs is None:
            outputs = bound(equation, given)
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def bound(equation: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    """Returns the outputs of an operation as it is."""
    primitive = equation.primitive
    found = primitive.get_bind_params(equation.params)
    # Early versions of JAX 0.10 return functions beside the options.
    functions, options = found if isinstance(found, tuple) else ((), found)
    outputs = primitive.bind(*functions, *inputs, **options)
    return outputs if primitive.multiple_results else [outputs]
