"""ESAM, efficient SAM (arXiv:2110.03141)."""

import dataclasses
from typing import TypeVar, Unpack

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Aux,
    Estimate,
    Key,
    Memory,
    Params,
    Radius,
    Scalar,
    SharedOptions,
    ValueFn,
)
from zosam_jax.estimators.losses import Loss
from zosam_jax.gradients import ascents
from zosam_jax.gradients.constructor import (
    PureOptions,
    known_before_tracing,
    pure_form,
    sharpness_aware,
)
from zosam_jax.gradients.pieces import (
    Ascent,
    Descent,
    ExampleLook,
    GradientLook,
    Point,
    Row,
    exact_gradient,
)
from zosam_jax.gradients.transformation import GradientEstimator

L = TypeVar("L", bound=GradientLook)


@passes_options_to(sharpness_aware)
def esam(
    rho: Radius = 0.05,
    *,
    beta: Scalar = 0.6,
    gamma: float = 0.5,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""ESAM: perturbs part of the weights, descends on the sharpest part of the batch.

    .. math::
      \epsilon = \frac{\rho}{\beta} \, b \odot \frac{\nabla L}{|\nabla L|},
      \; b_i \sim \text{Bernoulli}(\beta), \qquad
      g = \nabla \frac{1}{|S|} \sum_{n \in S} \ell_n(w + \epsilon)

    with S the fraction gamma of the batch whose loss the perturbation raised most. Du
    et al. (arXiv:2110.03141). beta = gamma = 1 is SAM. Choosing S costs a forward
    pass: a step takes 2 + gamma forward and 1 + gamma backward passes. Under `jit`, the
    unperturbed weights save nothing.

    Args:
      rho: Radius, or a schedule.
      beta: Fraction of the weights that are perturbed, in (0, 1].
      gamma: Fraction of the examples in the second pass, in (0, 1]. Below 1, `value_fn`
        is called `value_fn(params, examples=indices)` and returns the losses of those
        examples, [n] (all of them with `examples=None`).

    Returns:
      As `sam`.
    """
    _check.number("beta", beta, above=0, most=1)
    known_before_tracing("gamma", gamma)
    _check.number("gamma", gamma, above=0, most=1)
    perturbs_all = not isinstance(beta, jax.Array) and beta == 1
    if gamma == 1:
        ascent = ascents.gradient()
        row = Row(ascent if perturbs_all else on_random_weights(beta, ascent))
    else:
        ascent = gradient_of_examples()
        row = Row(
            ascent if perturbs_all else on_random_weights(beta, ascent),
            descent=on_sharpest_examples(gamma),
        )
    return sharpness_aware("esam", row, rho, **options)


@pure_form(esam)
def esam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    beta: Scalar = 0.6,
    gamma: float = 0.5,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns ESAM's gradient as a pure function; see `esam`."""
    ...


def on_random_weights(beta: Scalar, ascent: Ascent[L]) -> Ascent[L]:
    """Returns the ascent that perturbs each weight with probability beta."""

    def look(point: Point, memory: Memory) -> L:
        seen = ascent.look(point, memory)
        drawn = tree.uniform_like(point.random(), point.params)
        # The factor 1 / beta keeps the expected perturbation.
        kept = jax.tree.map(lambda u: jnp.where(u < beta, 1 / beta, 0.0), drawn)
        return dataclasses.replace(seen, factor=kept)

    return dataclasses.replace(ascent, look=look)


def gradient_of_examples() -> Ascent[ExampleLook]:
    """Returns the exact gradient at w, with the losses of the single examples."""

    def look(point: Point, memory: Memory) -> ExampleLook:
        def loss(params: Params) -> tuple[jax.Array, tuple[jax.Array, Aux]]:
            losses, aux = point.losses.each(params, "ascent", point.losses.examples)
            return jnp.mean(losses), (losses, aux)

        clean = exact_gradient(Loss(loss), point.params)
        losses, aux = clean.aux
        clean = clean._replace(aux=aux)
        return ExampleLook(clean.grad, clean, losses, memory=memory)

    return Ascent(look, ExampleLook, by_example=True)


def on_sharpest_examples(gamma: float) -> Descent[ExampleLook]:
    """Returns the descent on the fraction of the examples whose loss rose most."""

    def descend(point: Point, look: ExampleLook, params: Params) -> Estimate:
        losses_of, examples = point.losses.each, point.losses.examples
        # A Python number: the number of examples is a shape of the compiled program.
        count = max(1, round(gamma * look.losses.size))
        moved, _ = losses_of(params, "descent", examples)
        _, chosen = jax.lax.top_k(moved - look.losses, count)
        if examples is not None:
            chosen = jnp.asarray(examples)[chosen]

        def loss(params: Params) -> tuple[jax.Array, Aux]:
            losses, aux = losses_of(params, "descent", chosen)
            return jnp.mean(losses), aux

        seen = exact_gradient(Loss(loss), params)
        info = seen.info._replace(
            descent_value=jnp.mean(moved),
            forward_evaluations=jnp.ones((), jnp.float32),
            backward_evaluations=jnp.float32(count / look.losses.size),
        )
        return seen._replace(value=jnp.mean(moved), info=info)

    return Descent(descend, ExampleLook, by_example=True)
