"""Estimators of a gradient direction: where a sharpness-aware method looks uphill.

Each is a pure function `(value_fn, params, key, ...) -> Estimate`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._types import Estimate, Info, ValueFn


def backprop(value_fn: ValueFn, params: Any, *, has_aux: bool = False) -> Estimate:
    """The exact gradient: one backward pass at the parameters themselves.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Returns:
      An `Estimate`; `value`, `grad` and `aux` all come from the one pass.
    """
    loss = scalar_loss(value_fn, has_aux)
    (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(params)
    info = Info.zeros()._replace(
        descent_value=value, backward_evaluations=jnp.asarray(1, jnp.int32)
    )
    return Estimate(value, grad, aux, info)


def rge(
    value_fn: ValueFn,
    params: Any,
    key: jax.Array,
    *,
    delta: jax.typing.ArrayLike = 1e-3,
    num_directions: int = 1,
    two_sided: bool = True,
    chunk_size: int | None = None,
    masks: Any | None = None,
    has_aux: bool = False,
) -> tuple[Estimate, Any]:
    r"""Random gradient estimation: forward passes only, no backward pass.

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
    float32; a loss in bfloat16 has lost them already.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays, w.
      key: One PRNG key.
      delta: The step of the finite difference, per unit of u: the probes lie about
        `delta * sqrt(d)` away from w.
      num_directions: m. May be traced, where `chunk_size` is None.
      two_sided: Central differences, 2m evaluations; else forward differences, m + 1.
      chunk_size: None evaluates one probe after another. `k` evaluates the probes of
        `k` directions in one `jax.vmap`, chunk after chunk; k divides m.
      masks: Mask tree: u is zero off the mask.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Returns:
      `(estimate, dense)`. `estimate.grad` is g, float32, zero off the mask;
      `estimate.value` is the mean of the two-sided probes, which is
      L(w) + O(delta^2), or L(w) itself when one-sided; `estimate.aux` is of the first
      probe at w + delta u, or of w when one-sided. `dense` is the same mean of
      `c_i u_i` with every u_i before it was restricted to the mask.
    """
    loss = scalar_loss(value_fn, has_aux)
    signs = (1.0, -1.0) if two_sided else (1.0,)
    clean = None if two_sided else loss(params)

    def evaluate(u: Any) -> tuple[jax.Array, Any]:
        def at(sign: Any) -> tuple[jax.Array, Any]:
            return loss(tree.add_scaled(params, sign * delta, u))

        if chunk_size is None:
            losses, auxes = zip(*map(at, signs), strict=True)
            return jnp.stack(losses), auxes[0]
        losses, auxes = jax.vmap(at)(jnp.asarray(signs))
        return losses, jax.tree.map(lambda x: x[0], auxes)

    def probe(i: jax.typing.ArrayLike) -> tuple[Any, jax.Array, Any]:
        u = tree.normal_like(jax.random.fold_in(key, i), params)
        losses, aux = evaluate(tree.mask(u, masks))
        if clean is None:
            coefficient = (losses[0] - losses[1]) / (2 * delta)
        else:
            coefficient = (losses[0] - clean[0]) / delta
        scaled = jax.tree.map(lambda x: coefficient.astype(x.dtype) * x, u)
        return scaled, jnp.mean(losses), aux

    total, value, aux = _sum_over_directions(probe, num_directions, chunk_size)
    mean = jax.tree.map(lambda x: x / num_directions, total)
    value = value / num_directions
    if clean is not None:
        value, aux = clean
    evaluations = num_directions * len(signs) + (not two_sided)
    info = Info.zeros()._replace(
        forward_evaluations=jnp.asarray(evaluations, jnp.int32)
    )
    return Estimate(value, tree.mask(mean, masks), aux, info), mean


def _sum_over_directions(
    probe: Callable[[Any], tuple[Any, jax.Array, Any]],
    num_directions: int,
    chunk_size: int | None,
) -> tuple[Any, jax.Array, Any]:
    """Sums the first two results of `probe(i)` over i < m; the third is of i = 0."""
    check_chunks(num_directions, chunk_size)
    chunks = num_directions if chunk_size is None else num_directions // chunk_size

    def chunk(j: Any) -> tuple[Any, jax.Array, Any]:
        if chunk_size is None:
            return probe(j)
        each = jax.vmap(probe)(j * chunk_size + jnp.arange(chunk_size))
        scaled, values, auxes = each
        total = jax.tree.map(lambda x: jnp.sum(x, axis=0), scaled)
        return total, jnp.sum(values), jax.tree.map(lambda x: x[0], auxes)

    total, value, aux = chunk(0)
    if not (isinstance(chunks, int) and chunks == 1):

        def add(j: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            more, more_value, _ = chunk(j)
            return jax.tree.map(jnp.add, carry, (more, more_value))

        total, value = jax.lax.fori_loop(1, chunks, add, (total, value))
    return total, value, aux


def check_chunks(num_directions: Any, chunk_size: int | None) -> None:
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


def scalar_loss(value_fn: ValueFn, has_aux: bool) -> Callable[[Any], tuple[Any, Any]]:
    """`params -> (loss, aux)` from either form of `value_fn`, the loss checked.

    Args:
      value_fn: The user's function.
      has_aux: Which of the two forms it has.

    Returns:
      A function whose loss is a float32 (or wider) scalar and whose aux is None
      without `has_aux`.

    Raises:
      TypeError: `value_fn` is no function, or it returns the other form.
      ValueError: The loss is not a scalar.
    """
    if not callable(value_fn):
        raise TypeError(
            "value_fn must be a function from the parameters to the loss, such as "
            f"lambda p: loss(p, batch); got {type(value_fn).__name__}."
        )

    def loss(params: Any) -> tuple[jax.Array, Any]:
        result = value_fn(params)
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "has_aux=True, so value_fn must return a pair (loss, aux); it returned "
                f"{type(result).__name__}."
            )
        value, aux = result if has_aux else (result, None)
        if value is None or isinstance(value, tuple | list | dict):
            raise TypeError(
                f"value_fn returned a {type(value).__name__}, not a scalar loss. If it "
                "returns (loss, aux), say has_aux=True."
            )
        value = jnp.asarray(value)
        if value.shape != ():
            raise ValueError(
                f"value_fn must return a scalar loss; its shape is {value.shape}. "
                "Take the mean over the batch."
            )
        return value.astype(jnp.promote_types(value.dtype, jnp.float32)), aux

    return loss
