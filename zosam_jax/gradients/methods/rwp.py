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

    Li et al. (arXiv:2211.13489). A filter is the weights of one output: one index
    on the last axis of a kernel. A leaf with fewer than two axes is one filter. RWP
    takes one pass of each kind and keeps nothing. It is a control for methods that
    compute an ascent direction. `value` is the loss at w + eps.

    Args:
      rho: Noise relative to the filter's norm (the paper's gamma), or a schedule.

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
    `ascent_value_fn`. It takes two passes of each kind, independent of each other.

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
    r"""ARWP: random weight perturbation, smaller where gradients have been large.

    .. math::
      \epsilon_f \sim N\big(0, (\rho |w_f|)^2 / (1 + \eta F_f) \, I\big), \qquad
      F_f \leftarrow \beta F_f + |g_f|^2

    Li et al. (arXiv:2404.00357). It takes one pass of each kind and keeps one
    number for each filter.

    Args:
      rho: Noise relative to the filter's norm, or a schedule.
      eta: Weight of the accumulated squared norms F_f, >= 0. 0 is `rwp`.
      beta: Decay of F_f, in [0, 1).

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
    """Returns Gaussian noise with standard deviation `|w_f|` in filter f."""

    def look(point: Point, memory: Memory) -> Look:
        return Look(_draw(point, filter_norms(point.params)), memory=memory)

    return Ascent(look, Look)


def noise_beside_gradient() -> Ascent[GradientLook]:
    """Returns the same noise together with the exact gradient at w."""

    def look(point: Point, memory: Memory) -> GradientLook:
        drawn = _draw(point, filter_norms(point.params))
        clean = exact_gradient(point.losses.ascent, point.params)
        return GradientLook(drawn, clean, memory=memory)

    return Ascent(look, GradientLook)


def adaptive_noise(eta: Scalar, beta: Scalar) -> Ascent[Look]:
    """Returns the noise divided by `sqrt(1 + eta F_f)`; F_f sums |g_f|^2 with decay."""

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

    A filter is the weights of one output: the entries of a leaf with the same index on
    the last axis, as in Flax kernels. A leaf with fewer than two axes is one filter.
    """

    def leaf(w: jax.Array) -> jax.Array:
        axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None
        unit = tree.magnitude(w)
        squares = jnp.square(w.astype(jnp.float32) / unit)
        return unit * tree.root(jnp.sum(squares, axis=axes, keepdims=True))

    return jax.tree.map(leaf, params)
