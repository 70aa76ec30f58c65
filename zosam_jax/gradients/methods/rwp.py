"""Random weight perturbation: RWP, mRWP (arXiv:2211.13489), ARWP (arXiv:2404.00357)."""

from typing import Unpack

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Grads,
    Key,
    Memory,
    Params,
    PyTree,
    Radius,
    Scalar,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients import combinations
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.geometries import as_it_is
from zosam_jax.gradients.pieces import (
    Ascent,
    GradientLook,
    Look,
    Point,
    Row,
    exact_gradient,
)
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def rwp(rho: Radius = 0.01, **options: Unpack[SharedOptions]) -> GradientEstimator:
    r"""RWP: random weight perturbation, scaled by the norm of every filter.

    .. math::
      \epsilon_f \sim N(0, (\rho |w_f|)^2 I), \qquad g = \nabla L(w + \epsilon)

    Li et al. (arXiv:2211.13489). A filter is what makes one output: the index on the
    last axis of a kernel; a leaf with fewer than two axes is one. One pass, nothing
    remembered. The control for every method that claims to know the way up. `value` is
    the loss at w + eps.

    Args:
      rho: gamma of the paper, noise relative to the filter's norm, or a schedule.

    Returns:
      As `sam`.
    """
    return sharpness_aware("rwp", Row(noise(), as_it_is()), rho, **options)


@pure_form(rwp)
def rwp_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.01,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns RWP's gradient as a pure function; see `rwp`."""
    ...


@passes_options_to(sharpness_aware)
def mrwp(
    rho: Radius = 0.01,
    *,
    alpha: Scalar = 0.5,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""mRWP: mixes the gradients with and without random perturbation.

    .. math::
      g = (1 - \alpha) \nabla L_1(w) + \alpha \nabla L_2(w + \epsilon)

    with `rwp`'s noise. Li et al. (arXiv:2211.13489) take two batches: give the first as
    `ascent_value_fn`. Two passes of each kind, neither of which waits for the other.

    Args:
      rho: Noise relative to the filter's norm, or a schedule.
      alpha: Weight of the perturbed gradient, in [0, 1].

    Returns:
      As `sam`.
    """
    _check.number("alpha", alpha, least=0, most=1)
    row = Row(
        noise_beside_gradient(),
        as_it_is(),
        combination=combinations.mixed(alpha, same_loss=False),
    )
    return sharpness_aware("mrwp", row, rho, **options)


@pure_form(mrwp)
def mrwp_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.01,
    *,
    alpha: Scalar = 0.5,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns mRWP's gradient as a pure function; see `mrwp`."""
    ...


@passes_options_to(sharpness_aware)
def arwp(
    rho: Radius = 0.01,
    *,
    eta: Scalar = 1.0,
    beta: Scalar = 0.9,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""ARWP: random weight perturbation, less where gradients have been large.

    .. math::
      \epsilon_f \sim N\big(0, (\rho |w_f|)^2 / (1 + \eta F_f) \, I\big), \qquad
      F_f \leftarrow \beta F_f + |g_f|^2

    Li et al. (arXiv:2404.00357). One pass; remembers one number a filter.

    Args:
      rho: Noise relative to the filter's norm, or a schedule.
      eta: Weight of the accumulated squares, >= 0. 0 is `rwp`.
      beta: Their decay, in [0, 1).

    Returns:
      As `sam`.
    """
    _check.number("eta", eta, least=0)
    _check.number("beta", beta, least=0, below=1)
    return sharpness_aware(
        "arwp", Row(adaptive_noise(eta, beta), as_it_is()), rho, **options
    )


@pure_form(arwp)
def arwp_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.01,
    *,
    eta: Scalar = 1.0,
    beta: Scalar = 0.9,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns ARWP's gradient as a pure function; see `arwp`."""
    ...


def noise() -> Ascent[Look]:
    """Returns Gaussian noise, of standard deviation `|w_f|` in every filter f."""

    def look(point: Point, memory: Memory) -> Look:
        return Look(_draw(point, filter_norms(point.params)), memory=memory)

    return Ascent(look, Look)


def noise_beside_gradient() -> Ascent[GradientLook]:
    """Returns the same noise, with the exact gradient at w beside it."""

    def look(point: Point, memory: Memory) -> GradientLook:
        drawn = _draw(point, filter_norms(point.params))
        clean = exact_gradient(point.losses.ascent, point.params)
        return GradientLook(drawn, clean, memory=memory)

    return Ascent(look, GradientLook)


def adaptive_noise(eta: Scalar, beta: Scalar) -> Ascent[Look]:
    """Returns the noise over `sqrt(1 + eta F_f)`, F_f the decayed sum of |g_f|^2."""

    def look(point: Point, memory: Memory) -> Look:
        norms = filter_norms(point.params)
        scales = jax.tree.map(lambda n, f: n / jnp.sqrt(1 + eta * f), norms, memory)
        return Look(_draw(point, scales), memory=memory)

    def init(params: Params) -> Memory:
        return jax.tree.map(jnp.zeros_like, filter_norms(params))

    def learn(point: Point, memory: Memory, grad: Grads) -> Memory:
        norms = filter_norms(tree.mask(grad, point.masks))
        return jax.tree.map(lambda f, n: beta * f + jnp.square(n), memory, norms)

    return Ascent(look, Look, init, learn)


def _draw(point: Point, scales: PyTree) -> Params:
    """Normal entries in the shapes of the parameters, times the scales."""
    z = tree.normal_like(point.random(), point.params)
    return jax.tree.map(jnp.multiply, scales, z)


def filter_norms(params: Params) -> PyTree:
    """Returns |w_f| of every filter, float32, broadcastable to the leaves.

    A filter is what makes one output: the entries of a leaf that share the index on the
    last axis, as in Flax kernels. A leaf with fewer than two axes is one filter.
    """

    def leaf(w: jax.Array) -> jax.Array:
        axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None
        squares = jnp.square(w.astype(jnp.float32))
        return jnp.sqrt(jnp.sum(squares, axis=axes, keepdims=True))

    return jax.tree.map(leaf, params)
