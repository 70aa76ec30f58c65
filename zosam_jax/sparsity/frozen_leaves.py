"""Finds the leaves that an optimizer does not train, such as those of `optax.freeze`.

The optimizer's update is traced, not run. A leaf is frozen if its update does not
depend on its own gradient: it is zero, or weight decay alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from zosam_jax._types import Grads

_CALLS = {"jit", "pjit", "closed_call", "core_call"}


def frozen(update: Callable[[Grads], Grads], grads: Grads) -> list[bool]:
    """Returns for each leaf whether its update does not depend on its gradient.

    Where it is not certain (loops, conditionals), a leaf counts as trained.

    Args:
      update: `gradient -> updates`, of the same leaves in the same order.
      grads: The gradient; only its structure, shapes and dtypes are read.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from zosam_jax.sparsity.frozen_leaves import frozen
      >>> w = {"a": jnp.ones(2), "b": jnp.ones(2)}
      >>> tx = optax.chain(optax.freeze({"a": True, "b": False}), optax.adam(0.1))
      >>> frozen(lambda g: tx.update(g, tx.init(w), w)[0], w)
      [True, False]
    """
    jaxpr = jax.make_jaxpr(update)(grads).jaxpr
    # A set of inputs in the bits of an integer: leaf i is bit i.
    sources = [1 << i for i in range(len(jaxpr.invars))]
    found = _sources(jaxpr, sources)
    return [not own & after for own, after in zip(sources, found, strict=True)]


def _sources(jaxpr: Any, inputs: Sequence[int]) -> list[int]:
    """Returns the inputs that each output depends on."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> int:
        return 0 if isinstance(atom, core.Literal) else known.get(atom, 0)

    for eqn in jaxpr.eqns:
        given = [read(x) for x in eqn.invars]
        body = eqn.params.get("jaxpr") if eqn.primitive.name in _CALLS else None
        if body is not None:
            found = _sources(getattr(body, "jaxpr", body), given)
        else:
            union = 0
            for source in given:
                union |= source
            found = [union] * len(eqn.outvars)
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(x) for x in jaxpr.outvars]
