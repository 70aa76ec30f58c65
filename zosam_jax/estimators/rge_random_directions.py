"""RGE, random gradient estimation: finite differences along random directions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from zosam_jax import _check, tree
from zosam_jax._programs import Sampler, once
from zosam_jax._types import (
    Aux,
    Estimate,
    Info,
    Key,
    Masks,
    Params,
    Scalar,
    Step,
    ValueFn,
)
from zosam_jax.estimators.losses import Loss, difference_step, scalar_loss

Probe = tuple[Params, jax.Array, Aux]
"""What one direction gives: the slope times the direction, the loss, and aux."""

Slope = Callable[[Params], tuple[jax.Array, jax.Array, Aux]]
"""`direction -> (slope along it, loss, aux)`."""

DISTRIBUTIONS: dict[str, Sampler] = {
    "gaussian": jax.random.normal,
    "sphere": jax.random.normal,
    "rademacher": jax.random.rademacher,
}
"""Samplers of entries with mean 0 and variance 1."""


def rge(
    value_fn: ValueFn,
    params: Params,
    key: Key,
    *,
    delta: Step | None = "auto",
    num_directions: int = 1,
    distribution: str = "gaussian",
    two_sided: bool = True,
    chunk_size: int | None = None,
    masks: Masks | None = None,
    has_aux: bool = False,
) -> tuple[Estimate, Params]:
    r"""Returns the random gradient estimate: forward passes only, no backward pass.

    .. math::
      \hat g = \frac{1}{m} \sum_{i=1}^m c_i u_i, \qquad
      c_i = \frac{L(w + \delta u_i) - L(w - \delta u_i)}{2 \delta}
      \quad\text{(one-sided: } \tfrac{L(w + \delta u_i) - L(w)}{\delta} \text{)}

    with :math:`u_i \sim N(0, I)` on the support of the masks (Nesterov and Spokoiny,
    2017; ZO-SAM, arXiv:2603.13115, its estimator of the perturbation). The mean over
    :math:`u` is the gradient up to :math:`O(\delta^2)` (one-sided :math:`O(\delta)`);
    its cosine to the gradient is about :math:`\sqrt{m / (m + d)}` over :math:`d` live
    coordinates. Direction `i` is drawn from `fold_in(key, i)`, so that a larger
    `num_directions` adds to the directions of a smaller one. Differences are taken in
    float32. If all of them are zero, `estimate.info.unperturbed` is 1.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays, w.
      key: One PRNG key.
      delta: Step of the finite difference, per unit of u: the probes lie about
        `delta * sqrt(d)` from w. "auto": see `difference_step`. None: the limit 0, the
        exact directional derivative by `jax.jvp`, which costs three forward passes for
        each direction.
      num_directions: m. May be traced if `chunk_size` is None.
      distribution: Distribution of u: "gaussian"; "sphere", uniform on |u|^2 = d over
        the d live coordinates; "rademacher", entries of +-1.
      two_sided: Central differences, 2m evaluations; else forward differences, m + 1.
      chunk_size: None evaluates one probe after another. `k` evaluates the probes of
        `k` directions in one `jax.vmap`, chunk after chunk; k divides m.
      masks: Mask tree: u is zero off the mask.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Returns:
      `(estimate, dense)`. `estimate.grad` is g, float32, zero off the mask;
      `estimate.value` is the mean of the two-sided probes, which is
      L(w) + O(delta^2), or L(w) itself when one-sided or exact; `estimate.aux` is of
      the first probe at w + delta u, or of w. `dense` is the same mean of `c_i u_i`
      with every u_i before it was restricted to the mask.

    Example:
      >>> import jax, numpy as np, zosam_jax as zs
      >>> live = np.array([True, False])
      >>> def estimate(w, seed):
      ...     key = jax.random.key(seed)
      ...     return zs.estimators.rge(lambda w: w @ w, w, key, masks=live)[0]
      >>> seen = jax.jit(estimate)(np.ones(2, np.float32), 0)
      >>> print(seen.grad != 0, seen.info.forward_evaluations)
      [ True False] 2.0
    """
    loss = scalar_loss(value_fn, has_aux)
    slope, evaluations = _slope(loss, params, delta, two_sided, chunk_size is not None)

    def probe(i: jax.typing.ArrayLike) -> Probe:
        dense = draw(key, i, params, masks, distribution)
        # The probe is on the mask, but the sum keeps the whole direction:
        # `norm_over="all"` needs the length that it has without a mask.
        c, value, aux = slope(tree.mask(dense, masks))
        c = once(c)
        return jax.tree.map(lambda x: c.astype(x.dtype) * x, dense), value, aux

    total, value, aux = _sum_over_directions(probe, num_directions, chunk_size)
    mean = jax.tree.map(lambda x: x / num_directions, total)
    grad = tree.mask(mean, masks)
    info = info_of(evaluations(num_directions), tree.norm(grad))
    return Estimate(value / num_directions, grad, aux, info), mean


def info_of(evaluations: Scalar, norm: jax.Array) -> Info:
    """Returns what an estimate of forward passes reports.

    Args:
      evaluations: Number of forward passes.
      norm: Norm of the estimate. It is unperturbed if that is 0 or not finite.
    """
    found = jnp.isfinite(norm) & (norm > 0)
    return Info.zeros()._replace(
        forward_evaluations=jnp.asarray(evaluations, jnp.float32),
        direction_norm=norm.astype(jnp.float32),
        unperturbed=1 - found.astype(jnp.int32),
    )


def slopes(
    value_fn: ValueFn,
    params: Params,
    key: Key,
    *,
    delta: Step | None = "auto",
    num_directions: int = 1,
    distribution: str = "gaussian",
    two_sided: bool = True,
    masks: Masks | None = None,
    has_aux: bool = False,
) -> tuple[jax.Array, Estimate]:
    """Returns the coefficients `c_i` of `rge`, for use in later steps.

    Args:
      value_fn: As in `rge`, like all other arguments.
      params: See `value_fn`.
      key: See `value_fn`.
      delta: See `value_fn`.
      num_directions: See `value_fn`.
      distribution: See `value_fn`.
      two_sided: See `value_fn`.
      masks: See `value_fn`.
      has_aux: See `value_fn`.

    Returns:
      `(c, estimate)`: float32 `[m]`, and an `Estimate` without a gradient.
    """
    loss = scalar_loss(value_fn, has_aux)
    slope, evaluations = _slope(loss, params, delta, two_sided, False)
    found = []
    for i in range(num_directions):
        u = tree.mask(draw(key, i, params, masks, distribution), masks)
        found.append(slope(u))
    c, values, auxes = zip(*found, strict=True)
    info = Info.zeros()._replace(
        forward_evaluations=jnp.asarray(evaluations(num_directions), jnp.float32)
    )
    value = jnp.mean(jnp.stack(values))
    return jnp.stack(c), Estimate(value, None, auxes[0], info)


def combine(
    key: Key,
    coefficients: jax.Array,
    params: Params,
    masks: Masks | None = None,
    distribution: str = "gaussian",
) -> Params:
    """Returns `mean_i c_i u_i`, drawn anew from the key of `slopes`.

    Args:
      key: The key that `slopes` had.
      coefficients: The `c_i`, `[m]`.
      params: Pytree of floating point arrays, for the shapes.
      masks: Mask tree; only the length of "sphere" directions depends on it.
      distribution: As for `slopes`.
    """
    m = len(coefficients)
    total = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), params)
    for i in range(m):
        u = draw(key, i, params, masks, distribution)
        total = tree.add_scaled(total, coefficients[i] / m, u)
    return total


def draw(
    key: Key,
    i: jax.typing.ArrayLike,
    params: Params,
    masks: Masks | None,
    distribution: str,
) -> Params:
    """Returns direction i before it is restricted to the mask.

    Args:
      key: The key of the step.
      i: Index of the direction, integer scalar; may be traced.
      params: Pytree of floating point arrays, for the shapes.
      masks: Mask tree; only the length of "sphere" directions depends on it.
      distribution: "gaussian", "sphere" or "rademacher".
    """
    _check.key(key)
    u = tree.drawn_like(DISTRIBUTIONS[distribution], jax.random.fold_in(key, i), params)
    if distribution != "sphere":
        return u
    # A normal vector over its length is uniform on the sphere. The length counts live
    # weights, so a masked direction has |u|^2 = d.
    length = tree.norm(tree.mask(u, masks))
    scale = jnp.sqrt(tree.live_count(params, masks)) / jnp.where(length > 0, length, 1)
    return jax.tree.map(lambda x: scale * x, u)


def _slope(
    loss: Loss,
    params: Params,
    delta: Step | None,
    two_sided: bool,
    vmapped: bool,
) -> tuple[Slope, Callable[[Scalar], Scalar]]:
    """The slope along a direction, and the evaluations that m directions cost."""
    _check.trainable(params)
    delta = difference_step(delta, loss, params)
    if delta is None:
        _check_forward_mode(loss, params)

        def exact(u: Params) -> tuple[jax.Array, jax.Array, Aux]:
            tangent = jax.tree.map(lambda x, w: x.astype(w.dtype), u, params)
            value, c, aux = jax.jvp(loss, (params,), (tangent,), has_aux=True)
            return c, value, aux

        return exact, lambda m: 3 * m

    def at(sign: Scalar, u: Params) -> tuple[jax.Array, Aux]:
        step: Any = sign * delta  # Of Python numbers, arrays or both.
        return loss(tree.add_scaled(params, step, u))

    if not two_sided:
        # All directions share this pass.
        clean, clean_aux = loss(params)

        def one_sided(u: Params) -> tuple[jax.Array, jax.Array, Aux]:
            return (at(1.0, u)[0] - clean) / delta, clean, clean_aux

        return one_sided, lambda m: m + 1

    def central(u: Params) -> tuple[jax.Array, jax.Array, Aux]:
        if vmapped:
            # The two signs join the `vmap` over directions, so a chunk of k is one
            # batch of 2k.
            losses, auxes = jax.vmap(at, (0, None))(jnp.asarray([1.0, -1.0]), u)
            up, down, aux = losses[0], losses[1], jax.tree.map(lambda x: x[0], auxes)
        else:
            (up, aux), (down, _) = at(1.0, u), at(-1.0, u)
        return (up - down) / (2 * delta), (up + down) / 2, aux

    return central, lambda m: 2 * m


def _check_forward_mode(loss: Loss, params: Params) -> None:
    """Raises `TypeError` if the loss has no derivative in forward mode."""

    def derivative(params: Params) -> jax.Array:
        return jax.jvp(loss, (params,), (params,), has_aux=True)[1]

    # JAX itself complains when the program is compiled, far from this call.
    if _has(jax.make_jaxpr(derivative)(params).jaxpr, "custom_lin"):
        raise TypeError(
            "delta=None takes the derivative of the loss in forward mode, which a "
            "function with jax.custom_vjp does not have. Leave delta out, give it a "
            "number, or define that function with jax.custom_jvp."
        )


def _has(jaxpr: core.Jaxpr, primitive: str) -> bool:
    """Whether a program, or one inside it, has an operation of this name."""
    return any(eqn.primitive.name == primitive for eqn in jaxpr.eqns) or any(
        _has(inner, primitive) for inner in core.subjaxprs(jaxpr)
    )


def _sum_over_directions(
    probe: Callable[[jax.typing.ArrayLike], Probe],
    num_directions: int,
    chunk_size: int | None,
) -> Probe:
    """Sums the first two results of `probe(i)` over i < m; the third is of i = 0."""
    check_chunks(num_directions, chunk_size)
    chunks = num_directions if chunk_size is None else num_directions // chunk_size

    def chunk(j: jax.typing.ArrayLike) -> Probe:
        if chunk_size is None:
            return probe(j)
        each = jax.vmap(probe)(j * chunk_size + jnp.arange(chunk_size))
        scaled, values, auxes = each
        total = jax.tree.map(_sum_of_first_axis, scaled)
        return total, jnp.sum(values), jax.tree.map(lambda x: x[0], auxes)

    # The first chunk stays outside the loop: it gives the carry its types and supplies
    # aux, and one direction compiles without a loop.
    total, value, aux = chunk(0)
    if not (isinstance(chunks, int) and chunks == 1):

        def add(
            j: jax.Array, carry: tuple[Params, jax.Array]
        ) -> tuple[Params, jax.Array]:
            more, more_value, _ = chunk(j)
            return jax.tree.map(jnp.add, carry, (more, more_value))

        total, value = jax.lax.fori_loop(1, chunks, add, (total, value))
    return total, value, aux


def _sum_of_first_axis(x: jax.Array) -> jax.Array:
    # As a product: XLA:CPU is very slow at reductions over the first axis.
    ones = jnp.ones(len(x), x.dtype)
    return jnp.tensordot(ones, x, 1, precision=jax.lax.Precision.HIGHEST)


def check_chunks(num_directions: int | jax.Array, chunk_size: int | None) -> None:
    """Raises `ValueError` unless the directions can be evaluated in such chunks."""
    _check.whole("num_directions", num_directions)
    if chunk_size is None:
        return
    if _check.is_traced(chunk_size) or isinstance(num_directions, jax.Array):
        raise ValueError(
            "chunk_size and num_directions must be known before tracing. Inside "
            "optax.inject_hyperparams, name them in "
            'static_args=("num_directions", "chunk_size").'
        )
    _check.whole("chunk_size", chunk_size)
    if num_directions % chunk_size:
        raise ValueError(
            f"chunk_size={chunk_size} must divide num_directions={num_directions}."
        )
