"""WSAM, weighted SAM (arXiv:2305.15817), and the optimizer of its decoupled form."""

from typing import Any, Unpack

import jax
import optax

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Decoupled,
    Estimate,
    Grads,
    Key,
    Memory,
    OptState,
    Params,
    Radius,
    Scalar,
    Schedule,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients import ascents, combinations
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.pieces import Combination, GradientLook, Point, Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def wsam(
    rho: Radius = 0.05,
    *,
    gamma: Scalar = 0.9,
    decouple: bool = False,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""WSAM: sharpness as a regulariser with an adjustable weight.

    .. math::
      g = (1 - a) \nabla L(w) + a \nabla L(w + \epsilon), \qquad a = \gamma/(1 - \gamma)

    Yue et al. (arXiv:2305.15817, algorithm 1). gamma = 1/2 is SAM, 0 plain training.

    Args:
      rho: Radius, or a schedule.
      gamma: Weight of sharpness in [0, 1).
      decouple: Give the optimizer only the gradient at w, and take a second step along
        `a (g_p - g)` with the plain learning rate (the paper's WSAM). The
        optimizer must then be `zs.decoupled(optimizer, learning_rate)`.

    Returns:
      As `sam`. With `decouple`, the gradient is a `Decoupled`.
    """
    _check.number("gamma", gamma, least=0, below=1)
    weight = gamma / (1 - gamma)
    combination = two_parts(weight) if decouple else combinations.mixed(weight)
    row = Row(ascents.gradient(), combination=combination)
    return sharpness_aware("wsam", row, rho, **options)


@pure_form(wsam)
def wsam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    gamma: Scalar = 0.9,
    decouple: bool = False,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns WSAM's gradient as a pure function; see `wsam`."""
    ...


def two_parts(weight: Scalar) -> Combination[GradientLook]:
    """Returns the gradient at w and, separately, `weight (g_p - g)`."""

    def blend(
        point: Point, look: GradientLook, grad: Grads, memory: Memory
    ) -> tuple[Grads, Memory]:
        del point
        clean = look.estimate.grad
        return Decoupled(clean, tree.mix(weight, grad, -weight, clean)), memory

    return Combination(blend, GradientLook, decoupled=True)


def decoupled(
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar | Schedule,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimizer that adds a step along WSAM's sharpness to its update.

    .. math::
      w \leftarrow w + \text{update}(\nabla L) - \eta \, a \, (g_p - \nabla L)

    Put it behind `zs.wsam(..., decouple=True)` in a chain, or make it the optimizer of
    `sparsify` with that `gradient=` (arXiv:2305.15817, algorithm 1).

    Args:
      optimizer: Steps along the gradient at w.
      learning_rate: eta, or a schedule of it.

    Returns:
      A transformation whose incoming updates are a `Decoupled`.

    Raises:
      TypeError: On update, the incoming updates are not a `Decoupled`.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(
      ...     zs.wsam(0.5, gamma=0.5, decouple=True), zs.decoupled(optax.sgd(0.5), 0.5)
      ... )
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(None, tx.init(w), w, value_fn=lambda w: w @ w)
      >>> print(updates)
      [-3.3 -4.4]
    """
    optimizer = optax.with_extra_args_support(optimizer)
    rate = optax.scale_by_learning_rate(learning_rate)

    def init(params: Params) -> tuple[OptState, OptState]:
        return optimizer.init(params), rate.init(params)

    def update(
        updates: Grads,
        state: OptState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Grads, OptState]:
        if not isinstance(updates, Decoupled):
            raise TypeError(
                "zs.decoupled needs the two parts of zs.wsam(..., decouple=True): put "
                "it directly behind zs.wsam in the chain, or use gradient= of sparsify."
            )
        # The optimizer sees the gradient at w alone, so the sharpness does not enter
        # its momentum or second moments.
        main, first = optimizer.update(updates.grad, state[0], params, **extra_args)
        beside, second = rate.update(updates.sharpness, state[1])
        total = jax.tree.map(lambda u, v: (u + v).astype(u.dtype), main, beside)
        return total, (first, second)

    return optax.GradientTransformationExtraArgs(init, update)
